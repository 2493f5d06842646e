"""Which dataset were these latents made from? A fingerprint that a copy keeps and another dataset does not have.

It holds the episodes' lengths and, per feature, a hash of LeRobot's per-episode means (`meta/episodes`): a byte copy,
a stripped copy and a merged copy keep those of the features that they keep; another recording with the same lengths
does not. Only `meta/` is read, so the check costs milliseconds.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import DEFAULT_FEATURES

from world_modality_core.io.dataset_files import column_parts, numbers
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import as_dataclass, open_parquet, read_json, read_parquet, write_text
from world_modality_core.latents.latent_table import LATENTS, TOKENS

SOURCE_FILE = "meta/world_modality_source.json"
# Their per-episode means follow from the episodes' lengths (or, for tasks, say little).
_NOT_CONTENT = {*DEFAULT_FEATURES, LATENTS, TOKENS}


@dataclass
class SourceFingerprint:
    """Identity of a source dataset.

    Attributes:
        repo_id: The source's repository id.
        revision: Commit of the Hub snapshot that was read; None for a local dataset.
        total_frames: Frames.
        total_episodes: Episodes.
        fps: Frames per second.
        episode_lengths_sha256: Hash of the lengths of all episodes, in order.
        content: Feature key -> hash of its per-episode means.
    """

    repo_id: str
    revision: str | None
    total_frames: int
    total_episodes: int
    fps: int | float
    episode_lengths_sha256: str
    content: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, meta: LeRobotDatasetMetadata) -> SourceFingerprint:
        """Take the fingerprint of a dataset from its metadata."""
        table = _episodes_table(Path(meta.root))
        lengths = table["length"].to_numpy().astype("<i8")
        content = {}
        for key in sorted(set(meta.features) - _NOT_CONTENT):
            if f"stats/{key}/mean" in table.column_names:
                means = numbers(table[f"stats/{key}/mean"]).astype("<f8")
                content[key] = hashlib.sha256(means.tobytes()).hexdigest()
        return cls(
            repo_id=meta.repo_id,
            revision=snapshot_commit(Path(meta.root)),
            total_frames=meta.total_frames,
            total_episodes=meta.total_episodes,
            fps=whole_fps(meta),
            episode_lengths_sha256=hashlib.sha256(lengths.tobytes()).hexdigest(),
            content=content,
        )

    def differences(self, other: SourceFingerprint) -> list[str]:
        """What tells `other` from this source, as readable phrases; empty if it is this source or a copy of it."""
        found = [
            f"{name}: {getattr(self, name)} != {getattr(other, name)}"
            for name in ("total_frames", "total_episodes", "fps")
            if getattr(self, name) != getattr(other, name)
        ]
        if not found and self.episode_lengths_sha256 != other.episode_lengths_sha256:
            found.append("the episodes' lengths differ")
        if self.repo_id == other.repo_id and None not in (self.revision, other.revision):
            if self.revision != other.revision:
                found.append(f"revision: {self.revision} != {other.revision}")
        if found or not self.content:
            return found
        # By content: features may have been renamed since.
        known = set(self.content.values())
        if changed := sorted(k for k in self.content.keys() & other.content.keys() if other.content[k] not in known):
            found.append(f"the values of {changed} differ")
        elif not known & set(other.content.values()):
            found.append(f"no feature in common to compare: {sorted(self.content)} against {sorted(other.content)}")
        return found

    def renamed(self, keys: Sequence[str], other: SourceFingerprint) -> dict[str, str]:
        """What features of this source are called in `other`, a copy of it, where they are called otherwise."""
        names = {value: key for key, value in other.content.items()}
        found = {key: names.get(self.content.get(key)) for key in keys if key not in other.content}
        return {key: name for key, name in found.items() if name}

    def to_dict(self) -> dict:
        """JSON-serialisable form."""
        return asdict(self)

    def write(self, root: Path) -> None:
        """Mark the dataset at `root` as a copy of this source."""
        write_text(root / SOURCE_FILE, json.dumps(self.to_dict(), indent=2))

    @classmethod
    def read(cls, root: Path) -> SourceFingerprint | None:
        """The source that the dataset at `root` is marked as a copy of, if it is.

        Raises:
            DamagedFileError: if the mark can't be read.
        """
        path = root / SOURCE_FILE
        return as_dataclass(cls, read_json(path), path) if path.exists() else None


def whole_fps(meta: LeRobotDatasetMetadata) -> int | float:
    """A dataset's frames per second, as a whole number where it is one: some files say 10.0.

    Raises:
        ConfigError: if it is no rate.
    """
    fps = meta.fps
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        raise ConfigError(f"{meta.root}/meta/info.json: fps={fps!r}, expected a positive number")
    return int(fps) if fps == int(fps) else fps


def episode_keys(meta: LeRobotDatasetMetadata, bounds: np.ndarray, cameras: Sequence[str]) -> list[str]:
    """What tells each episode from any other, wherever LeRobot's tools move it: empty where that isn't known.

    A hash of its length, of the numbers that were recorded in it, and of the statistics of its images.

    Args:
        meta: Metadata of the dataset.
        bounds: (e, 2) first frame and one past the last frame of each episode.
        cameras: The images that count.
    """
    root = Path(meta.root)
    names = [f"stats/{camera}/{each}" for camera in cameras for each in ("min", "max", "mean", "std")]
    table = _episodes_table(root, tuple(names))
    if not set(names) <= set(table.column_names):
        return [""] * len(bounds)
    keys = [hashlib.sha256(f"{whole_fps(meta)} {stop - start}".encode()) for start, stop in bounds]
    for name in names:
        for key, value in zip(keys, numbers(table[name]).astype("<f8").reshape(len(keys), -1), strict=True):
            key.update(value)
    for name in sorted(set(meta.features) - _NOT_CONTENT - set(meta.camera_keys)):
        for first, values in column_parts(root, name, meta.features[name]["shape"]):
            past = first + len(values)
            begin, end = np.searchsorted(bounds[:, 1], first, "right"), np.searchsorted(bounds[:, 0], past)
            for key, (start, stop) in zip(keys[begin:end], bounds[begin:end], strict=True):
                key.update(np.ascontiguousarray(values[max(start, first) - first : min(stop, past) - first]))
    return [key.hexdigest()[:16] for key in keys]


def snapshot_commit(root: Path) -> str | None:
    """The commit of a dataset that lies in the Hub's snapshot cache (`.../snapshots/<commit>`), None elsewhere."""
    return root.name if root.parent.name == "snapshots" else None


def _episodes_table(root: Path, statistics: tuple[str, ...] = ("/mean",)) -> pa.Table:
    """Episode index, length and some per-episode statistics of all episodes, in the order of `episode_index`."""
    tables = []
    for path in sorted((root / "meta/episodes").glob("*/*.parquet")):
        names = open_parquet(path).schema_arrow.names
        wanted = [
            n for n in names if n in ("episode_index", "length") or (n[:6] == "stats/" and n.endswith(statistics))
        ]
        tables.append(read_parquet(path, wanted))
    return pa.concat_tables(tables, promote_options="permissive").sort_by("episode_index")
