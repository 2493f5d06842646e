"""docs/did_it_improve.md from trials that were noted down to an answer."""

import re
from pathlib import Path

import pytest

from tests.users.pages import REPO, run

PAGE = (REPO / "docs/did_it_improve.md").read_text()


def typed(start: str) -> list[str]:
    return re.search(rf"`({re.escape(start)}[^`]*)`", PAGE)[1].split()


@pytest.mark.parametrize(
    ("n_better", "answer"), [(30, r"\bbetter\b"), (0, "no difference shown")], ids=["improved", "the same"]
)
def test_notes_become_an_answer(tmp_path: Path, n_better: int, answer: str):
    columns = re.search(r"with the columns `(\w+)`, `(\w+)` .*? and `(\w+)`", PAGE).groups()
    rows = [",".join(columns)]
    for trial in range(40):
        rows += [f"old,{trial},{int(trial >= 32)}", f"new,{trial},{int(trial >= 32 - n_better)}"]
    (tmp_path / "trials.csv").write_text("\n".join(rows) + "\n")
    printed = run([*typed("wm-compare trials.csv"), "--brief"], tmp_path)
    assert re.search(answer, printed), printed


def test_how_many_episodes_it_takes_is_told(tmp_path: Path):
    assert re.search(r"\d+", run(typed("wm-compare --plan"), tmp_path))
