"""Reading a source dataset once, episode by episode, each camera decoded from front to back.

Random access costs a seek and a partial decode per frame. Here an episode is one seek and then a plain decode, in
background workers (`torch.utils.data.DataLoader`) whose bounded queue keeps the encoder fed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.utils import BackwardCompatibilityError
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.encoders.windows import window_positions
from world_modality_core.io.dataset_files import data_files, named_files, one_number_a_row
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import read_parquet, reading
from world_modality_core.io.first_look import missing
from world_modality_core.io.hub_transfer import HubError, hub_errors
from world_modality_core.latents.fingerprint import whole_fps
from world_modality_core.precompute.decoding import REPAIR, TOLERANCE_S, ImageColumn, video_frames


@dataclass
class Chunk:
    """Frames of one episode, in order: some that are encoded, and those that their windows reach back to.

    Attributes:
        episode: Episode index.
        start: Frames of the episode that are encoded before this chunk.
        is_last: Whether the episode ends with this chunk.
        positions: (n,) int64 positions of the frames within the episode.
        frames: Per camera, (n, 3, h, w) uint8.
    """

    episode: int
    start: int
    is_last: bool
    positions: Tensor
    frames: dict[str, Tensor]


@dataclass
class BadEpisode:
    """An episode that can't be read; `error` names the file and the remedy."""

    episode: int
    error: UserError


@dataclass
class _Stream:
    """Where one camera's frames of one episode lie."""

    path: Path
    size: tuple[int, int]  # (height, width)
    is_video: bool
    start_s: float = 0.0


def open_metadata(repo_id: str, root: str | Path | None = None, revision: str | None = None) -> LeRobotDatasetMetadata:
    """The metadata of a dataset whose files are all at hand, and its own; what is missing is downloaded.

    Raises:
        ConfigError: if it can't be opened, or a file of it is missing or leads out of the dataset's folder.
    """
    where = f"dataset.repo_id={repo_id!r}, dataset.root={root and str(root)!r}, dataset.revision={revision!r}"
    is_missing = root is not None and not (Path(root) / "meta/info.json").exists()
    if is_missing and "/" not in repo_id:  # no name on the Hub
        raise ConfigError(
            f"dataset.root={str(root)!r}: there is no LeRobotDataset (no meta/info.json); name its folder"
        )
    try:
        with hub_errors(repo_id, revision):
            meta = LeRobotDatasetMetadata(repo_id, root=root, revision=revision)
    except BackwardCompatibilityError as error:
        where_to = f"--root={root} --push-to-hub=false " if root is not None else ""
        raise ConfigError(
            f"{where}: written by LeRobot before 3.0. Convert it: python -m "
            f"lerobot.scripts.convert_dataset_v21_to_v30 --repo-id={repo_id} {where_to}"
        ) from error
    except Exception as error:
        why = f"{missing(root)}, and it can't be downloaded" if is_missing else type(error).__name__
        raise ConfigError(
            f"{where}: cannot be opened ({why}: {error}). Give the root of a local LeRobotDataset, or the id of one on "
            "the Hub"
        ) from error
    lacking = sorted(name for name in named_files(meta) if not (Path(meta.root) / name).exists())
    if lacking:
        try:
            with hub_errors(repo_id, revision):
                meta = LeRobotDataset(repo_id, root=root, revision=revision).meta
        except HubError as error:
            raise ConfigError(
                f"{meta.root} lacks {len(lacking)} of its files, the first is {lacking[0]}: copy them there (they "
                f"can't be downloaded: {error})"
            ) from None
        named_files(meta)
    return meta


