"""Records of closed-loop episodes: one row per episode, written batch by batch, read from any number of folders.

An evaluation's folder (docs/evaluation.md has every column):

    eval.json               what was evaluated: checkpoint, arms, environment, versions, command
    episodes/<part>.parquet one part per finished batch; what is here is never run again
    episodes.parquet        all parts together, written at the end; says of which parts it is made
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import open_parquet, read_json, read_parquet, reading, write_text, writing

SCHEMA_VERSION = 1
INFO_FILE = "eval.json"
EPISODES_FILE = "episodes.parquet"
PARTS_FOLDER = "episodes"

_VERSION_KEY = b"world_modality_episodes_schema"
_PARTS_KEY = b"world_modality_episodes_parts"

_LONGEST_TEXT = 1000
_COUNTS = ("steps", "n_plans", "episode_length")

# What readers of eval.json take for granted.
_INFO_KINDS = {"model": str, "train_seed": int, "arms": list, "command": list | str}

EPISODE_SCHEMA = pa.schema(
    [
        pa.field("model", pa.string(), nullable=False),
        pa.field("train_seed", pa.int64(), nullable=False),
        pa.field("arm", pa.string(), nullable=False),
        pa.field("checkpoint", pa.string(), nullable=False),
        pa.field("policy_type", pa.string(), nullable=False),
        pa.field("env", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("tier", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("init_hash", pa.string(), nullable=False),
        pa.field("success", pa.bool_(), nullable=False),
        pa.field("steps", pa.int64(), nullable=False),
        pa.field("sum_reward", pa.float64(), nullable=False),
        pa.field("max_reward", pa.float64(), nullable=False),
        pa.field("wall_s", pa.float64(), nullable=False),
        pa.field("gate", pa.float64()),
        pa.field("attention_entropy", pa.float64()),
        pa.field("attention_mass", pa.list_(pa.float64())),
        pa.field("n_plans", pa.int64(), nullable=False),
        pa.field("n_action_steps", pa.int64(), nullable=False),
        pa.field("renderer", pa.string(), nullable=False),
        pa.field("image_height", pa.int64(), nullable=False),
        pa.field("image_width", pa.int64(), nullable=False),
        pa.field("episode_length", pa.int64(), nullable=False),
        pa.field("env_hash", pa.string(), nullable=False),
        pa.field("video", pa.string()),
        # What the policy was trained on and what it is; null in records from before these were kept.
        pa.field("dataset", pa.string()),
        pa.field("dataset_hash", pa.string()),
        pa.field("episodes", pa.string()),
        pa.field("action_free", pa.string()),
        pa.field("train_steps", pa.int64()),
        pa.field("samples", pa.int64()),
        pa.field("n_trainable", pa.int64()),
        pa.field("n_frozen", pa.int64()),
        pa.field("starts_from", pa.string()),
        pa.field("sees", pa.string()),
        pa.field("memory_content", pa.string()),
        pa.field("mujoco", pa.string()),
        # What the policy was told, and how the motion was; null in older records too.
        pa.field("instruction", pa.string()),
        pa.field("action_jerk", pa.float64()),
        # Of the weights alone: a copy with another config is still the same training run.
        pa.field("weights", pa.string()),
    ],
    metadata={_VERSION_KEY: str(SCHEMA_VERSION).encode()},
)
"""Columns of a row, in this order."""

TRAINING_COLUMNS = EPISODE_SCHEMA.names[EPISODE_SCHEMA.names.index("dataset") :]
"""Columns that older records lack: they read as null, which means "not recorded"."""

EPISODE_KEY = ["model", "train_seed", "arm", "task", "seed"]
"""What names an episode: no two rows may share it."""


class EpisodesError(UserError, ValueError):
    """Records that can't be read, or must not be read together; the message says which and why."""


