"""How far the world is from what was foreseen 1, 2, ..., k ticks ago (Foresight, arXiv:2606.23085, in latent space)."""

from __future__ import annotations

import torch
from torch import Tensor

from world_modality_core.monitor.score_types.score import View
from world_modality_core.prophet.losses import frame_cosine


class ForecastError:
    """One minus the cosine between the present latent and each forecast of it.

    Of several hypotheses the nearest counts: what one of them foresaw is no surprise. Of several Prophets, the mean.

    Args:
        n_future_steps: Steps of a forecast, k; each is a number of its own.
    """

    uncombined = ()

    def __init__(self, n_future_steps: int):
        self.n_future_steps = n_future_steps
        self.names = tuple(f"forecast_error_{i}" for i in range(1, n_future_steps + 1))

    def __call__(self, view: View) -> Tensor:
        """(b, k)."""
        return torch.stack([self._error(view, ahead) for ahead in range(1, self.n_future_steps + 1)], dim=1)

    def _error(self, view: View, ahead: int) -> Tensor:
        made = view.forecasts.get(view.tick - ahead)
        if made is None:
            return view.unknown()
        now = view.latents[view.tick]
        error = 1 - frame_cosine(made[:, :, :, ahead - 1], now[:, None, None])  # (b, m, n)
        return error.amin(2).mean(1)