def episode_bounds(meta: LeRobotDatasetMetadata) -> np.ndarray:
    """(e, 2) first frame and one past the last frame of each episode, held against the rest of the metadata.

    Raises:
        ConfigError: naming the episode that has no frames, or the numbers that don't fit together.
        DamagedFileError: if the episodes' table can't be read.
    """
    where, columns = f"{meta.root}/meta/episodes", ["dataset_from_index", "dataset_to_index"]
    if meta.total_frames == 0 or meta.total_episodes == 0:
        raise ConfigError(f"{meta.repo_id!r} ({meta.root}) has no frames")
    with reading(Path(meta.root) / "meta", "a LeRobotDataset's metadata", "copy or download the dataset again"):
        episodes = meta.episodes.with_format("numpy", columns=[*columns, "episode_index", "length"])[:]
        for name in (*columns, "episode_index", "length"):
            values = np.asarray(episodes[name])
            if values.dtype.kind not in "iu" or values.ndim != 1:
                raise ValueError(f"{name} of meta/episodes holds {values.dtype} of shape {values.shape}, not numbers")
        bounds = np.stack([episodes[name] for name in columns], axis=1)
    lengths = bounds[:, 1] - bounds[:, 0]
    if len(empty := np.flatnonzero(lengths < 1)):
        first = empty[0]
        raise ConfigError(
            f"{where}: {len(empty)} of {len(bounds)} episodes have no frames, the first is episode {first} "
            f"(dataset_from_index={bounds[first, 0]}, dataset_to_index={bounds[first, 1]}); remove them with "
            "lerobot-edit-dataset (delete_episodes), or record again"
        )
    ends = np.cumsum(lengths)
    wrong = (
        (bounds[:, 1] != ends) | (episodes["length"] != lengths) | (episodes["episode_index"] != np.arange(len(bounds)))
    )
    if wrong.any():
        first = int(wrong.argmax())
        raise ConfigError(
            f"{where}: episode {first} has episode_index={episodes['episode_index'][first]}, length="
            f"{episodes['length'][first]}, dataset_from_index={bounds[first, 0]}, dataset_to_index={bounds[first, 1]}, "
            f"and the one before ends at {bounds[first - 1, 1] if first else 0}: they don't fit together; convert or "
            "record the dataset again"
        )
    if (len(bounds), ends[-1]) != (meta.total_episodes, meta.total_frames):
        raise ConfigError(
            f"{meta.root}/meta/info.json: total_episodes={meta.total_episodes}, total_frames={meta.total_frames}, but "
            f"meta/episodes has {len(bounds)} episodes with {ends[-1]} frames; copy or convert the dataset again"
        )
    return bounds


