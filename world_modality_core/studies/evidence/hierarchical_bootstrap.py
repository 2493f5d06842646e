"""Hierarchical bootstrap of the three overall means: over tasks, training runs and scenes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

OVERALLS = ("episodes", "tasks", "tiers")
"""The three overall means: over all episodes, over the means of the tasks, over the means of the tiers (a tier's mean
is that of its tasks' means)."""


def overall_means(values: Sequence[np.ndarray], tiers: Sequence[str]) -> dict[str, float]:
    """The overall means.

    Args:
        values: Per task (n_runs, n_scenes) float, NaN where there is no episode.
        tiers: Each task's tier; "" where there is none.

    Returns:
        Name -> mean; without "tiers" where a task has none.
    """
    sums = np.array([[np.nansum(task)] for task in values])
    counts = np.array([[np.isfinite(task).sum()] for task in values], dtype=float)
    weights = np.ones_like(sums)
    return {name: float(mean[0]) for name, mean in _means(sums, counts, weights, weights, tiers).items()}


def bootstrap_intervals(
    values: Sequence[np.ndarray], tiers: Sequence[str], n_draws: int, seed: int, confidence: float = 0.95
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of the overall means over tasks, training runs and scenes like these.

    One draw takes tasks with replacement (within their tiers for the mean over tiers), training runs with replacement,
    the same for all tasks, and scenes with replacement within each task, the same for all runs. Runs and scenes are
    crossed: the pigeonhole bootstrap of Owen (2007), Annals of Applied Statistics 1:386-411, which errs on the side of
    wide intervals where episodes are mostly chance. With few runs or tasks percentiles err on the narrow side
    (docs/statistics.md has the coverage).

    Args:
        values: Per task (n_runs, n_scenes) float, NaN where there is no episode; the same runs in all tasks.
        tiers: Each task's tier; "" where there is none.
        n_draws: Draws.
        seed: Seed of the draws.
        confidence: Level of the two-sided intervals, in (0, 1).

    Returns:
        Name of the mean -> lower and upper bound.
    """
    rng = np.random.default_rng(seed)
    n_runs = len(values[0])
    run_weights = _resample(rng, n_runs, n_draws)
    sums, counts = np.empty((len(values), n_draws)), np.empty((len(values), n_draws))
    for i, task in enumerate(values):
        scene_weights = _resample(rng, task.shape[1], n_draws)
        is_there = np.isfinite(task)
        sums[i] = ((run_weights @ np.where(is_there, task, 0.0)) * scene_weights).sum(axis=1)
        counts[i] = ((run_weights @ is_there.astype(float)) * scene_weights).sum(axis=1)
    task_weights = _resample(rng, len(values), n_draws).T
    weights_in_tiers = np.empty_like(task_weights)
    for tier in sorted(set(tiers)):  # the order of a set of texts, and with it the draws, differs between processes
        members = [i for i, of_task in enumerate(tiers) if of_task == tier]
        weights_in_tiers[members] = _resample(rng, len(members), n_draws).T
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    # A draw may hold no episode of a task whose scenes differ between runs: it says nothing and is left out.
    return {
        name: tuple(float(bound) for bound in np.nanquantile(draws, tails))
        for name, draws in _means(sums, counts, task_weights, weights_in_tiers, tiers).items()
    }


def _resample(rng: np.random.Generator, n: int, n_draws: int) -> np.ndarray:
    """(n_draws, n) how often each of n units is in each draw."""
    drawn = rng.integers(n, size=(n_draws, n)) + n * np.arange(n_draws)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_draws).reshape(n_draws, n).astype(float)


def _means(sums, counts, weights, weights_in_tiers, tiers: Sequence[str]) -> dict[str, np.ndarray]:
    """(n_draws,) of each overall mean, from (n_tasks, n_draws) sums, counts and weights."""
    with np.errstate(invalid="ignore", divide="ignore"):
        per_task = sums / counts
        means = {
            "episodes": (weights * sums).sum(axis=0) / (weights * counts).sum(axis=0),
            "tasks": (weights * per_task).sum(axis=0) / weights.sum(axis=0),
        }
        if all(tiers):
            of_tiers = []
            for tier in sorted(set(tiers)):
                members = [i for i, of_task in enumerate(tiers) if of_task == tier]
                of_tiers.append(np.average(per_task[members], axis=0, weights=weights_in_tiers[members]))
            means["tiers"] = np.mean(of_tiers, axis=0)
    return means
