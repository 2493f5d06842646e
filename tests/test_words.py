"""One term, one meaning (docs/glossary.md): words that were given up don't come back where people read."""

import ast
import re
from pathlib import Path

import pytest
import yaml

REPO = Path(__file__).parents[1]
PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]
PACKAGES = ("lerobot_policy_world_modality", "world_modality_core", "coc_tools", "wm_tools", "examples")
# Pattern -> what is said in its place.
GIVEN_UP = {
    r"\b[Bb]lind (control|polic)": "without images",
    r"\b(foresaw|foreseen)\b": "forecast",
    r"[Pp]rophet (that )?tells (no |the robot's )?(future )?states?": "forecasts the robot's state",
    r"emory used: (not )?shown|at test time: (not )?shown": "evidence that the memory is read",
    r"over (\w+ )?training runs": "across training seeds",
    r"told actions|actions? that (are|were) told": "pseudo-labelled actions",
    r"would have seen no effect": "can't detect any effect",
}
SPELLED_OUT = {"E0": "no memory|none", "E1": "zero memory|zeros", "E2": "predicted memory", "E3": "text", "E4": "text"}
# What was fixed before a study was run stays as it was written.
DESIGNS = {"studies.md", "study5.md"}


def said(path: Path) -> str:
    """What a module says to people: its strings, but for docstrings and what holds no two words."""
    tree = ast.parse(path.read_text())
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        and node.body and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    strings = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return "\n".join(n.value for n in strings if id(n) not in docs and " " in n.value)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    texts = {page: page.read_text() for page in PAGES if page.name not in DESIGNS}
    texts |= {path: said(path) for package in PACKAGES for path in (REPO / package).rglob("*.py")}
    texts |= {path: path.read_text() for package in PACKAGES for path in (REPO / package).rglob("*.jinja")}
    return {str(path.relative_to(REPO)): text for path, text in texts.items()}


@pytest.mark.parametrize("pattern", GIVEN_UP)
def test_words_that_were_given_up_stay_away(pattern, texts):
    found = {f"{name}: {hit[0]}" for name, text in texts.items() for hit in re.finditer(pattern, text)}
    assert not found, f"say {GIVEN_UP[pattern]!r}"


def test_experiments_are_spelled_out_where_a_page_first_names_them():
    wrong = []
    for page in PAGES:
        lines = page.read_text().splitlines()
        for name, words in SPELLED_OUT.items():
            named = re.compile(rf"(?<![\w/]){name}\b(?!/|\.json)")
            first = next((i for i, line in enumerate(lines) if named.search(line)), None)
            if first is not None and not re.search(words, " ".join(lines[max(0, first - 1) : first + 2])):
                wrong.append(f"{page.name}:{first + 1}: {name}")
    assert not wrong


def test_every_page_leads_to_the_glossary():
    site = yaml.load((REPO / "mkdocs.yml").read_text(), Loader=yaml.BaseLoader)
    assert 'href="glossary.html"' in site["copyright"]
    assert all("glossary.md" in (REPO / page).read_text() for page in ("README.md", "docs/README.md"))
