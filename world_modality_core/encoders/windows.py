"""Causal windows: what a temporal encoder may see of an episode."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def causal_windows(frames: Tensor, m: int, stride: int = 1) -> Tensor:
    """Cut the window that ends at each frame of an episode.

    Window t holds the frames t - (m-1) * stride, ..., t - stride, t. Before the start the first frame is repeated.
    A clip encoded in one pass would let early positions attend to later frames; windows cannot.

    Args:
        frames: (t, c, h, w) all frames of one episode in order, any dtype.
        m: Frames per window.
        stride: Frames between two frames of a window.

    Returns:
        (t, m, c, h, w), same dtype, oldest frame of each window first. A view of `frames` when m == 1.

    Raises:
        ValueError: if `frames` has not four axes, or m or stride is below 1.
    """
    if frames.ndim != 4:
        raise ValueError(f"frames has shape {tuple(frames.shape)}: expected (t, c, h, w)")
    if m < 1 or stride < 1:
        raise ValueError(f"m={m}, stride={stride}: both must be at least 1")
    if m == 1:
        return frames.unsqueeze(1)
    return frames[torch.from_numpy(window_positions(np.arange(len(frames)), m, stride)).to(frames.device)]


def window_positions(ends: np.ndarray, m: int, stride: int = 1) -> np.ndarray:
    """Frames (n, m) within their episode of the causal windows that end at frames `ends` (n,), oldest first."""
    return (ends[:, None] - np.arange(m - 1, -1, -1) * stride).clip(min=0)
