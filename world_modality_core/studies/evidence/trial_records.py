"""Trials of real robots as episodes: a CSV of policy, task, trial and success is enough."""

from __future__ import annotations

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
    table = pd.read_csv(file, dtype=str, keep_default_na=False, skipinitialspace=True)
    missing = [name for name in REQUIRED if name not in table.columns]
    if missing:
        raise EpisodesError(f"{file} lacks the column {missing[0]}: expected {', '.join(REQUIRED)}, not {list(table)}")
    rows = []
    for line, cells in enumerate(table.to_dict("records"), start=2):
        said = cells["success"].strip().lower()
        if said not in _TRUE | _FALSE:
            raise EpisodesError(f"{file}, line {line}: success is {cells['success']!r}, expected 1 or 0, yes or no")
        known = {}
        if cells.get("score"):
            known["sum_reward"] = known["max_reward"] = _number(cells["score"], float, "score", file, line)
        if cells.get("train_seed"):
            known["train_seed"] = _number(cells["train_seed"], int, "train_seed", file, line)
            known["checkpoint"] = f"{cells['policy']}-{known['train_seed']}"
        trial = _number(cells["trial"], int, "trial", file, line)
        rows.append(trial_row(cells["policy"], cells.get("task", ""), trial, said in _TRUE, **known))
    if not rows:
        raise EpisodesError(f"{file} has no trials")
    return rows_to_frame(rows)


def is_table_of_trials(paths: Sequence[str]) -> bool:
    """Whether what was named is CSV files."""
    return bool(paths) and all(Path(path).suffix == ".csv" for path in paths)


def _number(text: str, kind: type, name: str, file: Path, line: int):
    try:
        return kind(text)
    except ValueError:
        raise EpisodesError(f"{file}, line {line}: {name} is {text!r}, expected a number") from None
