"""Trials of real robots as episodes: a CSV of policy, task, trial and success is enough."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from world_modality_core.studies.evidence.episode_records import EPISODE_SCHEMA, EpisodesError, rows_to_frame

REQUIRED = ("policy", "trial", "success")
_TRUE, _FALSE = {"1", "true", "yes", "y", "success"}, {"0", "false", "no", "n", "failure"}


def trial_row(policy: str, task: str, trial: int, success: bool, **known: Any) -> dict[str, Any]:
    """A trial as an episode's row: trials of one number are of one set-up, which is what pairs them.

    Args:
        policy: Label of what was run.
        task: Of which task.
        trial: Number of the set-up.
        success: Whether it succeeded.
        known: Other columns, such as `sum_reward` (a rubric's score), `train_seed` or `checkpoint`.
    """
    row = dict.fromkeys(EPISODE_SCHEMA.names) | {
        "model": policy, "train_seed": 0, "arm": "intact", "checkpoint": policy, "policy_type": "", "env": "real",
        "task": task, "group": task, "tier": "", "seed": trial, "init_hash": f"{task}-{trial}", "success": success,
        "steps": 0, "sum_reward": float(success), "max_reward": float(success), "wall_s": 0.0, "n_plans": 0,
        "n_action_steps": 0, "renderer": "", "image_height": 0, "image_width": 0, "episode_length": 0, "env_hash": "",
    }  # fmt: skip
    return row | known


def read_trials(file: Path) -> pd.DataFrame:
    """Read a CSV with the columns policy, trial and success, and if there are any: task, score (a rubric), train_seed.

    Returns:
        Rows as `read_episodes` returns them.

    Raises:
        EpisodesError: if a column is missing, or a cell is not what its column says, naming the line.
    """
    names, *table = _cells(file)
    missing = [name for name in REQUIRED if name not in names]
    if missing:
        raise EpisodesError(
            f"{file} lacks the column {missing[0]}: expected {', '.join(REQUIRED)}, with commas between them, not "
            f"{names}"
        )
    if len(set(names)) < len(names):
        raise EpisodesError(f"{file} has a column twice: {names}")
    rows = []
    for line, values in enumerate(table, start=2):
        where = f"{file}, line {line}"
        if not any(values):
            continue
        if len(values) != len(names):
            raise EpisodesError(f"{where} has {len(values)} cells, expected {len(names)}: {', '.join(names)}")
        cells = dict(zip(names, values, strict=True))
        said = cells["success"].lower()
        if said not in _TRUE | _FALSE:
            raise EpisodesError(f"{where}: success is {cells['success']!r}, expected 1 or 0, yes or no")
        if not cells["policy"]:
            raise EpisodesError(f"{where}: policy is empty")
        trial, known = _whole(cells["trial"], "trial", where), {}
        if "score" in names:
            known["sum_reward"] = known["max_reward"] = _score(cells["score"], where)
        if "train_seed" in names:
            known["train_seed"] = _whole(cells["train_seed"], "train_seed", where)
            known["checkpoint"] = f"{cells['policy']}-{known['train_seed']}"
        rows.append(trial_row(cells["policy"], cells.get("task", ""), trial, said in _TRUE, **known))
    if not rows:
        raise EpisodesError(f"{file} has no trials")
    return rows_to_frame(rows)


def _cells(file: Path) -> list[list[str]]:
    """The table's lines, the names of its columns first."""
    try:
        text = file.read_text(encoding="utf-8-sig")  # as Excel writes it, too
    except UnicodeDecodeError as error:
        raise EpisodesError(f"{file} is no UTF-8 text; save it as a CSV in UTF-8") from error
    try:
        lines = [[cell.strip() for cell in line] for line in csv.reader(io.StringIO(text, newline=""))]
    except csv.Error as error:
        raise EpisodesError(f"{file} is no CSV ({error})") from error
    if not lines:
        raise EpisodesError(f"{file} is empty: expected the columns {', '.join(REQUIRED)}")
    return lines


def is_table_of_trials(paths: Sequence[str]) -> bool:
    """Whether what was named is CSV files."""
    return bool(paths) and all(Path(path).suffix == ".csv" for path in paths)


def _whole(text: str, name: str, where: str) -> int:
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text):
        raise EpisodesError(f"{where}: {name} is {text!r}, expected a whole number of at most 18 digits")
    return int(text)


def _score(text: str, where: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not math.isfinite(score):
        raise EpisodesError(f"{where}: score is {text!r}, expected a number such as 0.5")
    return score
