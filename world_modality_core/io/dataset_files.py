"""Which files a LeRobotDataset is made of: each is held to the dataset's folder before anything reads or uploads it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from string import Formatter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.utils import DEFAULT_DATA_PATH, DEFAULT_VIDEO_PATH, INFO_PATH

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import check_own, inside, open_parquet, read_parquet, reading


def data_files(root: str | Path) -> list[Path]:
    """The parquet files of a dataset's frames, in order.

    Raises:
        ConfigError: if one is a link out of the dataset's folder.
    """
    files = sorted((Path(root) / "data").glob("*/*.parquet"))
    for path in files:
        check_own(path, Path(root))
    return files


def read_column(root: str | Path, name: str, shape: Sequence[int] = (1,)) -> np.ndarray:
    """One column of a dataset's parquet files, (n, width) in the order of `index`, width being the shape's product.

    Raises:
        As `column_parts`.
    """
    return np.concatenate([values for _, values in column_parts(root, name, shape)])


def column_parts(root: str | Path, name: str, shape: Sequence[int] = (1,)) -> Iterator[tuple[int, np.ndarray]]:
    """As `read_column`, file by file, for columns that memory is too short for.

    Yields:
        The first frame of a file, and its (n, width) values.

    Raises:
        ConfigError: if frames are not in that order.
        DamagedFileError: if a row holds more or fewer values.
    """
    width, n_rows = math.prod(shape), 0
    for path in data_files(root):
        table = read_parquet(path, ["index", name])
        if not np.array_equal(table["index"].to_numpy(), np.arange(n_rows, n_rows + table.num_rows)):
            raise ConfigError(f"{path}: frames are not in the order of `index`; write the dataset again")
        with reading(path, f"{name} of shape {tuple(shape)}", "meta/info.json and the data must say the same"):
            values = column_values(table[name], width)
        yield n_rows, values
        n_rows += table.num_rows


def column_values(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """A parquet column of numbers, or of (nested) lists of `width` numbers, as (n, width).

    Raises:
        ValueError: if a row holds more or fewer.
    """
    values = numbers(column)
    if len(values) != len(column) * width:
        raise ValueError(f"{len(values)} values in {len(column)} rows, expected {width} in each")
    return values.reshape(-1, width)


def one_number_a_row(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) a parquet column that must hold a number in each row.

    Raises:
        ValueError: if it holds anything else.
    """
    values = column_values(column, 1)[:, 0]
    if values.dtype.kind not in "biuf" or column.null_count:
        raise ValueError(f"{column.type}, {column.null_count} of {len(column)} empty, where numbers are expected")
    return values


def numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) all numbers of a column of numbers or of (nested) lists of them."""
    values = column.combine_chunks()
    while pa.types.is_nested(values.type) or isinstance(values, pa.ExtensionArray):  # `datasets` has one for 2-D lists
        values = values.storage if isinstance(values, pa.ExtensionArray) else values.flatten()
    return values.to_numpy(zero_copy_only=False)


def first_bad_frame(root: str | Path, name: str, shape: Sequence[int]) -> str | None:
    """The first frame of a dataset at which a column isn't finite, in words; None if there is none."""
    bad = np.flatnonzero(~np.isfinite(read_column(root, name, shape)).all(axis=1))
    if not len(bad):
        return None
    episode, frame = (read_column(root, each)[bad[0], 0] for each in ("episode_index", "frame_index"))
    return (
        f"{name} is NaN or Inf in {len(bad)} frames, the first is frame {frame} of episode {episode} (index {bad[0]})"
    )


def named_files(meta: LeRobotDatasetMetadata) -> set[str]:
    """Names of the files of frames and videos that the metadata names, be they there or not.

    Raises:
        ConfigError: if one leads out of the dataset's folder, by its name or as a link.
    """
    root = Path(meta.root)
    files = _files_of(meta, "data", "data_path", DEFAULT_DATA_PATH)
    for name in sorted(files):
        if name.endswith(".parquet") and (root / name).is_file():
            _check_pictures_inside(root / name, set(meta.image_keys))
    return files | video_files(meta, meta.video_keys)


def video_files(meta: LeRobotDatasetMetadata, keys: Sequence[str]) -> set[str]:
    """Those of `named_files` that hold the videos of some cameras."""
    found = [_files_of(meta, f"videos/{key}", "video_path", DEFAULT_VIDEO_PATH, video_key=key) for key in keys]
    return set().union(*found)


def _files_of(meta: LeRobotDatasetMetadata, kind: str, field: str, usual: str, **values: str) -> set[str]:
    root, pattern, files = Path(meta.root), getattr(meta, field), set()
    what, columns = f"{root / INFO_PATH}: {field}", [f"{kind}/chunk_index", f"{kind}/file_index"]
    _check_pattern(pattern, what, usual)
    with reading(root / "meta/episodes", "the episodes of a LeRobotDataset", "copy or download the dataset again"):
        where = meta.episodes.with_format("numpy", columns=columns)[:]
        numbers_of_files = {*zip(*(where[name].tolist() for name in columns), strict=True)}
        if wrong := [n for pair in numbers_of_files for n in pair if type(n) is not int or not 0 <= n < 10**6]:
            raise ValueError(f"{' and '.join(columns)} hold {wrong[0]!r:.60}")
    for chunk, file in numbers_of_files:
        name = pattern.format(chunk_index=chunk, file_index=file, **values)
        check_own(inside(root, name, what), root)
        files.add(name)
    return files


def _check_pictures_inside(path: Path, cameras: set[str]) -> None:
    """Refuse pictures that aren't in a file of frames but named there: whoever reads them opens whatever is named."""
    with reading(path, "parquet"), open_parquet(path) as file:
        for i, column in enumerate(file.schema):
            camera, _, part = column.path.rpartition(".")
            if camera not in cameras or part != "bytes":
                continue
            chunks = [file.metadata.row_group(group).column(i) for group in range(file.metadata.num_row_groups)]
            is_known = all(chunk.statistics is not None and chunk.statistics.has_null_count for chunk in chunks)
            n = sum(chunk.statistics.null_count for chunk in chunks) if is_known else _n_nulls(file, column.path)
            if n:
                raise ConfigError(f"{path}: {n} images of {camera} are only named; put the images themselves there")


def _n_nulls(file: pq.ParquetFile, name: str) -> int:
    return file.read(columns=[name]).flatten()[0].null_count


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
