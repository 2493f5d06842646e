"""The page in headless Chromium, from file://: on a phone and a desk, light and dark, with scripts and without."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.utils.io_utils import write_video

from tests.browser import WIDTHS
from tests.studies.report.synthetic import write_study
from world_modality_core.studies.report.cli import make_parser, report

pytestmark = pytest.mark.slow

LONG = "_a_name_that_goes_on_and_on_without_an_end_and_" + "x" * 60
EVIL = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
ROWS = "[...document.querySelectorAll('#found tbody tr')].filter(row => row.offsetHeight)"
SHOWN = f"{ROWS}.map(row => row.cells[0].textContent)"


def page_of(folder: Path, text: str) -> Path:
    rng = np.random.default_rng(0)
    write_video(folder / "a.mp4", [rng.integers(0, 255, (64, 64, 3), dtype=np.uint8) for _ in range(4)], 10)
    write_study(folder / "study", n_seeds=2, n_scenes=8, evil=text, video=(folder / "a.mp4").read_bytes())
    options = [f"--baseline=A_k4{text}", "--max_videos=4", "--title=A study", f"--output={folder / 'r.html'}"]
    return report(make_parser().parse_args([str(folder / "study"), *options]))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    return page_of(tmp_path_factory.mktemp("page"), LONG)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_is_whole(browser, page, width, scheme):
    browser.look(width, scheme)
    browser.open(page)
    assert browser.out_of_sight() == []
    headings = browser.evaluate(
        "[...document.querySelectorAll('h2')].filter(h => h.offsetHeight).map(h => h.innerText)"
    )
    assert len(headings) == 10 and headings[0].startswith("What was found")
    assert browser.evaluate("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    paper, ink = browser.evaluate("(style => [style.backgroundColor, style.color])(getComputedStyle(document.body))")
    assert (paper, ink) == {
        "light": ("rgb(255, 255, 255)", "rgb(29, 35, 48)"), "dark": ("rgb(20, 23, 29)", "rgb(228, 232, 239)")
    }[scheme]  # fmt: skip
    assert browser.evaluate(
        "[...document.querySelectorAll('svg.chart')].every(c => c.getBoundingClientRect().width > 250)"
    )
    assert browser.errors == []


def test_videos_play(browser, page):
    browser.open(page)
    loaded = "[...document.querySelectorAll('video')].map(video => video.videoWidth).join()"
    for _ in range(1200):
        if browser.evaluate(loaded) == "64,64,64,64":
            break
        time.sleep(0.1)
    assert browser.evaluate(loaded) == "64,64,64,64"


def test_tables_are_sorted_and_models_filtered(browser, page):
    browser.open(page)
    a, f = browser.evaluate(SHOWN)
    assert a.startswith("A_k4") and f.startswith("F_k4")
    click = "document.querySelectorAll('#found th button')[1].click()"
    browser.evaluate(click)  # by rate, the lowest first
    assert browser.evaluate(SHOWN) == [a, f]
    browser.evaluate(click)
    assert browser.evaluate(SHOWN) == [f, a]
    browser.evaluate("document.getElementById('filter').focus()")
    browser.send("Input.insertText", text="F_K4")
    assert browser.evaluate(SHOWN) == [f]
    assert (
        browser.evaluate("[...document.querySelectorAll('#success > details')].filter(d => d.offsetHeight).length") == 1
    )


def test_it_reads_without_scripts(browser, page):
    browser.look(360, "light")
    browser.send("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.evaluate("document.querySelectorAll('button').length") == 0
        assert browser.evaluate("document.getElementById('filter').offsetHeight") == 0
        assert len(browser.evaluate(SHOWN)) == 2 and browser.out_of_sight() == []
    finally:
        browser.send("Emulation.setScriptExecutionDisabled", value=False)


def test_hostile_data_does_not_run(browser, tmp_path):
    browser.look(360, "light")
    page = page_of(tmp_path, EVIL)
    browser.open(page)
    assert browser.out_of_sight() == []
    assert browser.evaluate("document.title") == "A study" and browser.errors == []
    # The content security policy holds even if something were not escaped.
    page.write_text(page.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>"))
    browser.open(page)
    assert browser.evaluate("document.title") == "A study"
    assert any("Content Security Policy" in error for error in browser.errors)