class EpisodeWriter:
    """Writes the rows of one evaluation, batch by batch; a batch that was written is never written again.

    Args:
        folder: The evaluation's folder; made if it doesn't exist.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._parts = self.folder / PARTS_FOLDER
        self._parts.mkdir(parents=True, exist_ok=True)

    def done(self) -> set[tuple[str, str, int]]:
        """(arm, task, seed) of all episodes written so far."""
        rows = self.rows()
        return set(zip(rows["arm"], rows["task"], rows["seed"].tolist(), strict=True))

    def rows(self) -> pd.DataFrame:
        """All rows written so far, in the order of `EPISODE_SCHEMA`."""
        return _to_frame(_read_parts(self._parts))

    def write(self, rows: Sequence[dict[str, Any]]) -> Path:
        """Write the rows of a finished batch, of one arm and one task, as one part.

        Args:
            rows: A dictionary of all columns per episode.

        Returns:
            The part.

        Raises:
            EpisodesError: if a column is missing, unknown, of another type, or empty where it must not be; if the rows
                are of several arms or tasks; or if the part exists.
        """
        table = rows_to_table(rows)
        names = {(row["arm"], row["task"]) for row in rows}
        if len(names) != 1:
            raise EpisodesError(f"a part holds rows of one arm and one task, not of {sorted(names)}")
        arm, task = names.pop()
        name = f"{arm}-{task}-{min(row['seed'] for row in rows)}.parquet".replace("/", "_")
        part = self._parts / name
        if part.exists():
            raise EpisodesError(f"{part} exists: these episodes were run before")
        _write_table(table, part)
        return part

    def finish(self) -> Path:
        """Write all parts together as `episodes.parquet`.

        Returns:
            The file.
        """
        path, table = self.folder / EPISODES_FILE, _read_parts(self._parts)
        made_of = {_PARTS_KEY: _listing(_part_files(self.folder))}
        _write_table(table.replace_schema_metadata({**EPISODE_SCHEMA.metadata, **made_of}), path)
        return path


def rows_to_table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    """Check rows against `EPISODE_SCHEMA` and put them into a table.

    Raises:
        EpisodesError: naming what doesn't fit.
    """
    rows = list(rows)
    if not rows:
        raise EpisodesError("there are no episodes to write")
    wanted = set(EPISODE_SCHEMA.names)
    for row in rows:
        if set(row) != wanted:
            raise EpisodesError(
                f"an episode's row lacks {sorted(wanted - set(row))} and has the unknown {sorted(set(row) - wanted)}"
            )
    try:
        table = pa.Table.from_pylist(rows, schema=EPISODE_SCHEMA)
        table.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise EpisodesError(f"an episode's row does not fit the schema: {error}") from error
    _check_values(table, "an episode's row")
    return table


def _check_values(table: pa.Table, where: str) -> None:
    """Hold what no type tells against the cells."""
    for field in EPISODE_SCHEMA:
        column, said = table[field.name], ""
        if not field.nullable and column.null_count:
            said = f"is empty in {column.null_count} rows"
        elif pa.types.is_string(field.type):
            texts = column.unique()
            if (pc.max(pc.utf8_length(texts)).as_py() or 0) > _LONGEST_TEXT:
                said = f"has a text longer than {_LONGEST_TEXT} characters"
            # They rewrite what a terminal shows, and no JUnit file may hold them.
            elif field.name != "instruction" and pc.any(pc.match_substring_regex(texts, r"[\p{Cc}\p{Cf}]")).as_py():
                said = "has a text with control characters"
        elif field.type == pa.float64() and not field.nullable and not pc.all(pc.is_finite(column)).as_py():
            said = "is no finite number in some rows"
        elif field.name in _COUNTS and (pc.min(column).as_py() or 0) < 0:
            said = f"is {pc.min(column).as_py()}; expected 0 or more"
        if said:
            raise EpisodesError(f"{where}: {field.name} {said}")


def rows_to_frame(rows: Iterable[dict[str, Any]]) -> pd.DataFrame:
    """Rows as `read_episodes` returns them.

    Raises:
        EpisodesError: as `rows_to_table`.
    """
    return _to_frame(rows_to_table(rows))


def write_episodes(frame: pd.DataFrame, path: str | Path) -> None:
    """Write rows that `read_episodes` returned (of several runs, say) into one file; aside first, then renamed.

    Raises:
        EpisodesError: if they don't fit the schema.
    """
    records = frame.astype(object).where(frame.notna(), None).to_dict("records")
    _write_table(rows_to_table(records), Path(path))


def read_episodes(paths: str | Path | Iterable[str | Path]) -> pd.DataFrame:
    """Read the episodes of evaluations, finished or not.

    Args:
        paths: Folders, searched through (of an evaluation, of a study, of records), or parquet files.

    Returns:
        One row per episode, with the columns of `EPISODE_SCHEMA`, sorted by `EPISODE_KEY`. Where there is no gate or
        attention: NaN and None.

    Raises:
        EpisodesError: if nothing is found, a file has another schema, or an episode is found twice.
    """
    paths = _as_paths(paths)
    for path in paths:
        if path.is_file() and path.suffix != ".parquet":
            raise EpisodesError(f"{path} is no {EPISODES_FILE}: name it, or a folder that wm-eval wrote")
    tables, origins = [], []
    for file in dict.fromkeys(file.resolve() for path in paths for file in _episode_files(path)):
        tables.append(_read_table(file))
        origins.extend([str(file)] * len(tables[-1]))
    if not origins:
        raise EpisodesError(
            f"no episodes in {', '.join(map(str, paths))}: expected folders that wm-eval wrote, or {EPISODES_FILE}"
        )
    frame = _to_frame(pa.concat_tables(tables))
    is_twice = frame.duplicated(EPISODE_KEY, keep=False)
    if is_twice.any():
        first = frame.loc[is_twice, EPISODE_KEY].iloc[0]
        same = (frame[EPISODE_KEY] == first).all(axis=1)
        files = sorted({origins[i] for i in frame.index[same]})
        raise EpisodesError(
            f"{int(is_twice.sum())} rows are of episodes that were found more than once, the first "
            f"{', '.join(f'{key}={first[key]}' for key in EPISODE_KEY)} in {' and '.join(files)}: give only one of "
            "these, or evaluate with distinct --model labels"
        )
    return frame.sort_values(EPISODE_KEY, ignore_index=True)


def has_episodes(paths: Iterable[str | Path]) -> bool:
    """Whether there is anything that `read_episodes`, or a reader of trials, can read."""
    return any(
        path.suffix in (".parquet", ".csv") or not path.is_dir() or _episode_files(path) for path in map(Path, paths)
    )


def read_eval_infos(paths: str | Path | Iterable[str | Path]) -> list[dict[str, Any]]:
    """Read the `eval.json` of all evaluations in folders.

    Args:
        paths: Folders, searched through.

    Returns:
        What the files say, each with its `folder` (a string), sorted by folder; nothing where there is none.

    Raises:
        EpisodesError: if a file has another schema.
    """
    files = sorted({file.resolve() for path in _as_paths(paths) if path.is_dir() for file in path.rglob(INFO_FILE)})
    return [{**read_eval_info(file), "folder": str(file.parent)} for file in files]


def read_eval_info(file: Path) -> dict[str, Any]:
    """Read one `eval.json`.

    Raises:
        EpisodesError: if it has another schema.
    """
    info = read_json(file, dict)
    if info.get("schema") != SCHEMA_VERSION:
        raise EpisodesError(
            f"{file} has schema {info.get('schema')!r}, this version reads {SCHEMA_VERSION}: read it with the version "
            "of lerobot_policy_world_modality that wrote it"
        )
    for name, kind in _INFO_KINDS.items():
        if not isinstance(info.get(name), kind):
            raise EpisodesError(f"{file}: {name} is {info.get(name)!r:.60}; wm-eval did not write that")
    if not all(isinstance(arm, str) for arm in info["arms"]):
        raise EpisodesError(f"{file}: arms is {info['arms']!r:.60}; wm-eval did not write that")
    return info


def write_eval_info(folder: str | Path, info: dict[str, Any]) -> None:
    """Write `eval.json`; aside first, then renamed."""
    path = Path(folder) / INFO_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"schema": SCHEMA_VERSION, **info}, indent=2) + "\n")


def _as_paths(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def _episode_files(path: Path) -> list[Path]:
    """Files with the episodes of a file or folder."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ConfigError(f"{path} does not exist: expected a folder that wm-eval wrote, or {EPISODES_FILE}")
    files = []
    for info in path.rglob(INFO_FILE):
        files += _evaluation_files(info.parent)
    return files + [
        file
        for file in sorted(path.rglob(EPISODES_FILE))
        if not ((file.parent / INFO_FILE).exists() and _part_files(file.parent))
    ]


