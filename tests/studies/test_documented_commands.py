"""Documented commands that need nothing but the repository do what they say."""

import re
import shlex
import sys

import pytest

from tests.test_architecture import REPO
from world_modality_core.studies.evidence import compare_cli

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "results").glob("*/README.md"))]


def commands():
    """`wm-compare` of committed records, from code blocks."""
    seen = set()
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if not line.startswith("wm-compare results/"):
                    continue
                words = shlex.split(line, comments=True)
                if tuple(words) not in seen:
                    yield pytest.param(words, id=f"{page.parent.name}/{page.name}: {' '.join(words)[:60]}")
                seen.add(tuple(words))


def test_there_are_commands_to_run():
    assert len(list(commands())) >= 8


@pytest.mark.parametrize("words", commands())
def test_documented_comparisons_of_records_answer(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(REPO)
    words = [word.replace("outputs/", f"{tmp_path}/") for word in words]
    monkeypatch.setattr(sys, "argv", words)
    assert compare_cli.main() == 0
    assert capsys.readouterr().out
