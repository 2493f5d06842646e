"""The documentation site: it builds with dead links as errors, works without a network, and fits a phone."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.browser import WIDTHS

REPO = Path(__file__).parents[1]


def build(repo: Path, site: Path) -> subprocess.CompletedProcess:
    """mkdocs build --strict, as `make docs` runs it."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, cwd=repo, env=quiet, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(REPO, folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.fixture(scope="module")
def pages(site) -> list[Path]:
    return sorted(page for page in site.glob("*.html") if page.name != "404.html")


def test_every_page_is_built(pages):
    written = {path.stem for path in (REPO / "docs").glob("*.md")} - {"README"} | {"index"}
    assert {page.stem for page in pages} == written


def test_the_home_starts_as_readme_does(site):
    home = (site / "index.html").read_text()
    promise = re.search(r"\*\*(.+?)\*\*", (REPO / "README.md").read_text())[1]
    places = [home.find(text) for text in (promise, "images/demo.gif", "<table", 'href="did_it_improve.html"')]
    assert -1 not in places
    assert home.index(promise) < home.index("<table") < home.index("<strong>Start</strong>")


DEAD = {
    "[no such page](nowhere.md)": "nowhere.md",
    "[no such heading](memory.md#nowhere)": "memory.md#nowhere",
    "[no such file](../nowhere.py)": "../nowhere.py",
    "[out of the repository](../../elsewhere.md)": "../../elsewhere.md",
}


def test_what_is_dead_is_an_error(tmp_path):
    repo, site = tmp_path / "repo", tmp_path / "site"
    shutil.copytree(REPO / "docs" / "site", repo / "docs" / "site")
    settings = (REPO / "mkdocs.yml").read_text()
    (repo / "mkdocs.yml").write_text(settings.split("\nnav:")[0] + "\nnav: [README.md, memory.md]\n")
    (tmp_path / "elsewhere.md").touch()
    (repo / "docs" / "memory.md").write_text("# Memory\n")
    home = repo / "docs" / "README.md"
    home.write_text("# Home\n\n[there](memory.md#memory), [a file](../mkdocs.yml)\n")
    done = build(repo, site)
    assert done.returncode == 0, done.stderr
    # A file of the repository outside docs/ is shown where the repository is.
    assert "/blob/main/mkdocs.yml" in (site / "index.html").read_text()

    home.write_text("# Home\n\n" + "\n".join(DEAD))
    (repo / "docs" / "extra.md").write_text("# Not in the navigation\n")
    done = build(repo, site)
    assert done.returncode != 0
    for complaint in [*DEAD.values(), "extra.md"]:
        assert complaint in done.stderr


def test_no_page_needs_a_network(pages):
    for page in pages:
        text = page.read_text()
        loaded = re.findall(r'<(?:script|img|iframe|source)[^>]+src="?([^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]+rel="?(?:stylesheet|preconnect|icon|preload)"?[^>]*href="?([^"\s>]+)', text)
        loaded += re.findall(r'<link[^>]+href="?([^"\s>]+)"?[^>]*rel="?(?:stylesheet|preconnect|icon|preload)', text)
        assert any("javascripts" in url for url in loaded)
        assert not [url for url in loaded if "//" in url], page.name


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), zip(WIDTHS, ("dark", "light"), strict=True))
def test_pages_fit_and_load_nothing_from_elsewhere(browser, pages, width, scheme):
    browser.look(width, scheme)
    for page in pages:
        browser.open(page)
        assert browser.out_of_sight("article") == [], f"{page.name} at {width} px"
        broken = browser.evaluate("[...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
        assert broken == [], page.name
    assert browser.errors == []


@pytest.mark.slow
def test_the_first_screen_holds_promise_picture_command_and_result(browser, site):
    browser.open(site / "index.html")  # 800 px high
    for part in ("strong", "img[src$='concept.svg']", "img[src$='demo.gif']", "pre", "tr:has(strong)"):
        assert browser.evaluate(f'document.querySelector("article {part}").getBoundingClientRect().bottom') <= 800, part


@pytest.mark.slow
def test_search_works_from_files(browser, site):
    browser.open(site / "index.html")
    browser.evaluate(
        "document.querySelector('[data-md-component=search-query]').focus();"
        "document.querySelector('[data-md-toggle=search]').click()"
    )
    for key in "gate":
        browser.press(key)
    found, deadline = "", time.monotonic() + 120
    while not found and time.monotonic() < deadline:
        time.sleep(0.1)
        found = browser.evaluate("[...document.querySelectorAll('.md-search-result__link')].map(a => a.href).join(' ')")
    assert "memory.html" in found or "concept.html" in found
    assert browser.errors == []
