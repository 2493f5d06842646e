"""The page of `wm-monitor scan` and `eval` in a browser."""

import numpy as np
import pytest

from tests.browser import WIDTHS
from world_modality_core.monitor.strips import Picture, Strip, level_chart, write_page


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_everything_can_be_seen_on_a_phone_and_a_laptop(browser, tmp_path, width):
    rng = np.random.default_rng(0)
    pictures = [
        Picture(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8), f"step {20 * i}", is_marked=i == 3) for i in range(7)
    ]
    level = level_chart("push-v3, scene 100005", "steps", np.arange(0, 140, 2), rng.random(70), 0.5)
    name = "F_states_only_video_" + "x" * 60
    strip = Strip(f"{name}, push-v3, scene 100005: failure, alarm", "130 steps; alarm at step 60.", pictures, level)
    write_page(tmp_path / "page.html", "A monitor, judged", "How well.", [strip] * 2, [level] * 2)
    browser.look(width, "light")
    browser.open(tmp_path / "page.html")
    assert browser.out_of_sight() == [] and browser.errors == []
    seen = "[...document.images].filter(i => i.naturalWidth && i.getBoundingClientRect().width > 60).length"
    assert browser.evaluate(seen) == 14
    chart = "Math.max(...[...document.querySelectorAll('svg.chart')].map(c => c.getBoundingClientRect().height))"
    assert browser.evaluate(chart) < 400  # half a screen
