"""Baseline: the episode takes longer than successful ones do."""

from __future__ import annotations

import torch
from torch import Tensor

from world_modality_core.monitor.score_types.score import View


class ElapsedTime:
    """Steps since the start."""

    names = ("elapsed_time",)
    uncombined = ()

    def __call__(self, view: View) -> Tensor:
        """(b, 1)."""
        return torch.full_like(view.unknown(), float(view.step))[:, None]
