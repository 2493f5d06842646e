"""Writing a dataset that is another one with features added or taken away, in LeRobot's 3.0 layout.

`lerobot.datasets.dataset_tools.modify_features` does the like, but holds all new values in memory, turns them into
Python objects row by row and writes no statistics for them. Here rows go from parquet to parquet, an episode at a
time: `index`, `episode_index`, `frame_index`, `timestamp` and `task_index` are the source's own.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import load_stats, write_info, write_stats
from lerobot.datasets.utils import DEFAULT_DATA_PATH, update_chunk_file_indices
from lerobot.utils.constants import DEFAULT_FEATURES

from world_modality_core.io.dataset_files import data_files, video_files
from world_modality_core.io.files import check_own, open_parquet, read_parquet
from world_modality_core.io.progress import told
from world_modality_core.latents.companion import CODEBOOK_FILE, INFO_FILE, PCA_FILE, STATS_FILE
from world_modality_core.latents.fingerprint import SOURCE_FILE, whole_fps

# Not copied with a dataset's other metadata: written anew here, or belonging to the companion.
_OWN_META = {"info.json", "stats.json"} | {
    Path(name).name for name in (INFO_FILE, STATS_FILE, PCA_FILE, CODEBOOK_FILE, SOURCE_FILE)
}
NewColumns = Callable[[int], dict[str, np.ndarray]]


def write_derived(
    source: LeRobotDatasetMetadata,
    root: Path,
    keep: Iterable[str],
    new_features: dict[str, dict] | None = None,
    new_columns: NewColumns | None = None,
    new_stats: dict[str, dict[str, np.ndarray]] | None = None,
) -> None:
    """Write the dataset of the source's features `keep` and some new ones.

    Args:
        source: Metadata of the source.
        root: Folder of the new dataset, which must not exist.
        keep: The source's features that stay; those that every LeRobotDataset has stay anyway.
        new_features: Feature key -> {"dtype", "shape", "names"}, one-dimensional.
        new_columns: Called for each episode in order: feature key -> (t, width).
        new_stats: Statistics of the new features, as in `meta/stats.json`.
    """
    src = Path(source.root)
    new_features = new_features or {}
    kept = {*keep, *DEFAULT_FEATURES}
    features = {key: feature for key, feature in source.features.items() if key in kept} | new_features
    # What is new replaces a column of that name: a merged copy can be a source.
    dropped = (set(source.features) - set(features)) | set(new_features)
    videos = [key for key in source.video_keys if key in features]
    (root / "meta").mkdir(parents=True)
    video_path = source.video_path if videos else None
    fps = whole_fps(source)
    write_info(
        replace(source.info, fps=fps, features=features, data_path=DEFAULT_DATA_PATH, video_path=video_path), root
    )
    stats = {key: value for key, value in (load_stats(src) or {}).items() if key in features}
    write_stats(stats | (new_stats or {}), root)
    for name in copied_meta_files(src):
        check_own(src / "meta" / name, src)
        (root / "meta" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(src / "meta" / name, root / "meta" / name)
    files = _write_data(source, root, features, dropped, new_features, new_columns)
    _write_episodes(src, root, dropped, files)
    for name in sorted(video_files(source, videos)):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        link_or_copy(src / name, target)


def link_or_copy(src: Path, dst: Path) -> None:
    """Hard-link a file that neither dataset will change, or copy it where the file system cannot."""
    try:
        os.link(src.resolve(), dst)
    except OSError:
        shutil.copy(src, dst)


def copied_meta_files(root: Path) -> list[Path]:
    """What of a dataset's `meta/` goes as it is into what is derived from it; relative to that folder."""
    names = [path.relative_to(root / "meta") for path in sorted((root / "meta").rglob("*")) if path.is_file()]
    return [name for name in names if name.parts[0] != "episodes" and name.name not in _OWN_META]


def _write_data(source, root, features, dropped, new_features, new_columns) -> dict[int, tuple[int, int]]:
    """Write the parquet files, one row group per episode as LeRobot does; give each episode's (chunk, file)."""
    metadata = get_hf_features_from_features(features).arrow_schema.metadata
    files, chunk, file, writer, path = {}, 0, 0, None, None
    for episode, rows in told(_episode_rows(source, dropped), "Writing", source.total_episodes, "episodes"):
        for key, values in (new_columns(episode) if new_columns else {}).items():
            rows = rows.append_column(key, _arrow(values, tuple(new_features[key]["shape"])))
        rows = rows.replace_schema_metadata(metadata)
        if writer and path.stat().st_size + rows.nbytes > source.data_files_size_in_mb * 1024**2:
            writer.close()
            writer = None
            chunk, file = update_chunk_file_indices(chunk, file, source.chunks_size)
        if not writer:
            path = root / DEFAULT_DATA_PATH.format(chunk_index=chunk, file_index=file)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Latents have no repeated values: a dictionary of them would only be built to be thrown away.
            writer = pq.ParquetWriter(path, rows.schema, compression="snappy", use_dictionary=False)
        writer.write_table(rows, row_group_size=max(1, rows.num_rows))
        files[episode] = (chunk, file)
    writer.close()
    return files


def _episode_rows(source: LeRobotDatasetMetadata, dropped: set[str]) -> Iterator[tuple[int, pa.Table]]:
    for path in data_files(source.root):
        names = [name for name in open_parquet(path).schema_arrow.names if name not in dropped]
        table = read_parquet(path, names)
        episode = table["episode_index"].to_numpy()
        starts = np.flatnonzero(np.diff(episode, prepend=episode[0] - 1))
        for start, stop in zip(starts, [*starts[1:], len(episode)], strict=True):
            yield int(episode[start]), table.slice(start, stop - start)


def _arrow(values: np.ndarray, shape: tuple[int, ...]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    # LeRobot stores a feature of shape (1,) as a plain number.
    return flat if shape == (1,) else pa.FixedSizeListArray.from_arrays(flat, shape[0])


def _write_episodes(src: Path, root: Path, dropped: set[str], files: dict[int, tuple[int, int]]) -> None:
    """Copy the episodes' table without the columns of dropped features, pointing to the new data files."""
    prefixes = tuple(f"{kind}/{key}/" for kind in ("stats", "videos") for key in dropped)
    for path in sorted((src / "meta/episodes").glob("*/*.parquet")):
        names = open_parquet(path).schema_arrow.names
        table = read_parquet(path, [name for name in names if not (prefixes and name.startswith(prefixes))])
        where = [files[e] for e in table["episode_index"].to_pylist()]
        for position, name in enumerate(("data/chunk_index", "data/file_index")):
            column = pa.array([w[position] for w in where], pa.int64())
            table = table.set_column(table.column_names.index(name), name, column)
        target = root / path.relative_to(src)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(None), target)
