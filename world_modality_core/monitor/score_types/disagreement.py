"""How much a Prophet's hypotheses, or several Prophets, disagree about what comes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from world_modality_core.monitor.score_types.score import View


class Disagreement:
    """One minus the mean cosine between two forecasts of the same step, over all pairs and all steps ahead."""

    names = ("disagreement",)
    uncombined = ()

    def __call__(self, view: View) -> Tensor:
        """(b, 1)."""
        forecasts = view.forecasts[view.tick].flatten(1, 2).flatten(-2)  # (b, m * n, k, p * d)
        n = forecasts.shape[1]
        # The squared length of a sum of unit vectors is n plus twice the sum of all pairs' cosines.
        total = F.normalize(forecasts.float(), dim=-1).sum(1).square().sum(-1)  # (b, k)
        return (1 - (total - n) / (n * (n - 1))).mean(1, keepdim=True)
