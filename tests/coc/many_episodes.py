"""Datasets of many tiny episodes, made from one that LeRobot recorded: its rows again, renumbered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.io_utils import write_table_one_row_group_per_episode


def make_many(one: Path, root: Path, n_episodes: int) -> Path:
    """Write a dataset of n episodes with a task each: "push the puck to place 17".

    Args:
        one: A dataset of one episode whose images, if it has any, are stored in parquet.
        root: Folder, which must not exist.
        n_episodes: Episodes.
    """
    rows = pq.read_table(one / "data/chunk-000/file-000.parquet")
    episodes = pq.read_table(one / "meta/episodes/chunk-000/file-000.parquet")
    info = json.loads((one / "meta/info.json").read_text())
    n_frames = rows.num_rows
    tasks = [f"push the puck to place {episode}" for episode in range(n_episodes)]
    episode = np.repeat(np.arange(n_episodes), n_frames)
    many = rows.take(pa.array(np.tile(np.arange(n_frames), n_episodes)))
    numbers = {"episode_index": episode, "task_index": episode, "index": np.arange(n_episodes * n_frames)}
    many = _set(many, {name: pa.array(values, pa.int64()) for name, values in numbers.items()})
    each = np.arange(n_episodes)
    meta = _set(
        episodes.take(pa.array(np.zeros(n_episodes, int))),
        {
            "episode_index": pa.array(each, pa.int64()),
            "tasks": pa.array([[task] for task in tasks]),
            "dataset_from_index": pa.array(each * n_frames, pa.int64()),
            "dataset_to_index": pa.array((each + 1) * n_frames, pa.int64()),
        },
    )
    for name in ("data/chunk-000", "meta/episodes/chunk-000"):
        (root / name).mkdir(parents=True)
    write_table_one_row_group_per_episode(many, root / "data/chunk-000/file-000.parquet")
    pq.write_table(meta, root / "meta/episodes/chunk-000/file-000.parquet")
    frame = pd.DataFrame({"task_index": each}, index=pd.Index(tasks, name="task"))
    frame.to_parquet(root / "meta/tasks.parquet")
    info |= {
        "total_episodes": n_episodes,
        "total_frames": n_episodes * n_frames,
        "total_tasks": n_episodes,
        "splits": {"train": f"0:{n_episodes}"},
    }
    (root / "meta/info.json").write_text(json.dumps(info, indent=4))
    shutil.copy(one / "meta/stats.json", root / "meta/stats.json")
    return root


def _set(table: pa.Table, columns: dict[str, pa.Array]) -> pa.Table:
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, values)
    return table
