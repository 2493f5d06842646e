"""What a policy sees of the world at one step: the one typed batch of training, offline look-ups and rollouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from world_modality_core.memory.sources import Memory
from world_modality_core.prophet.network import Futures


class Intervention(Protocol):
    """What an evaluation does to the memory of a rollout (docs/evaluation.md)."""

    def __call__(self, memory: Memory, world_batch: WorldBatch, shape: tuple[int, int, int, int]) -> Memory:
        """Look at the memory of a plan, and return it or another in its place.

        Args:
            memory: What the policy would read: tokens (b, n * k * p, d).
            world_batch: What the policy sees.
            shape: (n, k, p, d) of one sample's memory.
        """
        ...


@dataclass
class WorldBatch:
    """Inputs and targets of a batch; a part is None where the policy doesn't use it, or can't know it live.

    Attributes:
        batch_size: b.
        state: (b, s) normalised robot state.
        language: (b, l) task embedding.
        history: (b, t, p, d) standardised latents, oldest first; the last is the current frame.
        history_is_pad: (b, t) True before the start of the episode.
        past: (b, t, p, d) standardised latents of the past frames in the memory, oldest first, t = `past.n_frames`.
        past_is_pad: (b, t) True where the episode has no such frame yet.
        past_age: (b, t) frames ago.
        tokens: (b, n) world tokens of the current frame.
        future: (b, k, p, d) standardised latents to come (recorded only).
        future_tokens: (b, k, n) world tokens to come (recorded only).
        future_is_pad: (b, k) True beyond the end of the episode.
        episode: (b,) episode of each sample (recorded only).
        task: (b,) task of each sample.
        futures: What the Prophet predicts, once it was asked; what is put here beforehand stands in its place.
        draw_seed: Seed of the memory's draws; None for `memory.seed`.
        future_stride: Frames between two future ones.
        intervention: What is done to the predicted futures before they are read (live only).
    """

    batch_size: int
    state: Tensor | None = None
    language: Tensor | None = None
    history: Tensor | None = None
    history_is_pad: Tensor | None = None
    past: Tensor | None = None
    past_is_pad: Tensor | None = None
    past_age: Tensor | None = None
    tokens: Tensor | None = None
    future: Tensor | None = None
    future_tokens: Tensor | None = None
    future_is_pad: Tensor | None = None
    episode: Tensor | None = None
    task: Tensor | None = None
    futures: Futures | None = None
    draw_seed: int | None = None
    future_stride: int = 1
    intervention: Intervention | None = None

    @property
    def current(self) -> Tensor:
        """(b, p, d) latents of the current frame."""
        return self.history[:, -1]
