"""Documented commands that need nothing but the repository do what they say."""

import re
import shlex
import sys

import pytest

from tests.test_architecture import REPO
from world_modality_core.studies.evidence import compare_cli
from world_modality_core.studies.report import cli as report_cli

PAGES = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md")), *sorted((REPO / "results").glob("*/README.md"))]


def commands(program: str):
    """A program's commands on committed records, from code blocks and sentences; one of those that ask the same."""
    seen = set()
    for page in PAGES:
        texts = page.read_text().split("```")
        lines = [line for block in texts[1::2] for line in block.replace("\\\n", " ").splitlines()]
        lines += [code.replace("\n", " ") for text in texts[::2] for code in re.findall(r"`([^`]+)`", text)]
        for line in lines:
            if not line.startswith(f"{program} results/") or "<" in line:
                continue
            words = shlex.split(line, comments=True)
            asked = tuple(word for word in words if not word.startswith(("--title=", "--output=")))
            if asked not in seen:
                yield pytest.param(words, id=f"{page.parent.name}/{page.name}: {' '.join(words)[:60]}")
            seen.add(asked)


def test_there_are_commands_to_run():
    assert len(list(commands("wm-compare"))) >= 8 and len(list(commands("wm-report"))) >= 2


@pytest.fixture
def answer(tmp_path, monkeypatch, capsys):
    """Runs a command's words, which write into `tmp_path`; gives what it printed."""

    def run(main, words) -> str:
        monkeypatch.chdir(REPO)
        words = [
            re.sub(r"^(--\w+=)(?=[\w./]+\.(html|json|xml)$)(outputs/)?", rf"\g<1>{tmp_path}/", word) for word in words
        ]
        monkeypatch.setattr(sys, "argv", words)
        assert main() == 0
        return capsys.readouterr().out

    return run


@pytest.mark.parametrize("words", commands("wm-compare"))
def test_documented_comparisons_of_records_answer(words, answer):
    assert answer(compare_cli.main, words)


@pytest.mark.parametrize("words", commands("wm-report"))
def test_documented_reports_of_records_are_written(words, answer, tmp_path):
    printed = answer(report_cli.main, words)
    assert printed.startswith("| ") if "--row" in words else list(tmp_path.glob("*.html"))
