"""Baseline: the policy's successive plans contradict each other.

After STAC (Agia et al., arXiv:2410.04640), which compares samples of two successive distributions of chunks by MMD;
here the two chunks that were made, since most policies are asked for one.
"""

from __future__ import annotations

from torch import Tensor

from world_modality_core.monitor.score_types.score import View


class ChunkDisagreement:
    """Root mean square difference of the last two plans where they overlap, in the policy's normalised units.

    Its own normalisation makes it comparable within a policy only: it is calibrated on rows of that policy
    (`wm-monitor fit --rows`), and left out of the combination elsewhere.
    """

    names = ("chunk_disagreement",)
    uncombined = names

    def __call__(self, view: View) -> Tensor:
        """(b, 1)."""
        if len(view.plans) < 2:
            return view.unknown()[:, None]
        (first, before), (second, now) = view.plans
        n_common = min(before.shape[1] - (second - first), now.shape[1])
        if n_common < 1:
            return view.unknown()[:, None]
        start = second - first
        apart = now[:, :n_common] - before[:, start : start + n_common]
        return apart.float().square().mean((1, 2)).sqrt()[:, None]
