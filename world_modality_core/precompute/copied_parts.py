"""Is what a companion or a copy took over from its source still what the source has?

A companion keeps the source's frame numbers, times and tasks, copies keep all but what they leave out; tasks are
corrected, labels are added and values are mended in a source after that (`lerobot-edit-dataset`, `coc-label`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pyarrow as pa
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.io_utils import load_stats
from lerobot.utils.constants import DEFAULT_FEATURES

from world_modality_core.io.dataset_files import data_files, numbers
from world_modality_core.io.files import open_parquet, read_parquet
from world_modality_core.latents.latent_table import LATENTS, TOKENS
from world_modality_core.precompute.assemble import copied_meta_files

# Of the episodes' table: where the frames lie differs, and statistics are compared through the values themselves.
_NOT_COPIED = ("data/", "videos/", "stats/", "meta/")
_BLOCK = 1 << 16  # rows that are compared at a time


def stale_parts(source: LeRobotDatasetMetadata, root: Path, keep: Iterable[str]) -> list[str]:
    """Name what of a derived dataset isn't what `write_derived` would take over from the source today.

    Images are not compared: the source's fingerprint holds their statistics.

    Args:
        source: Metadata of the source.
        root: The derived dataset.
        keep: The source's features that it keeps, beside those that every LeRobotDataset has.
    """
    src, kept = Path(source.root), {*keep, *DEFAULT_FEATURES}
    left_out = (set(source.features) - kept) | {LATENTS, TOKENS}
    images = {key for key in source.camera_keys if key not in source.video_keys}
    found = []
    there, here = _columns(src) - left_out - images, _columns(root) - {LATENTS, TOKENS} - images
    found += sorted(there ^ here)
    for name in sorted(there & here):
        blocks = zip_longest(_blocks(src, name), _blocks(root, name))
        if not all(a is not None and b is not None and _same_values(a, b) for a, b in blocks):
            found.append(name)
    if not _episodes(src).equals(_episodes(root)):
        found.append("meta/episodes")
    found += [
        f"meta/{name}"
        for name in copied_meta_files(src)
        if not (root / "meta" / name).is_file()
        or (root / "meta" / name).read_bytes() != (src / "meta" / name).read_bytes()
    ]
    mine, theirs = load_stats(root) or {}, load_stats(src) or {}
    found += [f"statistics of {key}" for key in sorted(theirs.keys() & kept) if not _same(mine.get(key), theirs[key])]
    return found


def _columns(root: Path) -> set[str]:
    return set(open_parquet(data_files(root)[0]).schema_arrow.names)


def _blocks(root: Path, name: str) -> Iterator[pa.ChunkedArray]:
    """A column in pieces of as many rows each, whatever files it lies in; one file at a time is read."""
    left: list[pa.Array] = []
    for path in data_files(root):
        rows = pa.chunked_array([*left, *read_parquet(path, [name])[name].chunks])
        n_whole = len(rows) // _BLOCK * _BLOCK
        for start in range(0, n_whole, _BLOCK):
            yield rows.slice(start, _BLOCK)
        left = rows.slice(n_whole).chunks
    if left:
        yield pa.chunked_array(left)


def _episodes(root: Path) -> pa.Table:
    tables = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        names = [name for name in open_parquet(path).schema_arrow.names if not name.startswith(_NOT_COPIED)]
        tables.append(read_parquet(path, names).replace_schema_metadata(None))
    table = pa.concat_tables(tables, promote_options="permissive").sort_by("episode_index")
    return table.select(sorted(table.column_names))


def _same_values(a: pa.ChunkedArray, b: pa.ChunkedArray) -> bool:
    leaves = [_leaves(column) for column in (a, b)]
    if len(a) != len(b) or any(leaf is None for leaf in leaves):
        return a.type == b.type and a.equals(b)
    # Tools write lists of a fixed size, or not; NaN equals NaN.
    return np.array_equal(*leaves, equal_nan=leaves[0].dtype.kind == "f" == leaves[1].dtype.kind)


def _leaves(column: pa.ChunkedArray) -> np.ndarray | None:
    """The numbers of a column of (nested lists of) numbers; None for any other."""
    kind = column.type
    while not pa.types.is_primitive(kind):
        if isinstance(kind, pa.ExtensionType):
            kind = kind.storage_type
        elif pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
            kind = kind.value_type
        else:
            return None
    return numbers(column)


def _same(a: dict | None, b: dict) -> bool:
    return a is not None and a.keys() == b.keys() and all(np.array_equal(a[k], b[k], equal_nan=True) for k in b)
