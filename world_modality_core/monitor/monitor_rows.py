"""What a monitor told of evaluated episodes: one row per episode, one parquet part per batch, beside wm-eval's own.

    <evaluation's folder>/monitor/<part>.parquet

`score_NAME` holds the raw score of each tick, `level` the combined one, `line` the level above which there is an alarm,
`alarm_step` the step of the first one, and `disturbed_at` the step at which the environment disturbed the episode, if
it did. Of failures, `setback_at` and `setback` are the step at which the simulation knows that something went wrong,
and what (`metaworld_light`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.io.files import read_parquet, writing
from world_modality_core.monitor.calibration import EpisodeScores

FOLDER = "monitor"
PREFIX = "score_"
ROW_KEY = ["model", "train_seed", "arm", "task", "seed"]
_FIELDS = [
    pa.field("model", pa.string(), nullable=False),
    pa.field("train_seed", pa.int64(), nullable=False),
    pa.field("arm", pa.string(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("instruction", pa.string(), nullable=False),
    pa.field("success", pa.bool_(), nullable=False),
    pa.field("steps", pa.int64(), nullable=False),
    pa.field("every", pa.int64(), nullable=False),
    pa.field("disturbance", pa.string(), nullable=False),
    pa.field("disturbed_at", pa.int64()),
    pa.field("setback_at", pa.int64()),
    pa.field("setback", pa.string()),
    pa.field("false_alarm_rate", pa.float64(), nullable=False),
    pa.field("alarm_step", pa.int64()),
    pa.field("line", pa.float64()),
    pa.field("monitor_s", pa.float64(), nullable=False),
    pa.field("level", pa.list_(pa.float64()), nullable=False),
]


def write_monitor_rows(folder: Path, rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Path:
    """Write the rows of a batch; a part that is there (of a batch that was cut off) is replaced.

    Args:
        folder: The evaluation's.
        rows: Of one arm and one task; `values` holds the (n, c) raw scores.
        names: Names of the c scores.
    """
    table = pa.Table.from_pylist(
        [
            {key: value for key, value in row.items() if key != "values"}
            | {f"{PREFIX}{name}": row["values"][:, i].tolist() for i, name in enumerate(names)}
            for row in rows
        ],
        schema=pa.schema([*_FIELDS, *(pa.field(f"{PREFIX}{name}", pa.list_(pa.float64())) for name in names)]),
    )
    first = rows[0]
    name = f"{first['arm']}-{first['task']}-{min(row['seed'] for row in rows)}.parquet".replace("/", "_")
    path = folder / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as aside:
        pq.write_table(table, aside, compression="zstd")
    return path


def read_monitor_rows(paths: Iterable[str | Path]) -> pd.DataFrame:
    """Rows of evaluations with a monitor.

    Args:
        paths: Folders, searched through.

    Returns:
        The rows, each with the `folder` of its evaluation.

    Raises:
        ConfigError: if there are none, or an episode is there twice.
        DamagedFileError: naming the file.
    """
    paths = [Path(str(path).strip()) for path in paths]
    files = sorted({file.resolve() for path in paths for file in path.rglob(f"{FOLDER}/*.parquet")})
    if not files:
        raise ConfigError(
            f"{', '.join(map(str, paths))}: no rows of a monitor; evaluate with wm-eval --monitor=FOLDER first"
        )
    tables = []
    for file in files:
        table = read_parquet(file)
        if missing := [field.name for field in _FIELDS if not field.nullable and field.name not in table.schema.names]:
            raise DamagedFileError(f"{file} has no column {missing[0]!r}; it is no record of wm-eval --monitor")
        tables.append(table.to_pandas().assign(folder=str(file.parents[1])))
        for name in ("disturbed_at", "alarm_step", "setback_at"):
            tables[-1][name] = tables[-1].get(name, pd.Series(pd.NA, tables[-1].index)).astype("Int64")
        for name in ("setback", "line"):  # records of before have none
            tables[-1][name] = tables[-1].get(name)
    rows = pd.concat(tables, ignore_index=True)
    is_twice = rows.duplicated([*ROW_KEY, "disturbance"], keep=False)
    if is_twice.any():
        first = rows.loc[is_twice, ROW_KEY].iloc[0]
        raise ConfigError(
            f"{int(is_twice.sum())} rows are of episodes that were found more than once, the first "
            f"{', '.join(f'{key}={first[key]}' for key in ROW_KEY)}: give only one of these folders"
        )
    return rows


def scores_of_rows(rows: pd.DataFrame, names: Sequence[str], tasks: Sequence[str], where: str) -> list[EpisodeScores]:
    """Raw scores of rows, in their order.

    Raises:
        ConfigError: if they are another monitor's: they lack a score, or are of an instruction that it doesn't know.
    """
    if missing := [name for name in names if f"{PREFIX}{name}" not in rows]:
        raise ConfigError(
            f"{where}: rows without the score {missing[0]!r}, so another monitor's; evaluate with this one"
        )
    if unknown := sorted(set(rows["instruction"]) - set(tasks)):
        raise ConfigError(f"{where}: rows of {unknown[0]!r}, which this monitor doesn't know; it knows {list(tasks)}")
    episodes = []
    for row in rows.to_dict("records"):
        values = np.stack([np.asarray(row[f"{PREFIX}{name}"], dtype=np.float64) for name in names], axis=1)
        episodes.append(EpisodeScores(tasks.index(row["instruction"]), np.arange(len(values)) * row["every"], values))
    return episodes