class SourceDataset:
    """A source dataset whose files are all at hand.

    Attributes:
        meta: LeRobot's metadata.
        root: Its folder.
        lengths: (e,) frames of each episode.
        bounds: (e, 2) first frame and one past the last frame of each episode.
        timestamps: (n,) float32 seconds of every frame within its episode.
    """

    def __init__(
        self, repo_id: str, root: str | None = None, revision: str | None = None, tolerance_s: float = TOLERANCE_S
    ) -> None:
        """Open the dataset, downloading what is missing.

        Raises:
            ConfigError: if it cannot be opened, or its metadata and its frames don't fit together.
        """
        self.meta = open_metadata(repo_id, root, revision)
        self.root, self.tolerance_s = Path(self.meta.root), tolerance_s
        whole_fps(self.meta)
        self.bounds = episode_bounds(self.meta)
        self.lengths = self.bounds[:, 1] - self.bounds[:, 0]
        self.timestamps = self._read_timestamps()

    def _read_timestamps(self) -> np.ndarray:
        names = ["index", "episode_index", "task_index", "timestamp"]
        with reading(self.root / "meta/tasks.parquet", "the tasks of a LeRobotDataset", REPAIR):
            tasks = self.meta.tasks["task_index"].to_numpy()
            if tasks.dtype.kind not in "iu":
                raise ValueError(f"task_index is {tasks.dtype}")
        starts, n_frames, times, n = self.bounds[:, 0], self.bounds[-1, 1], [], 0
        wrong: dict[str, list[np.ndarray]] = {}
        before = np.float32(-np.inf)
        for path in data_files(self.root):  # one at a time: of a large dataset's frames only the times are kept
            table = read_parquet(path, names)
            with reading(path, "the frames of a LeRobotDataset", REPAIR):
                index, episode, task, timestamp = (one_number_a_row(table[name]) for name in names)
            rows = np.arange(n, n + len(index))
            n += len(index)
            if n > n_frames or not np.array_equal(index, rows):
                break
            said = np.searchsorted(starts, rows, side="right") - 1
            is_start = np.isin(rows, starts)
            for what, is_bad in {
                "`episode_index` is not what meta/episodes says": episode != said,
                "`task_index` is no task of meta/tasks.parquet": ~np.isin(task, tasks),
                "`timestamp` is no increasing time": ~np.isfinite(timestamp)
                | (np.diff(timestamp, prepend=before) <= 0) & ~is_start,
            }.items():
                wrong.setdefault(what, []).append(rows[is_bad])
            times.append(timestamp)
            before = timestamp[-1] if len(timestamp) else before
        else:
            if n == n_frames:
                self._check_frames({what: np.concatenate(bad) for what, bad in wrong.items()})
                return np.concatenate(times)
        raise UserError(
            f"{self.root}: `index` does not count its {n_frames} frames from 0 upwards, as LeRobot 3.0 datasets do; "
            "rewrite it with lerobot-edit-dataset"
        )

    def _check_frames(self, wrong: dict[str, np.ndarray]) -> None:
        """Refuse a dataset with wrong frames: what is wrong -> their indices."""
        for what, rows in wrong.items():
            if len(rows):
                first = rows[0]
                episode = np.searchsorted(self.bounds[:, 0], first, side="right") - 1
                raise ConfigError(
                    f"{self.root}: {what} at {len(rows)} of {self.bounds[-1, 1]} frames, the first is frame "
                    f"{first - self.bounds[episode, 0]} of episode {episode} (index {first}); convert or record the "
                    "dataset again"
                )

    def cameras(self, wanted: Sequence[str]) -> list[str]:
        """The cameras to encode: those wanted, or all of the dataset whose images have three channels.

        Raises:
            ConfigError: if one is not a colour camera of this dataset, or there is none.
        """
        usable = [
            key for key in self.meta.camera_keys if key not in self.meta.depth_keys and self.camera_shape(key)[2] == 3
        ]
        if gray := [key for key in wanted if key in self.meta.camera_keys and key not in usable]:
            raise ConfigError(
                f"encoder.cameras={list(wanted)}: {gray[0]!r} has {self.camera_shape(gray[0])[2]} channels, or is "
                f"depth; encoders read colour images of 3 channels, which {usable} are"
            )
        if not usable:
            raise ConfigError(
                f"{self.meta.repo_id!r} has no colour image or video feature (3 channels) to encode; its features "
                f"are {sorted(self.meta.features)}"
            )
        unknown = [key for key in wanted if key not in usable]
        if unknown:
            raise ConfigError(
                f"encoder.cameras={list(wanted)}: {unknown} not in {self.meta.repo_id!r}, which has {usable}"
            )
        return list(wanted) or usable

    def camera_shape(self, camera: str) -> list[int]:
        """[height, width, channels] of a camera's frames, as the metadata declares them."""
        feature = self.meta.features[camera]
        names = [str(name) for name in feature.get("names") or ["height", "width", "channels"]]
        shape = list(feature["shape"])
        return [shape[1], shape[2], shape[0]] if names[0].startswith("channel") else shape

    def check_ends(self) -> None:
        """Decode the first and the last frame of each episode by each colour camera.

        Raises:
            UserError: naming the file that has them not, or of another size than the metadata declares.
        """
        images = ImageColumn()
        cameras = [key for key in self.meta.camera_keys if key not in self.meta.depth_keys]
        for episode, (start, stop) in enumerate(self.bounds):
            for camera in [key for key in cameras if self.camera_shape(key)[2] == 3]:
                stream = self._stream(episode, camera)
                for index in (start, stop - 1):
                    if stream.is_video:
                        at = stream.start_s + self.timestamps[index : index + 1].astype(np.float64)
                        next(video_frames(stream.path, stream.size, at, episode, self.tolerance_s))
                    else:
                        next(images.frames(stream.path, stream.size, camera, np.array([index])))

    def chunks(
        self, episodes: Sequence[int], spec: EncoderSpec, n_frames: int, n_workers: int
    ) -> Iterator[Chunk | BadEpisode]:
        """Read what is encoded of episodes, in chunks; those of one episode come in order.

        Args:
            episodes: Episode indices.
            spec: Says which cameras, and which frames of them.
            n_frames: Most frames of a chunk that are encoded.
            n_workers: Background decoding processes; 0 decodes in this process, without overlap.

        Yields:
            The chunks, each frame once; a `BadEpisode` in place of the rest of one that can't be read.
        """
        work = []
        for e in episodes:
            streams = {camera: self._stream(int(e), camera) for camera in spec.cameras}
            work.append((int(e), streams, self.timestamps[slice(*self.bounds[e])], int(self.bounds[e, 0])))
        n_workers = min(n_workers, len(work))
        loader = DataLoader(
            _FrameReader(work, spec, n_frames, self.tolerance_s),
            batch_size=None,
            num_workers=n_workers,
            prefetch_factor=2 if n_workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        for item in loader:
            yield item if isinstance(item, BadEpisode) else Chunk(*item)

    def _stream(self, episode: int, camera: str) -> _Stream:
        height, width, _ = self.camera_shape(camera)
        is_video = camera in self.meta.video_keys
        pattern, kind = (self.meta.video_path, f"videos/{camera}") if is_video else (self.meta.data_path, "data")
        where = self._places[kind]
        chunk, file = int(where["chunk_index"][episode]), int(where["file_index"][episode])
        path = self.root / pattern.format(video_key=camera, chunk_index=chunk, file_index=file)
        start_s = float(where["from_timestamp"][episode]) if is_video else 0.0
        return _Stream(path, (height, width), is_video, start_s)

    @cached_property
    def _places(self) -> dict[str, dict[str, np.ndarray]]:
        """Where the episodes lie; LeRobot's look-up of one reads all that is known of it, a millisecond each time."""
        names = {f"videos/{key}": ["chunk_index", "file_index", "from_timestamp"] for key in self.meta.video_keys}
        names["data"] = ["chunk_index", "file_index"]
        columns = [f"{kind}/{name}" for kind, each in names.items() for name in each]
        table = self.meta.episodes.with_format("numpy", columns=columns)[:]
        return {kind: {name: table[f"{kind}/{name}"] for name in each} for kind, each in names.items()}


class _FrameReader(IterableDataset):
    """Yields the fields of each `Chunk` of the episodes of this worker."""

    def __init__(
        self,
        work: list[tuple[int, dict[str, _Stream], np.ndarray, int]],
        spec: EncoderSpec,
        n_frames: int,
        tolerance_s: float,
    ) -> None:
        self.work, self.spec, self.n_frames, self.tolerance_s = work, spec, n_frames, tolerance_s
        self.images = ImageColumn()

    def __iter__(self):
        worker = get_worker_info()
        for work in self.work if worker is None else self.work[worker.id :: worker.num_workers]:
            try:
                yield from self._chunks(*work)
            except (UserError, OSError) as error:  # raised in a worker, its message would be the worker's traceback
                known = isinstance(error, UserError)
                yield BadEpisode(work[0], error if known else UserError(f"episode {work[0]}: {error}"))

    def _chunks(
        self, episode: int, streams: dict[str, _Stream], timestamps: np.ndarray, first_index: int
    ) -> Iterator[tuple[int, int, bool, np.ndarray, dict[str, Tensor]]]:
        ends = np.arange(0, len(timestamps), self.spec.every)
        positions = np.unique(window_positions(ends, self.spec.n_frames, self.spec.frame_stride))
        times = timestamps[positions].astype(np.float64)
        iterators = {
            camera: video_frames(s.path, s.size, s.start_s + times, episode, self.tolerance_s)
            if s.is_video
            else self.images.frames(s.path, s.size, camera, first_index + positions)
            for camera, s in streams.items()
        }
        n_read = 0
        for start in range(0, len(ends), self.n_frames):
            last = ends[start : start + self.n_frames][-1]
            part = positions[n_read : np.searchsorted(positions, last, side="right")]
            frames = {camera: _stack(frames, len(part)) for camera, frames in iterators.items()}
            yield episode, start, last == ends[-1], part, frames
            n_read += len(part)


def _stack(frames: Iterator[np.ndarray], n: int) -> Tensor:
    """The next n frames as (n, 3, h, w) uint8, stored colour last: as decoded, and as convolutions like them."""
    return torch.from_numpy(np.stack(list(islice(frames, n)))).permute(0, 3, 1, 2)
