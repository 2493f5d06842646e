"""Paired differences of success: exact McNemar, Newcombe's interval, and an interval over training runs.

Two populations (docs/statistics.md): `compare_counts` speaks of these checkpoints on scenes like these,
`compare_runs` of training runs like these on scenes like these.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from scipy import stats

from world_modality_core.studies.evidence.wilson import wilson_interval


@dataclass(frozen=True)
class PairCounts:
    """Pairs of episodes of the same scene, by who succeeded."""

    both: int
    # The first succeeded and the second did not.
    wins: int
    # The second succeeded and the first did not.
    losses: int
    neither: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> PairCounts:
        """Count pairs.

        Args:
            first: Successes, bool, any shape.
            second: Successes of the same scenes, in the same order.
        """
        wins, losses = int((first & ~second).sum()), int((~first & second).sum())
        both = int((first & second).sum())
        return cls(both, wins, losses, first.size - both - wins - losses)

    @property
    def n(self) -> int:
        """Pairs."""
        return self.both + self.wins + self.losses + self.neither

    @property
    def difference(self) -> float:
        """Success rate of the first minus that of the second."""
        return (self.wins - self.losses) / self.n

    @property
    def discordance(self) -> float:
        """Share of pairs in which only one of the two succeeded."""
        return (self.wins + self.losses) / self.n


@dataclass(frozen=True)
class PairedResult:
    """A difference of success rates with its interval and its two-sided p-value."""

    difference: float
    low: float
    high: float
    p: float


@dataclass(frozen=True)
class RunsResult(PairedResult):
    """The same over training runs."""

    standard_error: float
    n_runs: int


def compare_counts(counts: PairCounts, confidence: float = 0.95) -> PairedResult:
    """Newcombe's interval and the exact McNemar test."""
    low, high = newcombe_interval(counts, confidence)
    tail = stats.binom.cdf(min(counts.wins, counts.losses), counts.wins + counts.losses, 0.5)
    return PairedResult(counts.difference, low, high, min(1.0, 2 * float(tail)))


def newcombe_interval(counts: PairCounts, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a difference of paired success rates: the two Wilson intervals, put together.

    Newcombe (1998), "Improved confidence intervals for the difference between binomial proportions based on paired
    data", Statistics in Medicine 17:2635-2650, method 10.

    Args:
        counts: The pairs.
        confidence: Level of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bound, each in [-1, 1].
    """
    first, second = counts.both + counts.wins, counts.both + counts.losses
    n = counts.n
    (low_1, high_1), (low_2, high_2) = wilson_interval(first, n, confidence), wilson_interval(second, n, confidence)
    rate_1, rate_2 = first / n, second / n
    # Correlation of the two outcomes, with Newcombe's continuity correction where it is positive.
    covariance = counts.both * counts.neither - counts.wins * counts.losses
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    scale = first * (n - first) * second * (n - second)
    phi = covariance / sqrt(scale) if scale else 0.0
    below = (rate_1 - low_1) ** 2 - 2 * phi * (rate_1 - low_1) * (high_2 - rate_2) + (high_2 - rate_2) ** 2
    above = (rate_2 - low_2) ** 2 - 2 * phi * (rate_2 - low_2) * (high_1 - rate_1) + (high_1 - rate_1) ** 2
    difference = counts.difference
    return max(-1.0, difference - sqrt(max(below, 0.0))), min(1.0, difference + sqrt(max(above, 0.0)))


def compare_runs(differences: Sequence[np.ndarray], confidence: float = 0.95) -> RunsResult | None:
    """Interval of the mean difference over training runs: t with (runs - 1) degrees of freedom.

    The runs are random and crossed with the scenes, which are random within their tasks; the tasks are fixed. Variance
    of the mean by the analysis of variance of the two-way random layout (Scheffé 1959, "The analysis of variance",
    chapter 7): that of the runs' means over the number of runs, plus what the scenes have in common over all runs.
    Deviation: runs may have the very same count by luck (two runs of 100 scenes, in one of twenty cases), so that their
    means are never taken to differ by less than one episode of one run.

    Args:
        differences: Per task (n_runs, n_scenes): 1 where only the first succeeded, -1 where only the second, else 0.
        confidence: Level of the two-sided interval, in (0, 1).

    Returns:
        The result; None for a single run, which says nothing about others.
    """
    n_runs = len(differences[0])
    if n_runs < 2:
        return None
    n_scenes = sum(task.shape[1] for task in differences)
    per_run = sum(task.sum(axis=1) for task in differences) / n_scenes
    scene_squares = residual_squares = 0.0
    scene_freedom = sum(task.shape[1] - 1 for task in differences)
    for task in differences:
        of_scenes = task.mean(axis=0, keepdims=True) - task.mean()
        of_task_runs = task.mean(axis=1, keepdims=True) - task.mean()
        scene_squares += n_runs * float((of_scenes**2).sum())
        residual_squares += float(((task - task.mean() - of_scenes - of_task_runs) ** 2).sum())
    chance = residual_squares / max((n_runs - 1) * scene_freedom, 1)
    shared = max(scene_squares / max(scene_freedom, 1) - chance, 0.0)
    of_runs = max(per_run.var(ddof=1), 1 / (n_runs * n_scenes**2))
    variance = of_runs / n_runs + shared / (n_runs * n_scenes)
    difference, error = float(per_run.mean()), sqrt(float(variance))
    half = float(stats.t.ppf((1 + confidence) / 2, n_runs - 1)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, n_runs - 1))
    return RunsResult(difference, max(-1.0, difference - half), min(1.0, difference + half), p, error, n_runs)
