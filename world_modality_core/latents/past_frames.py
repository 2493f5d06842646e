"""Which frames of an episode's past enter a memory; one rule for recorded frames and for a rollout's.

Candidates are the frames at multiples of `stride` from the start of the episode, up to the one before the current
frame: a rollout then encodes each at most once, whenever it plans. Of these are kept the newest (`select=stride`),
those at which the latent moved most since the candidate before (`change`; the episode's first frame always counts as
moved), or half of each (`both`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_ROWS_AT_ONCE = 4096


def movement(latents: Tensor, before: Tensor) -> Tensor:
    """Squared distance (...) between latents (..., p * d) and those of the candidate before, fp32."""
    return (latents.float() - before.float()).square().sum(-1)


def n_most_moved(n: int, select: str) -> int:
    """How many of n past frames are those at which the latent moved most; the others are the newest."""
    return {"stride": 0, "change": n, "both": n // 2}[select]


def most_moved(moved: Tensor, n: int) -> Tensor:
    """(b, n) or fewer places in moved (b, j) at which the latent moved most.

    Stable: of two that moved as far the older one stays, so that a kept frame is given up only for one that moved
    further.
    """
    return moved.sort(dim=1, descending=True, stable=True).indices[:, :n]


def choose_past(moved: Tensor, n_seen: Tensor, n: int, select: str) -> tuple[Tensor, Tensor]:
    """Choose candidates of an episode's past.

    Args:
        moved: (b, j) how far the latent moved at each candidate, oldest first; beyond `n_seen` anything.
        n_seen: (b,) candidates before the current frame.
        n: Frames to choose.
        select: "stride", "change" or "both".

    Returns:
        (b, n) candidates and is_pad (b, n), padding first, then oldest first. With "both" a frame may be there twice.
    """
    n_moved = n_most_moved(n, select)
    chosen = n_seen[:, None] - torch.arange(n - n_moved, 0, -1, device=n_seen.device)  # the newest
    if n_moved:
        place = torch.arange(moved.shape[1], device=moved.device)
        is_seen = place < n_seen[:, None]
        order = most_moved(moved.masked_fill(~is_seen, -1.0), n_moved)
        order = order.masked_fill(~is_seen.gather(1, order), -1)
        order = torch.cat([order.new_full((len(order), n_moved - order.shape[1]), -1), order], dim=1)
        chosen = torch.cat([order, chosen], dim=1).sort(dim=1).values
    return chosen.clamp(min=0), chosen < 0


class RecordedPast:
    """The past of recorded frames, on the device where a companion's latents are read.

    Args:
        latents: (n_frames, p * d) of the companion.
        bounds: (e, 2) first frame and one past the last of each episode.
        n: Frames of the past.
        stride: Frames between two candidates.
        select: See `choose_past`.
        device: Where indices are.
    """

    def __init__(self, latents: np.ndarray, bounds: np.ndarray, n: int, stride: int, select: str, device: torch.device):
        self.n, self.stride, self.select = n, stride, select
        self._starts = torch.tensor(bounds[:, 0], device=device)
        longest = int((bounds[:, 1] - bounds[:, 0]).max())
        self._candidates = torch.arange(-(-longest // stride), device=device) * stride
        self._moved = None if select == "stride" else recorded_movement(latents, bounds, stride).to(device)

    def rows(self, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of the past of frames.

        Args:
            index: (b,) frames.

        Returns:
            rows (b, n), is_pad (b, n) and age (b, n) in frames, 0 at padding; oldest first.
        """
        start = self._starts[torch.searchsorted(self._starts, index, right=True) - 1]
        n_seen = torch.div(index - start + self.stride - 1, self.stride, rounding_mode="floor")
        moved = n_seen[:, None]  # no matter
        if self._moved is not None:
            moved = self._moved[(start[:, None] + self._candidates).clamp(max=len(self._moved) - 1)]
        chosen, is_pad = choose_past(moved, n_seen, self.n, self.select)
        rows = start[:, None] + chosen * self.stride
        return rows, is_pad, (index[:, None] - rows).masked_fill(is_pad, 0)


def recorded_movement(latents: np.ndarray, bounds: np.ndarray, stride: int) -> Tensor:
    """(n_frames,) `movement` at every candidate of a companion, infinite at an episode's first frame, 0 elsewhere."""
    moved = torch.zeros(len(latents))
    for start, end in bounds.tolist():
        moved[start] = float("inf")
        rows = list(range(start, end, stride))
        for i in range(1, len(rows), _ROWS_AT_ONCE):
            part = torch.tensor(latents[rows[i - 1 : i + _ROWS_AT_ONCE]])
            moved[rows[i : i + _ROWS_AT_ONCE]] = movement(part[1:], part[:-1])
    return moved