def _evaluation_files(folder: Path) -> list[Path]:
    """An evaluation's parts, or the one file that is made of just these: fifty parts take seconds in a large study.

    The one file is passed over where the evaluation went on after it was written, and in records from before it said
    of which parts it is made.
    """
    parts, whole = _part_files(folder), folder / EPISODES_FILE
    if parts and whole.is_file():
        metadata = open_parquet(whole).schema_arrow.metadata or {}
        if metadata.get(_PARTS_KEY) == _listing(parts):
            return [whole]
    return parts


def _part_files(folder: Path) -> list[Path]:
    return sorted((folder / PARTS_FOLDER).glob("*.parquet"))


def _listing(parts: list[Path]) -> bytes:
    """Names and sizes of parts."""
    return json.dumps({part.name: part.stat().st_size for part in parts}).encode()


def _read_parts(folder: Path) -> pa.Table:
    tables = [_read_table(file) for file in sorted(folder.glob("*.parquet"))]
    return pa.concat_tables(tables) if tables else EPISODE_SCHEMA.empty_table()


def _read_table(file: Path) -> pa.Table:
    table = read_parquet(file)
    version = (table.schema.metadata or {}).get(_VERSION_KEY, b"none").decode()
    younger = [name for name in TRAINING_COLUMNS if name not in table.schema.names]
    if version != str(SCHEMA_VERSION) or table.schema.names != [n for n in EPISODE_SCHEMA.names if n not in younger]:
        raise EpisodesError(
            f"{file} has episode schema {version}, this version reads {SCHEMA_VERSION}: it is no record of wm-eval, or "
            "one of another version of lerobot_policy_world_modality"
        )
    for field in table.schema:
        wanted = EPISODE_SCHEMA.field(field.name).type
        if field.type != wanted and not pa.types.is_null(field.type):
            raise EpisodesError(
                f"{file}: {field.name} is {field.type}, expected {wanted}: no version of wm-eval wrote that"
            )
    with reading(file, "episodes"):
        for name in younger:
            table = table.append_column(name, pa.nulls(len(table), EPISODE_SCHEMA.field(name).type))
        table = table.cast(EPISODE_SCHEMA)
        table.validate(full=True)  # texts that are no UTF-8, say
    _check_values(table, str(file))
    return table


def _write_table(table: pa.Table, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as aside:
        pq.write_table(table, aside, compression="zstd")


def _to_frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas().reset_index(drop=True)
    whole = [f.name for f in EPISODE_SCHEMA if f.nullable and f.type == pa.int64()]
    return frame.astype(dict.fromkeys(whole, "Int64"))  # a missing number would make the others floats
