"""Baseline: the robot, and the world with it, has come to rest."""

from __future__ import annotations

from torch import Tensor

from world_modality_core.monitor.score_types.score import View


class Stillness:
    """Minus the root mean square change of the latents over the length of a forecast.

    Args:
        n_ticks: Ticks that it looks back.
    """

    names = ("stillness",)
    uncombined = names

    def __init__(self, n_ticks: int):
        self.n_ticks = n_ticks

    def __call__(self, view: View) -> Tensor:
        """(b, 1)."""
        before = view.latents.get(view.tick - self.n_ticks)
        if before is None:
            return view.unknown()[:, None]
        return -(view.latents[view.tick] - before).square().mean((-2, -1)).sqrt()[:, None]
