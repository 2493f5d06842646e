"""Adjusted p-values of families of hypotheses that are tested together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (Holm 1979, "A simple sequentially rejective multiple test procedure", Scandinavian
    Journal of Statistics 6:65-70).

    As statsmodels' `multipletests`, which collects Python's garbage at each call: a second where torch is loaded.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(np.maximum.accumulate(np.asarray(p_values)[order] * factors), 1.0)
    return adjusted.tolist()


def shaffer(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Adjusted p-values of pairs of hypotheses that can't both be true: "worse" and "better" by a margin.

    Shaffer (1986), "Modified sequentially rejective multiple test procedures", Journal of the American Statistical
    Association 81:826-831: as Holm, but each p is multiplied by how many of the hypotheses that are left may be true
    at once, one of each pair. Holm on either side alone would show "as good" wrongly twice as often.
    """
    p_values = np.asarray(pairs, dtype=float).ravel()
    adjusted, left, largest = np.empty_like(p_values), [2] * len(pairs), 0.0
    for i in np.argsort(p_values):
        largest = max(largest, p_values[i] * np.count_nonzero(left))
        adjusted[i] = min(1.0, largest)
        left[i // 2] -= 1
    return [(float(a), float(b)) for a, b in adjusted.reshape(-1, 2)]
