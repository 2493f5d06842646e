"""The page of labels: complete, self-contained, safe against what its data may hold, and searched in a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from coc_tools.schema import EpisodeLabel
from coc_tools.store import LabelFile
from coc_tools.view.cli import ViewConfig, main, view
from coc_tools.view.label_page import curve_points, make_lane, time_ticks
from tests.browser import WIDTHS
from tests.coc.helpers import PROVENANCE, label_of, step
from world_modality_core.io.errors import ConfigError, UserError

EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&<b>"


class Tags(HTMLParser):
    """Collects elements, what they would load, and handlers in attributes."""

    def __init__(self, html: str):
        super().__init__()
        self.names: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.names.append(tag)
        self.loads += [value for name, value in attributes if name in ("src", "href", "srcset", "data", "poster")]
        self.handlers += [name for name, _ in attributes if name.startswith("on")]


def write(path: Path, labels: list[EpisodeLabel]) -> str:
    with LabelFile(path) as file:
        for label in labels:
            file.append(label)
    return str(path)


@pytest.fixture
def config(coc_source, reader, tmp_path) -> ViewConfig:
    """Labels of all 4 episodes, those of the first with hostile text; and a second set of 2 of them."""
    labels = [label_of(reader, episode) for episode in range(4)]
    evil = labels[0].model_copy(update={"text": "", "steps": [step(0, 1, EVIL, why=EVIL, objects=[EVIL[:80]])]})
    labels[0] = EpisodeLabel.model_validate(evil.model_dump())
    others = [label_of(reader, episode, (0.0, 0.4, 0.8), mark=", by hand") for episode in (1, 2)]
    config = ViewConfig(
        labels=write(tmp_path / "vlm.jsonl", labels),
        against=write(tmp_path / "people.jsonl", others),
        output=str(tmp_path / "out" / "page.html"),
        n_frames=4,
        frame_width_px=24,
    )
    config.dataset.repo_id, config.dataset.root = "tests/coc", str(coc_source)
    return config


def test_the_page_needs_nothing_else_and_escapes_its_data(config):
    html = view(config).read_text()
    tags = Tags(html)
    assert tags.names.count("script") == 1 and not set(tags.names) & {"iframe", "object", "b"}
    assert not tags.handlers
    assert tags.loads and all(load.startswith("data:") for load in tags.loads)
    assert not re.search(r"url\(|@import|fetch\(|https?:", html)
    assert EVIL not in html and "&lt;/script&gt;" in html


def test_every_episode_is_shown_with_frames_curve_and_both_label_sets(config):
    html = view(config).read_text()
    tags = Tags(html)
    assert tags.names.count("article") == 4 and tags.names.count("img") == 4 * 4 and tags.names.count("polyline") == 4
    assert html.count('class="lane set-0"') == html.count('class="lane set-1"') == 4
    assert html.count("no label") == 2  # the second set has 2 of the 4
    for text in ("Episode 3: ", "1.70 s, 17 frames", "Step 0.8 of episode 2, by hand", "0.50 to 1.70 s", "people"):
        assert text in html, text


def test_a_picture_stands_above_its_own_time(config):
    """Frames of the tiny dataset name their time: red is 10 * t."""
    html = view(config).read_text()
    card = html.split("<article")[2]  # episode 1, 17 frames
    uris = re.findall(r'src="data:image/webp;base64,([^"]+)"', card)
    times = [float(text) for text in re.findall(r'alt="at ([\d.]+) s"', card)]
    assert times == [0.2, 0.6, 1.0, 1.4]  # the middles of four quarters of 1.7 s, as frames of 10 fps
    for uri, time_s in zip(uris, times, strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri))))
        assert pixels.shape == (24, 24, 3)
        assert pixels[..., 0].mean() == pytest.approx(100 * time_s, abs=8)


def test_blocks_lie_where_their_times_are():
    label = EpisodeLabel(
        episode_index=0, task="t", length_s=4.0, provenance=PROVENANCE,
        steps=[step(0, 2, "a"), step(1, 3, "b"), step(2, 3, "c"), step(3, 4.02, "d")],
    )  # fmt: skip
    lane = make_lane("x", label, 4.0)
    assert [(b.left, b.width, b.row) for b in lane.blocks] == [(0, 50, 0), (25, 50, 1), (50, 25, 0), (75, 25, 0)]
    assert lane.n_rows == 2
    assert make_lane("x", None, 4.0).n_rows == 1


def test_the_gripper_is_drawn_in_the_datasets_range():
    points = [tuple(map(float, p.split(","))) for p in curve_points([-1, -1, 1, 0], -1, 1).split()]
    assert points[:2] == [(0, 95), (25, 95)] and points[4:6] == [(50, 5), (75, 5)] and points[-1] == (100, 50)
    assert curve_points([3, 3], 3, 3) == "0.00,95.0 50.00,95.0 50.00,95.0 100.00,95.0"


@pytest.mark.parametrize("length_s", [0.05, 0.89, 1.0, 7.3, 61.0, 600.0])
def test_ticks_are_round_and_few(length_s):
    ticks = time_ticks(length_s)
    assert 4 <= len(ticks) <= 10 and ticks[0] == (0, ticks[0][1]) and all(0 <= left < 100 for left, _ in ticks)
    assert len({text for _, text in ticks}) == len(ticks)
    for left, text in ticks:
        assert float(text.removesuffix(" s")) == pytest.approx(left * length_s / 100, abs=1e-4 * length_s)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "nowhere.jsonl"}, "labels='nowhere.jsonl': no such file"),
        ({"against": "nowhere.jsonl"}, "against='nowhere.jsonl': no such file"),
        ({"episodes": [1, 7]}, r"episodes: \[7\] have no label"),
        ({"n_frames": 0}, "n_frames=0"),
        ({"camera": "observation.images.left"}, "camera 'observation.images.left' is not one of"),
    ],
)
def test_wrong_options_are_named_and_leave_no_page(config, options, message):
    for name, value in options.items():
        setattr(config, name, value)
    with pytest.raises(UserError, match=message):
        view(config)
    assert not list(Path(config.output).parent.glob("*"))


def test_labels_of_another_dataset_are_refused(config, reader, tmp_path):
    other = label_of(reader, 0).model_copy(update={"task": "fold the towel"})
    config.labels = write(tmp_path / "other.jsonl", [other])
    with pytest.raises(ConfigError, match="episode 0 is 'fold the towel' in other and 'push the puck' in the dataset"):
        view(config)


def test_the_console_script_ends_with_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["coc-view", "--labels=nowhere.jsonl"])
    with pytest.raises(SystemExit, match="^coc-view: labels='nowhere.jsonl': no such file"):
        main()


# --- in a browser -----------------------------------------------------------------------------------------------------


SHOWN = "[...document.querySelectorAll('article')].filter(a => a.offsetHeight > 0).map(a => a.id).join()"


@pytest.mark.slow
def test_the_search_works_in_a_browser(browser, config):
    browser.open(view(config))
    assert browser.evaluate("document.title") == "Chains of causality"  # hostile text did not run
    assert browser.evaluate(SHOWN) == "episode-0,episode-1,episode-2,episode-3"
    assert browser.evaluate("[...document.images].every(image => image.naturalWidth === 24)")

    browser.press("/")  # goes to the search box, and is not typed into it
    browser.send("Input.insertText", text="DRAWER  by hand")
    assert browser.evaluate("document.activeElement.value") == "DRAWER  by hand"
    assert browser.evaluate(SHOWN) == "episode-1"
    assert browser.evaluate("document.getElementById('count').textContent") == "1 of 4 episodes"
    found = "[...document.querySelectorAll('#episode-1 li.found')].length"
    assert browser.evaluate(found) == 3  # the steps of the second set, not those of the first

    browser.send("Input.insertText", text=" nowhere")
    assert browser.evaluate(SHOWN) == "" and browser.evaluate("document.getElementById('none').offsetHeight > 0")
    browser.press("Escape")
    assert browser.evaluate(SHOWN).count("episode") == 4

    # What is typed is never taken for markup or for a pattern.
    browser.send("Input.insertText", text="</script><script>")
    assert browser.evaluate(SHOWN) == "episode-0"
    assert browser.evaluate("document.title") == "Chains of causality"

    # A step's block and its sentence light up together.
    browser.press("Escape")
    rect = "JSON.stringify(document.querySelector('#episode-1 .block[data-step=\"1-2\"]').getBoundingClientRect())"
    browser.evaluate("document.querySelector('#episode-1').scrollIntoView({block: 'center'})")
    box = json.loads(browser.evaluate(rect))
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + 3, y=box["y"] + box["height"] / 2)
    assert browser.evaluate("[...document.querySelectorAll('.lit')].map(e => e.tagName + e.dataset.step).join()") == (
        "DIV1-2,LI1-2"
    )
    assert browser.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_can_be_seen_on_a_phone_and_a_laptop(browser, config, width):
    config.frame_width_px, config.n_frames = 160, 12
    browser.look(width, "light")
    browser.open(view(config))
    # A step's block on the timeline is as long as the step; its words are in the list below.
    assert [line for line in browser.out_of_sight() if not line.startswith("div.block")] == []
    assert browser.evaluate("Math.min(...[...document.images].map(image => image.getBoundingClientRect().width))") > 60
    assert browser.errors == []


@pytest.mark.slow
def test_no_script_but_the_pages_own_may_run(browser, config):
    """The content security policy holds even if something were not escaped."""
    page = view(config)
    page.write_text(page.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>"))
    browser.open(page)
    assert browser.evaluate("document.title") == "Chains of causality"
    assert browser.evaluate("document.getElementById('count').textContent") == "4 of 4 episodes"  # its own ran
    assert any("Content Security Policy" in error for error in browser.errors)
