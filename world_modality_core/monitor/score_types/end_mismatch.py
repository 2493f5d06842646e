"""Whether the world ended up where the whole of a forecast led: the change that was foreseen and the one that came."""

from __future__ import annotations

from torch import Tensor

from world_modality_core.monitor.score_types.score import View

# Of a latent's variance (1 after standardisation): where neither foreseen nor real change is larger, nothing is wrong.
_STILL = 0.05


class EndMismatch:
    """Squared distance between foreseen and real end, over the squares of the foreseen and of the real change.

    0: the foreseen change came. 1: it had nothing to do with the one that came, or one of them stayed away. 2: it went
    the other way. So a robot that stands still where progress was foreseen is told from one that should stand still.

    Args:
        n_future_steps: Steps of a forecast, k.
    """

    names = ("end_mismatch",)
    uncombined = names

    def __init__(self, n_future_steps: int):
        self.n_future_steps = n_future_steps

    def __call__(self, view: View) -> Tensor:
        """(b, 1)."""
        start = view.tick - self.n_future_steps
        if start not in view.forecasts:
            return view.unknown()[:, None]
        before, now = view.latents[start][:, None, None], view.latents[view.tick][:, None, None]
        foreseen = view.forecasts[start][:, :, :, -1]  # (b, m, n, p, d)
        wrong, expected, real = (
            part.square().mean((-2, -1)) for part in (foreseen - now, foreseen - before, now - before)
        )
        return (wrong / (expected + real + _STILL)).amin(2).mean(1, keepdim=True)
