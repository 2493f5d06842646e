"""Reading a dataset's episodes one at a time: task, signals, frames at some times, language rows that it has."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.language import LANGUAGE_PERSISTENT
from lerobot.utils.constants import ACTION, OBS_STATE
from PIL import Image

from coc_tools.language_rows import COC_STYLE
from world_modality_core.io.dataset_files import numbers
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import open_parquet, reading
from world_modality_core.latents.fingerprint import whole_fps
from world_modality_core.precompute.decoding import decode_image, video_frames
from world_modality_core.precompute.source import episode_bounds, open_metadata


class EpisodeError(UserError):
    """A dataset or an episode cannot be read."""


@dataclass(frozen=True)
class SignalDimension:
    """One dimension of a numeric feature; its name is None where the dataset gives none."""

    key: str
    index: int
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.key}[{self.index}]" + (f" {self.name}" if self.name else "")


@dataclass
class Episode:
    """One episode; its columns and frames are read when they are asked for.

    Attributes:
        reader: The dataset that it is from.
        index: Episode index.
        task: Its instruction; several are joined by "; ".
        fps: Frames per second.
        start: `index` of its first frame.
        stop: One past the `index` of its last frame.
    """

    reader: EpisodeReader
    index: int
    task: str
    fps: float
    start: int
    stop: int

    @property
    def n_frames(self) -> int:
        """Frames."""
        return self.stop - self.start

    @property
    def length_s(self) -> float:
        """Seconds from the first frame to the end of the last one."""
        return round(self.n_frames / self.fps, 6)

    @cached_property
    def table(self) -> pa.Table:
        """Its rows of the parquet file, without images."""
        return self.reader.rows(self.index, self.reader.small_columns)

    @property
    def timestamps(self) -> np.ndarray:
        """(t,) float64 seconds of its frames."""
        return self.table["timestamp"].to_numpy().astype(np.float64)

    def column(self, key: str) -> np.ndarray | None:
        """(t, width) float32 of a numeric feature; None if the dataset has none of that name."""
        if key not in self.table.column_names:
            return None
        return numbers(self.table[key]).astype(np.float32).reshape(self.n_frames, -1)

    @property
    def state(self) -> np.ndarray | None:
        """(t, s) float32 robot state, or None."""
        return self.column(OBS_STATE)

    @property
    def action(self) -> np.ndarray | None:
        """(t, a) float32 actions, or None for an action-free episode."""
        return self.column(ACTION)

    def signal(self, dimension: SignalDimension) -> np.ndarray:
        """(t,) float32 values of one dimension of a feature."""
        return self.column(dimension.key)[:, dimension.index]

    @property
    def language_rows(self) -> list[dict]:
        """Its persistent language rows of other styles (`subtask`, `plan`, ...), by time."""
        if LANGUAGE_PERSISTENT not in self.table.column_names:
            return []
        rows = self.table[LANGUAGE_PERSISTENT][0].as_py() or []
        return sorted((row for row in rows if row["style"] != COC_STYLE), key=lambda row: row["timestamp"])

    def frames(self, camera: str, positions: Sequence[int]) -> list[Image.Image]:
        """Decode the frames of a camera at some positions (0 is the episode's first), in increasing order."""
        return self.reader.frames(self, camera, sorted(positions))


class EpisodeReader:
    """A dataset as episodes. Memory does not grow with their number.

    Attributes:
        meta: LeRobot's metadata.
        root: Its folder.
        cameras: Its colour cameras.
        small_columns: Its parquet columns that are not images.
    """

    def __init__(self, repo_id: str = "", root: str | None = None, revision: str | None = None) -> None:
        """Open a dataset, downloading what is missing.

        Raises:
            EpisodeError: if none is named.
            ConfigError: if it can't be opened, or its metadata doesn't fit together.
        """
        if not repo_id and not root:
            raise EpisodeError("dataset.repo_id and dataset.root are both empty: name the dataset to read")
        name = repo_id or Path(root).name
        self.meta = open_metadata(name, root, revision)
        bounds = episode_bounds(self.meta)
        self._lengths = bounds[:, 1] - bounds[:, 0]
        self.root = Path(self.meta.root)
        self.cameras = [key for key in self.meta.camera_keys if key not in self.meta.depth_keys]
        images = {key for key in self.meta.camera_keys if key not in self.meta.video_keys}
        schema = open_parquet(self.root / self.meta.get_data_file_path(0)).schema_arrow
        self.small_columns = [key for key in schema.names if key not in images]
        # Without the statistics, which make up most of a row of the episodes' table.
        self._episodes = self.meta.episodes.select_columns(["tasks", "dataset_from_index", "dataset_to_index"])
        self._lock = threading.Lock()
        self._file: tuple[Path, pq.ParquetFile, np.ndarray] | None = None

    def __len__(self) -> int:
        return self.meta.total_episodes

    def __getitem__(self, index: int) -> Episode:
        """The episode of an index."""
        row = self._episodes[index]
        return Episode(
            reader=self,
            index=index,
            task="; ".join(row["tasks"]),
            fps=whole_fps(self.meta),
            start=int(row["dataset_from_index"]),
            stop=int(row["dataset_to_index"]),
        )

    def lengths(self) -> np.ndarray:
        """(e,) frames of each episode."""
        return self._lengths

    def frame_size(self, camera: str) -> tuple[int, int]:
        """(height, width) of a camera's frames."""
        feature = self.meta.features[camera]
        names = [str(name) for name in feature.get("names") or ["height", "width", "channels"]]
        height, width = feature["shape"][1:] if names[0].startswith("channel") else feature["shape"][:2]
        return height, width

    def dimension(self, key: str, dim: int | str, option: str) -> SignalDimension | None:
        """Look up a dimension by number or name.

        Args:
            key: The feature.
            dim: Number (negative ones count from the end) or name of the dimension.
            option: What the two options' names start with, for messages: "gripper.".

        Returns:
            The dimension; None for `action` in a dataset without actions.

        Raises:
            ConfigError: if the dataset has no such feature or dimension.
        """
        features = {
            name: f for name, f in self.meta.features.items() if f["dtype"].startswith(("float", "int", "bool"))
        }
        if key not in features:
            if key == ACTION:
                return None
            raise ConfigError(f"{option}key={key!r}: no numeric feature of {self.meta.repo_id!r}: {sorted(features)}")
        width, names = math.prod(features[key]["shape"]), dimension_names(features[key])
        if isinstance(dim, str):
            if names.count(dim) != 1:
                raise ConfigError(
                    f"{option}dim={dim!r}: expected a number or a name that {key} has once; it has {names or 'none'}"
                )
            index = names.index(dim)
        elif -width <= dim < width:
            index = dim % width
        else:
            raise ConfigError(f"{option}dim={dim}: {key} has {width} dimensions")
        return SignalDimension(key, index, names[index] if names else None)

    def rows(self, index: int, columns: Sequence[str]) -> pa.Table:
        """Some columns of an episode's rows; reads the row groups that hold it, and no more."""
        episode = self[index]
        path = self.root / self.meta.get_data_file_path(index)
        # An open parquet file is not for two threads at once.
        with self._lock, reading(path, "parquet", "copy or download this file of the dataset again"):
            file, starts = self._open(path)
            first = int(np.searchsorted(starts, episode.start, side="right")) - 1
            last = int(np.searchsorted(starts, episode.stop))
            if first < 0 or last >= len(starts):
                raise EpisodeError(f"{path}: has no rows of episode {index}; the dataset is damaged")
            # An episode is little: with threads, handing it to them takes four times as long as reading it.
            table = file.read_row_groups(range(first, last), columns=list(columns), use_threads=False)
        return table.slice(episode.start - starts[first], episode.n_frames)

    def _open(self, path: Path) -> tuple[pq.ParquetFile, np.ndarray]:
        # Episodes are read in order, so the file read last is nearly always the one that is wanted.
        if self._file is None or self._file[0] != path:
            file = pq.ParquetFile(path)
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            first = next(file.iter_batches(batch_size=1, columns=["index"]))["index"][0].as_py()
            self._file = (path, file, first + np.cumsum([0, *counts]))
        return self._file[1:]

    def frames(self, episode: Episode, camera: str, positions: Sequence[int]) -> list[Image.Image]:
        """Decode the frames of an episode at increasing positions.

        Raises:
            EpisodeError: if the dataset has no such camera.
        """
        if camera not in self.cameras:
            raise EpisodeError(f"camera {camera!r} is not one of {self.cameras} of {self.meta.repo_id!r}")
        size = self.frame_size(camera)
        if camera in self.meta.video_keys:
            start_s = self.meta.episodes[episode.index][f"videos/{camera}/from_timestamp"]
            path = self.root / self.meta.get_video_file_path(episode.index, camera)
            times = start_s + episode.timestamps[list(positions)]
            return [Image.fromarray(frame) for frame in video_frames(path, size, times, episode.index)]
        column = self.rows(episode.index, [camera])[camera]
        path = self.root / self.meta.get_data_file_path(episode.index)
        with reading(path, f"images of {camera}", "copy or download this file of the dataset again"):
            where, modes = f"{path}, an image of {camera}", ("RGB", "L", "RGBA")
            return [decode_image(column[p]["bytes"].as_py(), size, where, modes) for p in positions]


def dimension_names(feature: dict) -> list[str]:
    """Names of a feature's dimensions; [] without one for each. Datasets nest them in lists or by kind of joint."""
    names = feature.get("names") or []
    if isinstance(names, dict):  # {"motors": ["shoulder", ...]}, or {"shoulder": 0, ...}
        names = [value if isinstance(value, list) else name for name, value in names.items()]
    while any(isinstance(name, list | tuple) for name in names):
        names = [inner for name in names for inner in (name if isinstance(name, list | tuple) else [name])]
    return [str(name) for name in names] if len(names) == math.prod(feature["shape"]) else []
