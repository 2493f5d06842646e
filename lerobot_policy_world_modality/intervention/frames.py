"""Frames to test on: those of some episodes, in batches that all sources see alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.utils.constants import ACTION
from torch import Tensor
from torch.utils.data import DataLoader

from world_modality_core.io.errors import ConfigError
from world_modality_core.precompute.precompute_options import SourceConfig

# Loaded frames that are kept in memory from one source to the next.
HELD_BYTES = 2 * 2**30


class Frames:
    """Frames of some episodes, in a fixed random order, so that a batch holds many episodes.

    Args:
        config: The policy's config: which windows it needs.
        dataset: The dataset.
        meta: Its metadata.
        episodes: Its episodes, ascending.
        n_frames: Frames drawn among theirs; 0 for all.
        batch_size: Frames of a batch.
        num_workers: Decoding processes.
        seed: Seed of the draw and of the order.

    Attributes:
        index: (f,) frame of the dataset, in the order of the batches.
        episode: (f,) its episode.
        task: (f,) its task.
        step: (f,) its place in the episode.
        left: (f,) recorded frames after it.
    """

    def __init__(
        self,
        config: Any,
        dataset: SourceConfig,
        meta: LeRobotDatasetMetadata,
        episodes: list[int],
        n_frames: int,
        batch_size: int,
        num_workers: int,
        seed: int,
    ):
        self._dataset = LeRobotDataset(
            dataset.repo_id,
            root=dataset.root,
            episodes=episodes,
            delta_timestamps=resolve_delta_timestamps(config, meta),
            revision=dataset.revision,
        )
        names = ("index", "episode_index", "task_index", "frame_index")
        columns = {name: np.asarray(self._dataset.hf_dataset[name]).reshape(-1) for name in names}
        rows = np.random.default_rng(seed).permutation(len(columns["index"]))
        rows = rows[:n_frames] if n_frames else rows
        if len(rows) < 2:
            raise ConfigError(f"{len(rows)} frame to test on: name more --episodes or a larger --n_frames")
        self._rows = rows
        self.index, self.episode, self.task, self.step = (columns[name][rows] for name in names)
        length = dict(zip(*np.unique(columns["episode_index"], return_counts=True), strict=True))
        self.left = np.array([length[e] for e in self.episode]) - 1 - self.step
        # Equal parts: a last batch of one frame would have no other to exchange its memory with.
        self.parts = np.array_split(np.arange(len(rows)), -(-len(rows) // batch_size))
        self._num_workers = num_workers
        self._held: list[dict] | None = None

    def __len__(self) -> int:
        return len(self._rows)

    def batches(self) -> Iterator[dict]:
        """The batches, as a training's data loader gives them."""
        if self._held is not None:
            yield from self._held
            return
        held: list[dict] | None = []
        for batch in self._load(self._rows):
            # Each source looks at the same frames: decode them once where they fit.
            if held == [] and _n_bytes(batch) * len(self.parts) > HELD_BYTES:
                held = None
            if held is not None:
                held.append(batch)
            yield batch
        self._held = held

    def earlier(self, n: int) -> Iterator[dict]:
        """For each batch the frames n steps before (where `step` < n the episode's first)."""
        return self._load(self._rows - np.minimum(n, self.step))

    def moves(self, name: str, ahead: list[int]) -> Iterator[Tensor]:
        """For each batch, how far a column's values (s,) will have moved some frames later: (b, k, s).

        Args:
            name: The column.
            ahead: (k,) frames; beyond the end of an episode its last frame counts.
        """
        values = torch.stack(list(self._dataset.hf_dataset[name]))
        for part in self.parts:
            later = self._rows[part, None] + np.minimum(ahead, self.left[part, None])
            yield values[later] - values[self._rows[part]][:, None]

    def _load(self, rows: np.ndarray) -> Iterator[dict]:
        sampler = [rows[part].tolist() for part in self.parts]
        context = "spawn" if self._num_workers else None
        return iter(
            DataLoader(
                self._dataset, batch_sampler=sampler, num_workers=self._num_workers, multiprocessing_context=context
            )
        )


def targets(batch: dict) -> tuple[Tensor, Tensor]:
    """Recorded actions (b, h, a) of a batch, and where they are padding (b, h)."""
    actions = batch[ACTION]
    is_pad = batch.get("action_is_pad")
    return actions, torch.zeros(actions.shape[:2], dtype=torch.bool) if is_pad is None else is_pad.cpu()


def _n_bytes(batch: dict) -> int:
    return sum(value.nbytes for value in batch.values() if isinstance(value, Tensor))
