"""Which files a LeRobotDataset is made of: each is held to the dataset's folder before anything reads or uploads it."""

from __future__ import annotations

import re
from pathlib import Path
from string import Formatter

from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.utils import DEFAULT_DATA_PATH, DEFAULT_VIDEO_PATH, INFO_PATH

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import check_own, inside


def data_files(root: str | Path) -> list[Path]:
    """The parquet files of a dataset's frames, in order.

    Raises:
        ConfigError: if one is a link out of the dataset's folder.
    """
    files = sorted((Path(root) / "data").glob("*/*.parquet"))
    for path in files:
        check_own(path, Path(root))
    return files


def named_files(meta: LeRobotDatasetMetadata) -> set[str]:
    """Names of the files of frames and videos that the metadata names, be they there or not.

    Raises:
        ConfigError: if one leads out of the dataset's folder, by its name or as a link.
    """
    root, files = Path(meta.root), set()
    kinds = [("data", "data_path", meta.data_path, DEFAULT_DATA_PATH, {})]
    for key in meta.video_keys:
        kinds.append((f"videos/{key}", "video_path", meta.video_path, DEFAULT_VIDEO_PATH, {"video_key": key}))
    for kind, field, pattern, usual, values in kinds:
        what = f"{root / INFO_PATH}: {field}"
        _check_pattern(pattern, what, usual)
        columns = [f"{kind}/chunk_index", f"{kind}/file_index"]
        where = meta.episodes.with_format("numpy", columns=columns)[:]
        for chunk, file in {*zip(*(where[name].tolist() for name in columns), strict=True)}:
            name = pattern.format(chunk_index=chunk, file_index=file, **values)
            check_own(inside(root, name, what), root)
            files.add(name)
    return files


def _check_pattern(pattern: object, what: str, usual: str) -> None:
    """Refuse a pattern that holds more than plain names and numbers of a few digits."""
    known = {name for _, name, _, _ in Formatter().parse(usual)}
    try:
        parts = list(Formatter().parse(pattern))
        is_plain = all(name in known and re.fullmatch(r"(0?\dd)?", spec or "") for _, name, spec, _ in parts)
        is_plain &= not any(conversion for *_, conversion in parts)
    except (TypeError, ValueError):
        is_plain = False
    if not is_plain:
        raise ConfigError(f"{what}={pattern!r:.200}: expected a pattern like {usual!r}")
