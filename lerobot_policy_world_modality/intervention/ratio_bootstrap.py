"""Intervals of a ratio by resampling whole episodes: frames of one episode are too alike to count as independent."""

from __future__ import annotations

import numpy as np


def bootstrap_ratio(
    numerator: np.ndarray, denominator: np.ndarray, n_resamples: int, seed: int, confidence: float = 0.95
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ratio of sums over episodes (which is the ratio of means over frames), and its percentile interval.

    Args:
        numerator: (e, ...) sum over the frames of each episode.
        denominator: (e, ...) sum of what it is compared with, or number of frames.
        n_resamples: Draws of e episodes out of e, with replacement.
        seed: Seed of the draws.
        confidence: Level of the interval, in (0, 1).

    Returns:
        Ratio, lower and upper bound, each (...). NaN where nothing was counted; the bounds are NaN too where fewer than
        two episodes were.
    """
    numerator, denominator = np.asarray(numerator, float), np.asarray(denominator, float)
    n = len(numerator)
    shape = numerator.shape[1:]
    flat = [values.reshape(n, -1) for values in (numerator, denominator)]
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = flat[0].sum(0) / flat[1].sum(0)
        if n < 2:
            low = high = np.full_like(ratio, np.nan)
        else:
            # How often each episode is drawn: what is summed then is a matrix product.
            draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples)
            resampled = (draws @ flat[0]) / (draws @ flat[1])
            is_known = (flat[1] != 0).sum(0) >= 2
            resampled = np.where(is_known & np.isfinite(resampled), resampled, np.nan)
            low, high = np.full((2, len(ratio)), np.nan)
            tail = 50 * (1 - confidence)
            low[is_known], high[is_known] = np.nanpercentile(resampled[:, is_known], [tail, 100 - tail], axis=0)
    return ratio.reshape(shape), low.reshape(shape), high.reshape(shape)
