"""Putting labels into a dataset: rows of style `coc` in the column `language_persistent`.

Rows of other styles stay as they are. The changed files are written aside, the old ones are backed up, and a journal is
written before the first one is replaced: a run that is killed before that has changed nothing, and one that is killed
later is finished by the next run (`recover`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import write_info
from lerobot.datasets.language import (
    LANGUAGE_PERSISTENT,
    language_feature_info,
    language_persistent_row_arrow_type,
)

from coc_tools.language_rows import COC_STYLE, rows_of_label
from coc_tools.schema import EpisodeLabel
from world_modality_core.io.dataset_files import data_files
from world_modality_core.io.errors import UserError
from world_modality_core.io.files import (
    check_own,
    check_room,
    checked,
    naming_full_disk,
    open_parquet,
    read_json,
    read_parquet,
    reading,
    write_text,
)
from world_modality_core.io.progress import told
from world_modality_core.io.work_folder import WorkFolder, write_folder
from world_modality_core.precompute.assemble import link_or_copy

INFO = "meta/info.json"
# What is going to be replaced; renamed to JOURNAL when all is ready for it.
PLAN = "plan.json"
JOURNAL = "journal.json"
# In a copy: what it is a copy of, and by which labels.
COPY_FILE = ".coc_copy.json"
_MAKE_ROOM = "make room there, then give the same command again"


class WriteError(UserError):
    """Labels can't be written into a dataset."""


def write_in_place(root: Path, labels: Mapping[int, EpisodeLabel]) -> tuple[Path, list[str]]:
    """Put labels into a dataset where it is.

    Args:
        root: Its folder.
        labels: Label of each episode that has one; existing `coc` rows of other episodes stay.

    Returns:
        (folder of the backup, names of the files in it: exactly those that were rewritten).

    Raises:
        WriteError: if the labels don't fit the dataset, the disk is full, or another process writes to it.
    """
    root = Path(root).resolve()
    with _lock(root):
        _finish_or_undo(root)
        meta = _open(root, labels)
        names = [str(path.relative_to(root)) for path in data_files(root)] + [INFO]
        check_room(root, 1.2 * sum((root / name).stat().st_size for name in names), _MAKE_ROOM)
        backup = root.with_name(f"{root.name}.coc_backup-{datetime.now(UTC):%Y%m%dT%H%M%S%f}")
        try:
            with naming_full_disk(root):
                _prepare(meta, root, labels, names, backup)
        except BaseException:
            _finish_or_undo(root)
            raise
        _replace(root, names)
    return backup, names


def _prepare(
    meta: LeRobotDatasetMetadata, root: Path, labels: Mapping[int, EpisodeLabel], names: list[str], backup: Path
) -> None:
    """Write the new files aside and back the old ones up; with the journal's name the change is decided."""
    stage = _stage(root)
    stage.mkdir()
    write_text(stage / PLAN, json.dumps({"files": names, "backup": str(backup)}, indent=2))
    _write_files(meta, root, stage / "new", labels)
    for name in names:
        (backup / name).parent.mkdir(parents=True, exist_ok=True)
        # The old file is replaced, never changed: a link to it is a backup, and takes no room.
        link_or_copy(root / name, backup / name)
    os.replace(stage / PLAN, stage / JOURNAL)
    _sync_folder(stage)


def write_copy(source: Path, root: Path, labels: Mapping[int, EpisodeLabel]) -> Path:
    """Write a copy of a dataset that has the labels. Videos are hard-linked where the file system can.

    Args:
        source: Folder of the dataset.
        root: Folder of the copy, which must not exist, or be this very copy.
        labels: Label of each episode that has one.

    Returns:
        `root`.

    Raises:
        WriteError: if the folder is not empty, the labels don't fit the dataset, or the disk is full.
    """
    source, root = Path(source).resolve(), Path(root).resolve()
    request = _copy_request(source, labels)
    if is_copied(source, root, labels):
        return root
    meta = _open(source, labels)
    root.parent.mkdir(parents=True, exist_ok=True)
    left_over = WorkFolder(root.with_name(f"{root.name}.partial")).n_bytes(request)
    check_room(root, 1.2 * sum(path.stat().st_size for path in data_files(source)) - left_over, _MAKE_ROOM)
    with naming_full_disk(root):
        write_folder(root, request, lambda aside: _copy_with_labels(meta, source, aside, labels, request))
    return root


def is_copied(source: Path, root: Path, labels: Mapping[int, EpisodeLabel]) -> bool:
    """Whether the copy is there already, by a run that was killed before it could say so; see `write_copy`.

    Raises:
        WriteError: if something else is there.
    """
    if not root.exists() or not any(root.iterdir()):
        return False
    if (root / COPY_FILE).is_file() and read_json(root / COPY_FILE) == _copy_request(source, labels):
        return True
    raise WriteError(f"write.root={str(root)!r} exists: name a new folder, or delete it")


