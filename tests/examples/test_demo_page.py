"""The demo's page: complete, self-contained, and safe against what its data may hold."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from lerobot.utils.io_utils import write_video
from PIL import Image

import gif
import page
from page_data import PageData
from results import Result
from tests.browser import WIDTHS
from tests.studies.report.synthetic import make_imagined

EVIL = "</script><script>alert('$x$')</script>&<b>"


class Tags(HTMLParser):
    """Collects start tags, and what they would load."""

    def __init__(self):
        super().__init__()
        self.names, self.loads = set(), []

    def handle_starttag(self, tag, attributes):
        self.names.add(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "xlink:href", "poster", "data")]


def noise(rng, size):
    return rng.integers(0, 255, (size, size, 3), dtype=np.uint8)


@pytest.fixture
def data(tmp_path):
    rng = np.random.default_rng(0)
    videos = []
    for name in ("a", "b"):
        write_video(tmp_path / f"{name}.mp4", [noise(rng, 64) for _ in range(8)], 10)
        videos.append(tmp_path / f"{name}.mp4")
    imagined = make_imagined(EVIL, n_steps=4)
    metrics = [
        {
            "step": s,
            "loss_action": 1 / s,
            "loss_world": 0.5 / s,
            "world_gate": s / 1e4,
            "prophet_skill_1": 0.1,
            "prophet_skill_4": 0.2,
        }
        for s in range(25, 2501, 25)
    ]
    results = [
        Result(EVIL, [True] * 9 + [False] * 3, videos),
        Result("reach", [True] * 12, videos[:1]),
        Result("all", [True] * 21 + [False] * 3, []),
    ]
    blind = [Result(r.task, [False] * len(r.successes), []) for r in results]
    return PageData(
        stages=[("record", EVIL, f"wm-record --tasks={EVIL}", "1 min 50 s")],
        demonstrations=[(EVIL, [noise(rng, 64)] * 2)],
        results=results,
        no_memory=blind,
        blind=blind,
        verdict=EVIL,
        metrics=metrics,
        videos=page.choose_videos(results),
        imagined=imagined,
    )


def test_page_needs_nothing_else_and_escapes_its_data(data):
    html = page.build_page(data)
    tags = Tags()
    tags.feed(html)
    assert not tags.names & {"script", "iframe", "object"}
    assert EVIL not in html and "&lt;script&gt;" in html
    assert len(tags.loads) > 10
    assert {load for load in tags.loads if not load.startswith(("data:", "#"))} == {"report.html"}
    assert not re.search(r"url\((?!#)", html)


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_can_be_seen_on_a_phone_and_a_laptop(browser, data, tmp_path, width):
    browser.look(width, "light")
    (tmp_path / "index.html").write_text(page.build_page(data))
    browser.open(tmp_path / "index.html")
    assert browser.out_of_sight() == []


def test_page_shows_every_part(data):
    html = page.build_page(data)
    for text in (
        "9 of 12",
        "(47 to 91)",
        "21 of 24",
        "without images",
        "it doesn't show",
        "cosine 0.85, copy 0.70",
        "1 min 50 s",
        "8400",
    ):
        assert text in html, text
    assert html.count("<svg") == 4
    assert html.count("<video") == len(data.videos) == 2
    assert html.count("<img") == 2 + 2 + 2 * 8


def test_page_of_a_run_that_goes_on_fills_and_asks_to_be_read_again(data):
    stages = [("record", "", "", "2 s"), ("train", "", "", "runs now")]
    html = page.build_page(PageData(stages, is_done=False))
    assert 'http-equiv="refresh"' in html and "runs now" in html and "<table" not in html
    html = page.build_page(PageData(stages, results=data.results, is_done=False))
    assert "9 of 12" in html and "What it foresaw" not in html
    assert "refresh" not in page.build_page(data)


def test_first_success_and_first_failure_are_shown(data):
    assert [video.caption.split(", ")[-1] for video in data.videos] == ["success", "success"]
    results = [Result("push", [False, True], [data.videos[0].path, data.videos[0].path])]
    assert [video.caption for video in page.choose_videos(results)] == ["push, success", "push, failure"]


def test_films_side_by_side(tmp_path):
    films = [[np.full((8, 8, 3), 40 * i, np.uint8) for i in range(n)] for n in (2, 4)]
    gif.write_gif(films, tmp_path / "demo.gif")
    with Image.open(tmp_path / "demo.gif") as picture:
        assert (picture.size, picture.n_frames) == ((16, 8), 4)
        picture.seek(3)
        colours = np.asarray(picture.convert("RGB"))
    assert abs(int(colours[0, 0, 0]) - 40) < 6 and abs(int(colours[0, 15, 0]) - 120) < 6
