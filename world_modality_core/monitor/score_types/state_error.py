"""How far the robot is from where it was foreseen 1, 2, ..., k ticks ago, in its own state."""

from __future__ import annotations

import torch
from torch import Tensor

from world_modality_core.monitor.score_types.score import View


class StateError:
    """Root mean square difference of the standardised state and each forecast of it; of several Prophets, the mean.

    A gripper of a few pixels, or a hand that is slower than it was, hardly shows in a frame's latent.

    Args:
        n_future_steps: Steps of a forecast, k; each is a number of its own.
    """

    uncombined = ()

    def __init__(self, n_future_steps: int):
        self.n_future_steps = n_future_steps
        self.names = tuple(f"state_error_{i}" for i in range(1, n_future_steps + 1))

    def __call__(self, view: View) -> Tensor:
        """(b, k)."""
        return torch.stack([self._error(view, ahead) for ahead in range(1, self.n_future_steps + 1)], dim=1)

    def _error(self, view: View, ahead: int) -> Tensor:
        made = view.state_forecasts.get(view.tick - ahead)
        if made is None:
            return view.unknown()
        now = view.states[view.tick]
        return (made[:, :, ahead - 1] - now[:, None]).square().mean(-1).sqrt().mean(1)