def _copy_request(source: Path, labels: Mapping[int, EpisodeLabel]) -> dict[str, str]:
    return {"copy_of": str(Path(source).resolve()), "labels_sha256": _hash(labels)}


def _hash(labels: Mapping[int, EpisodeLabel]) -> str:
    lines = "".join(f"{label.to_line()}\n" for _, label in sorted(labels.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _copy_with_labels(
    meta: LeRobotDatasetMetadata, source: Path, aside: Path, labels: Mapping[int, EpisodeLabel], request: dict
) -> None:
    _write_files(meta, source, aside, labels)
    write_text(aside / COPY_FILE, json.dumps(request, indent=2))
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if (
            name.parts[0] in ("meta", "videos", "images", "README.md")
            and path.is_file()
            and not (aside / name).exists()
        ):
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            # Metadata may be edited in place one day; videos are not.
            check_own(path, source)
            (shutil.copy if name.parts[0] == "meta" else link_or_copy)(path, aside / name)


def recover(root: Path) -> str | None:
    """Finish or undo what a killed run left in a dataset.

    Args:
        root: Folder of the dataset.

    Returns:
        What was done, in words, or None if there was nothing to do.
    """
    root = Path(root).resolve()
    if not _stage(root).exists():
        return None
    with _lock(root):
        return _finish_or_undo(root)


def _finish_or_undo(root: Path) -> str | None:
    stage = _stage(root)
    if not stage.exists():
        return None
    if not (stage / JOURNAL).exists():
        if (stage / PLAN).exists():
            shutil.rmtree(_read_plan(root, stage / PLAN)["backup"], ignore_errors=True)
        shutil.rmtree(stage)
        return f"{root}: an earlier run was interrupted before it changed anything; its preparations were removed"
    journal = _read_plan(root, stage / JOURNAL)
    _replace(root, journal["files"])
    return f"{root}: an earlier run was interrupted while it replaced files; finished it. Backup: {journal['backup']}"


def _read_plan(root: Path, path: Path) -> dict:
    """The plan of a change that was cut off. A dataset from elsewhere may bring one: it names nothing but our files.

    Raises:
        WriteError: if it names others.
    """
    plan = checked(_Plan, read_json(path), path)
    backup = Path(plan["backup"])
    names = [re.fullmatch(r"data/[\w-]{1,99}/[\w-]{1,99}\.parquet", name) or name == INFO for name in plan["files"]]
    if backup.parent != root.parent or not backup.name.startswith(f"{root.name}.coc_backup-") or not all(names):
        raise WriteError(f"{path} was not written by coc-label for this dataset; delete {path.parent}")
    return plan


class _Plan(TypedDict):
    files: list[str]
    backup: str


def _replace(root: Path, names: list[str]) -> None:
    stage = _stage(root)
    for name in names:
        if (stage / "new" / name).exists():
            os.replace(stage / "new" / name, root / name)
            _sync_folder((root / name).parent)
    shutil.rmtree(stage)


def _stage(root: Path) -> Path:
    # On the dataset's own file system, so that a rename is atomic.
    return root / ".coc_write"


def _lock(root: Path) -> FileLock:
    lock = FileLock(root.with_name(f".{root.name}.coc_write.lock"))
    try:
        return lock.acquire(timeout=0).lock
    except Timeout as error:
        raise WriteError(f"{root}: another coc-label writes into this dataset; wait for it") from error


def _open(root: Path, labels: Mapping[int, EpisodeLabel]) -> LeRobotDatasetMetadata:
    meta = LeRobotDatasetMetadata(root.name, root=root)
    outside = [episode for episode in labels if not 0 <= episode < meta.total_episodes]
    if outside:
        raise WriteError(
            f"{root} has {meta.total_episodes} episodes, and there is a label of episode {outside[0]}: these are "
            "labels of another dataset"
        )
    return meta


def _write_files(meta: LeRobotDatasetMetadata, root: Path, out: Path, labels: Mapping[int, EpisodeLabel]) -> None:
    """Write all data files and `info.json` with the labels into `out`."""
    features = {**meta.features, LANGUAGE_PERSISTENT: language_feature_info()[LANGUAGE_PERSISTENT]}
    schema_metadata = get_hf_features_from_features(features).arrow_schema.metadata
    files = data_files(root)
    for path in told(files, "Writing rows", len(files), "files"):
        target = out / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        _rewrite(path, target, labels, schema_metadata)
        _sync(target)
    (out / "meta").mkdir(parents=True, exist_ok=True)
    write_info(replace(meta.info, features=features), out)
    _sync(out / INFO)


def _rewrite(path: Path, target: Path, labels: Mapping[int, EpisodeLabel], schema_metadata: dict) -> None:
    """Copy a data file row group by row group, with the new column."""
    file, writer, carry = open_parquet(path), None, _Carry(path)
    try:
        for group in range(file.num_row_groups):
            with reading(path, "parquet"):
                table = file.read_row_group(group)
            column = _new_column(table, labels, carry)
            position = table.schema.get_field_index(LANGUAGE_PERSISTENT)
            if position < 0:
                table = table.append_column(LANGUAGE_PERSISTENT, column)
            else:
                table = table.set_column(position, LANGUAGE_PERSISTENT, column)
            table = table.replace_schema_metadata(schema_metadata)
            if writer is None:
                # As LeRobot writes (`write_table_one_row_group_per_episode`, which takes whole files).
                writer = pq.ParquetWriter(target, table.schema, compression="snappy", use_dictionary=True)
            writer.write_table(table, row_group_size=max(1, table.num_rows))
    finally:
        if writer is not None:
            writer.close()


class _Carry:
    """What is known of a file's episodes while its row groups are read: an episode may go on in the next one."""

    def __init__(self, path: Path) -> None:
        table = read_parquet(path, ["episode_index", "timestamp"])
        self._episodes, self._timestamps = table["episode_index"].to_numpy(), table["timestamp"].to_numpy()
        self.path = path
        self.episode = -1
        self.rows = _rows([], None, np.array([]))

    def timestamps(self, episode: int) -> np.ndarray:
        return self._timestamps[self._episodes == episode]


def _new_column(table: pa.Table, labels: Mapping[int, EpisodeLabel], carry: _Carry) -> pa.ChunkedArray:
    episodes = table["episode_index"].to_numpy()
    bounds = [0, *(np.flatnonzero(np.diff(episodes)) + 1), len(episodes)]
    pieces = []
    for low, high in zip(bounds[:-1], bounds[1:], strict=True):
        existing = _existing(table, low, high, carry.path)
        if episodes[low] != carry.episode:
            carry.episode = int(episodes[low])
            carry.rows = _rows(existing, labels.get(carry.episode), carry.timestamps(carry.episode))
        pieces.append(_repeated(carry.rows, high - low))
    return pa.chunked_array(pieces)


def _existing(table: pa.Table, low: int, high: int, path: Path) -> list[dict]:
    """The rows that an episode has; LeRobot keeps the same ones on all of its frames."""
    if LANGUAGE_PERSISTENT not in table.column_names:
        return []
    column = table[LANGUAGE_PERSISTENT][low:high].combine_chunks()
    first = column.slice(0, 1)
    if not all(column.slice(i, 1).equals(first) for i in range(1, high - low)):
        raise WriteError(
            f"{path}: the frames of episode {table['episode_index'][low].as_py()} hold different persistent language "
            "rows, where LeRobot's format has the same on all; write them again with lerobot-annotate"
        )
    return first[0].as_py() or []


def _rows(existing: list[dict], label: EpisodeLabel | None, timestamps: np.ndarray) -> pa.StructArray:
    if label is not None:
        existing = [row for row in existing if row["style"] != COC_STYLE] + rows_of_label(label, timestamps)
    # The order of LeRobot's own writer.
    existing.sort(key=lambda row: (row["timestamp"], row["style"] or "", row["role"] or ""))
    kind = language_persistent_row_arrow_type()
    columns = [
        _tool_calls([row.get(field.name) for row in existing], field.type)
        if field.name == "tool_calls"
        else pa.array([row.get(field.name) for row in existing], field.type)
        for field in kind
    ]
    return pa.StructArray.from_arrays(columns, fields=list(kind))


def _tool_calls(values: list[list | None], kind: pa.ListType) -> pa.Array:
    """Lists of JSON values: pyarrow can't make these from Python objects, so they are put together from their parts."""
    offsets, texts = [], []
    for calls in values:
        offsets.append(None if calls is None else len(texts))
        texts += [call if isinstance(call, str) else json.dumps(call) for call in calls or ()]
    storage = pa.array(texts, pa.string())
    if isinstance(kind.value_type, pa.BaseExtensionType):
        storage = pa.ExtensionArray.from_storage(kind.value_type, storage)
    return pa.ListArray.from_arrays(pa.array([*offsets, len(texts)], pa.int32()), storage, type=kind)


def _repeated(rows: pa.StructArray, n_frames: int) -> pa.ListArray:
    """A column that has the same rows on each of n frames."""
    n = len(rows)
    values = rows.take(pa.array(np.tile(np.arange(n), n_frames)))
    return pa.ListArray.from_arrays(pa.array(np.arange(n_frames + 1) * n, pa.int32()), values)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
