"""Intervals for success rates."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a success rate.

    Args:
        successes: Episodes that succeeded.
        n: Episodes.
        confidence: Level of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bound, each in [0, 1].

    Raises:
        ValueError: if not 0 <= successes <= n, n < 1, or the level is outside (0, 1).
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"successes={successes} of n={n}: expected n >= 1 and 0 <= successes <= n")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a level between 0 and 1, such as 0.95")
    low, high = binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return float(low), float(high)
