"""Which episodes and frames a Prophet learns from, and which it is measured on."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from world_modality_core.io.episode_lists import parse_episodes
from world_modality_core.io.errors import ConfigError
from world_modality_core.prophet.data import CompanionFrames
from world_modality_core.prophet.training_options import ProphetTrainingConfig


@dataclass
class Split:
    """Which frames are learned from and which are measured on; only frames with a future inside their episode.

    Attributes:
        training: (n,) int64 frames.
        held_out: (m,) int64 frames, at most `eval_frames`.
        episodes: Episodes of each companion that are learned from.
        held_out_episodes: Episodes of each companion that are measured on.
    """

    training: torch.Tensor
    held_out: torch.Tensor
    episodes: list[list[int]]
    held_out_episodes: list[list[int]]


def split_frames(frames: CompanionFrames, cfg: ProphetTrainingConfig) -> Split:
    """Choose the frames to learn from and to measure on.

    Raises:
        ConfigError: if an episode isn't there, or nothing is left to learn from.
    """
    n_companions = len(frames.companions)
    sizes = [len(companion.bounds) for companion in frames.companions]
    chosen = parse_episodes(cfg.episodes, sizes, "episodes")
    excluded = parse_episodes(cfg.exclude_episodes, sizes, "exclude_episodes")
    usable = np.array([
        (chosen[c] is None or e in chosen[c])
        and e not in (excluded[c] or ())
        and e not in frames.companions[c].info.excluded
        for c, e in frames.origin.tolist()
    ])  # fmt: skip
    task, rng = frames.episode_task(), np.random.default_rng(cfg.seed)
    is_held_out = np.zeros(len(usable), dtype=bool)
    for number in np.unique(task[usable]):
        members = np.flatnonzero(usable & (task == number))
        # At least one, but never a task's only episode.
        n = min(max(1, round(cfg.eval_split * len(members))), len(members) - 1) if cfg.eval_split else 0
        is_held_out[rng.permutation(members)[:n]] = True

    def frames_of(is_in: np.ndarray) -> torch.Tensor:
        spans = [np.arange(start, end - cfg.future_stride) for start, end in frames.bounds[is_in]]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *spans]))

    def numbers_of(is_in: np.ndarray) -> list[list[int]]:
        return [frames.origin[is_in & (frames.origin[:, 0] == c), 1].tolist() for c in range(n_companions)]

    training, held_out = frames_of(usable & ~is_held_out), frames_of(is_held_out)
    if not len(training):
        raise ConfigError(
            f"no frame to learn from: episodes={cfg.episodes!r}, exclude_episodes={cfg.exclude_episodes!r} and "
            f"future_stride={cfg.future_stride} leave none"
        )
    if len(held_out) > cfg.eval_frames:
        held_out = held_out[torch.linspace(0, len(held_out) - 1, cfg.eval_frames).round().long()]
    return Split(training, held_out, numbers_of(usable & ~is_held_out), numbers_of(is_held_out))


class OtherEpisodes:
    """Draws frames of another episode of the same task (`targets=shuffled`).

    Args:
        frames: All frames.
        training: (n,) the frames to draw among.

    Raises:
        ConfigError: if a task has a single episode.
    """

    def __init__(self, frames: CompanionFrames, training: torch.Tensor):
        index = training.numpy()
        episode = np.searchsorted(frames.bounds[:, 0], index, side="right") - 1
        task = frames.episode_task()[episode]
        order = np.lexsort((index, episode, task))
        self._sorted = index[order]
        lonely = [int(t) for t in np.unique(task) if len(np.unique(episode[task == t])) < 2]
        if lonely:
            raise ConfigError(
                f"targets='shuffled' exchanges futures between episodes of a task, but {frames.tasks[lonely[0]]!r} has "
                "a single one to learn from; use more episodes, or --targets=future"
            )
        # Of each frame: where its task and its episode begin and end in the sorted list.
        self._block = {}
        for name, label in (("task", task[order]), ("episode", episode[order])):
            edges = np.flatnonzero(np.diff(label, prepend=label[0] - 1, append=label[-1] + 1))
            which = np.searchsorted(edges, np.arange(len(label)), side="right") - 1
            self._block[name] = np.stack([edges[which], edges[which + 1]], axis=1)
        self._place = np.empty(frames.n_frames, dtype=np.int64)
        self._place[self._sorted] = np.arange(len(index))

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A frame of another episode of the same task for each of `index` (b,), uniform over all there are."""
        place = self._place[index.numpy()]
        task, episode = self._block["task"][place], self._block["episode"][place]
        n_others = (task[:, 1] - task[:, 0]) - (episode[:, 1] - episode[:, 0])
        share = torch.rand(len(index), generator=generator, dtype=torch.float64).numpy()
        drawn = task[:, 0] + (share * n_others).astype(np.int64)
        drawn = drawn + (drawn >= episode[:, 0]) * (episode[:, 1] - episode[:, 0])
        return torch.from_numpy(self._sorted[drawn])
