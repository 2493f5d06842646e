"""The look for what a page hides beside the window finds each way of hiding it."""

import pytest

WIDE = '<p style="width: 500px">too wide</p>'
FAULTS = {
    WIDE: ["p. from 8 to 508 px of 360: too wide"],
    f'<div style="overflow: auto">{WIDE}</div>': [
        "div. shows 344 of its 500 px: too wide",
        "p. from 8 to 508 px of 360: too wide",
    ],
    '<p style="width: 90px; overflow: hidden; white-space: nowrap">cut off at its end</p>': ["p. shows 90 of its "],
    '<svg width="100" height="20"><text x="60" y="15">cut off at its end</text></svg>': [
        "text. is cut off by its picture"
    ],
    "<details><summary>more</summary>" + WIDE + "</details>": ["p. from 8 to 508 px of 360: too wide"],
    "<p>all of it can be seen</p><pre style='white-space: pre-wrap'>a b       </pre>": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("html", FAULTS)
def test_it_is_found(browser, tmp_path, html):
    (tmp_path / "page.html").write_text(f'<!doctype html><meta name="viewport" content="width=device-width">{html}')
    browser.look(360, "light")
    browser.open(tmp_path / "page.html")
    found = browser.out_of_sight()
    assert len(found) == len(FAULTS[html])
    assert all(line.startswith(fault) for line, fault in zip(found, FAULTS[html], strict=True)), found
