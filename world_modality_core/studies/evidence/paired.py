"""Paired differences, each with an interval and a p-value, for three populations (docs/statistics.md).

    compare_scenes   these checkpoints, on scenes like these of these tasks
    compare_runs     training runs like these, in these tasks
    compare_tasks    training runs (of models) and tasks like these

A wider population never has a narrower interval or a smaller p-value than the one that it contains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import sqrt

import numpy as np
from scipy import stats
from scipy.special import betainc, ndtr, ndtri, stdtrit

MIN_TASKS = 5
"""With fewer tasks nothing is said of tasks like these: t with three degrees of freedom or less."""
MANY_SCENES = 30
"""From here on what scenes have in common in all training runs is taken to be known."""


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

    def within(self, narrower: PairedResult) -> PairedResult:
        """The same, never surer than the result of a narrower population."""
        return replace(
            self, low=min(self.low, narrower.low), high=max(self.high, narrower.high), p=max(self.p, narrower.p)
        )


@dataclass(frozen=True)
class ScenesResult(PairedResult):
    """For these checkpoints, on scenes like these of these tasks."""

    # Pairs that are worth as much as these if every pair were of a scene of its own.
    n_effective: float
    # Probability that the first succeeds more often, under Jeffreys' prior.
    probability_ahead: float


@dataclass(frozen=True)
class RunsResult(PairedResult):
    """For training runs like these."""

    standard_error: float
    # What the standard error would be if training runs did not differ: nothing smaller is believed.
    chance_error: float
    n_runs: int
    # Probability that the first is ahead in the mean of such runs, under a flat prior.
    probability_ahead: float


@dataclass(frozen=True)
class TasksResult(PairedResult):
    """For tasks like these; the difference is the mean over tasks."""

    standard_error: float
    n_tasks: int


def compare_scenes(differences: Sequence[np.ndarray], confidence: float = 0.95) -> ScenesResult:
    """Exact test by flipping signs scene by scene, and Tango's score interval.

    A scene is the same in all training runs, so that its pairs are not independent: whatever a scene has for one side,
    it has in every run. Without an effect the differences of a scene are as likely as their opposites; the p-value is
    exact over all flips (Fisher's randomisation test). With one training run that is the exact McNemar test. The
    interval is that of as many independent pairs as these are worth.

    Args:
        differences: Per task (n_runs, n_scenes): 1 where only the first succeeded, -1 where only the second, else 0.
        confidence: Level of the two-sided interval, in (0, 1).
    """
    return compare_scenes_of_groups([differences], confidence)[0]


def compare_scenes_of_groups(groups: Sequence[Sequence[np.ndarray]], confidence: float = 0.95) -> list[ScenesResult]:
    """`compare_scenes` of several groups of tasks at once: the intervals' searches are what takes the time."""
    n = np.array([sum(task.size for task in tasks) for tasks in groups])
    n_effective = n / np.array([design_effect(tasks, confidence) for tasks in groups])
    wins, losses = (
        np.array([sum(int((sign * task > 0).sum()) for task in tasks) for tasks in groups]) for sign in (1, -1)
    )
    low, high = tango_interval(wins * n_effective / n, losses * n_effective / n, n_effective, confidence)
    p = [flip_p(np.concatenate([task.sum(axis=0) for task in tasks])) for tasks in groups]
    share_of_n = n_effective / n
    ahead = 1 - betainc(wins * share_of_n + 0.5, losses * share_of_n + 0.5, 0.5)
    columns = ((wins - losses) / n, low, high, p, n_effective, ahead)
    return [ScenesResult(*map(float, row)) for row in zip(*columns, strict=True)]


def design_effect(values: Sequence[np.ndarray], confidence: float = 0.95) -> float:
    """How much larger the variance of a mean is than with a scene of its own for every episode; at least 1.

    The variance of cluster sampling over that of simple random sampling within strata (Kish 1965, "Survey sampling"),
    the tasks and training runs as strata, the scenes as clusters. Fewer than `MANY_SCENES` tell little of it: times
    the squared quantile of t with their degrees of freedom over the normal one (Korn and Graubard 1998, Survey
    Methodology 24:193-201). A single scene of each task tells nothing of it: its runs may all be one then.

    Args:
        values: Per task (n_runs, n_scenes), NaN where there is no episode.
        confidence: Level of the interval that is made with it, in (0, 1).
    """
    n_runs, n = len(values[0]), sum(int(np.isfinite(task).sum()) for task in values)
    clustered = independent = freedom = 0.0
    for task in values:
        n_scenes = task.shape[1]
        if n_scenes < 2 or np.isnan(task).all():
            continue
        counts = np.isfinite(task).sum(axis=1, keepdims=True)
        residual = task - np.nansum(task, axis=1, keepdims=True) / np.maximum(counts, 1)
        clustered += float((np.nansum(residual, axis=0) ** 2).sum())
        independent += float(np.nansum(residual**2))
        freedom += n_scenes - 1
    if n_runs == 1:
        return 1.0
    if not freedom:
        return float(min(n_runs, n))
    effect = max(1.0, clustered / independent) if independent else 1.0
    if freedom < MANY_SCENES:
        quantile = (1 + confidence) / 2
        effect *= (stdtrit(freedom, quantile) / ndtri(quantile)) ** 2
    return float(min(effect, n))


def flip_p(sums: np.ndarray) -> float:
    """Two-sided p-value of a sum of integers, each as likely as its opposite; exact over all signs.

    Args:
        sums: (n,) integers.
    """
    sizes, counts = np.unique(np.abs(sums), return_counts=True)
    pmf = np.ones(1)  # of the sum of the sizes whose sign is +
    for size, count in zip(sizes.tolist(), counts.tolist(), strict=True):
        if size:
            spread = np.zeros(size * count + 1)
            spread[::size] = stats.binom.pmf(np.arange(count + 1), count, 0.5)
            pmf = np.convolve(pmf, spread)
    plus = int(sums[sums > 0].sum())
    tail = pmf[min(plus, len(pmf) - 1 - plus) :: -1].sum()
    return float(min(1.0, 2 * tail))


def tango_score(difference, wins, losses, n, correction=0.0):
    """Tango's score statistic of a difference; standard normal if that is the true one. All broadcast.

    `correction` is taken off the wins: 0.5 and -0.5 are the usual corrections for continuity.

    Tango (1998), "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17:891-908.
    """
    b = (2 * n - wins + losses) * difference - wins - losses
    c = -losses * difference * (1 - difference)
    losing = (np.sqrt(np.maximum(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
    variance = n * (2 * losing + difference * (1 - difference))
    return (wins - losses - n * difference - correction) / np.sqrt(np.maximum(variance, 1e-300))


def tango_interval(wins, losses, n, confidence: float = 0.95):
    """Differences that Tango's score test doesn't reject.

    Args:
        wins, losses: Pairs that only the first, or only the second won; any shape, need not be whole.
        n: Pairs.
        confidence: Level of the two-sided interval, in (0, 1).

    Returns:
        Lower and upper bounds, each in [-1, 1].
    """
    wins, losses, n = (np.asarray(value, dtype=float) for value in (wins, losses, n))
    z = float(ndtri((1 + confidence) / 2))
    shape = np.broadcast(wins, n).shape
    target = np.array([z, -z]).reshape(2, *(1 for _ in shape))  # of the lower bound and of the upper one
    low, high = np.full((2, *shape), -1.0), np.full((2, *shape), 1.0)
    for _ in range(40):  # to 1e-12; the score falls as the difference grows
        middle = (low + high) / 2
        is_below = tango_score(middle, wins, losses, n) > target
        low, high = np.where(is_below, middle, low), np.where(is_below, high, middle)
    return low[0], high[1]


def compare_runs(
    differences: Sequence[np.ndarray], scenes: ScenesResult, confidence: float = 0.95
) -> RunsResult | None:
    """The mean difference over training runs: t with (runs - 1) degrees of freedom.

    The runs are random and crossed with the scenes, which are random within their tasks; the tasks are fixed. Variance
    of the mean by the analysis of variance of the two-way random layout (Scheffé 1959, "The analysis of variance",
    chapter 7): that of the runs' means over the number of runs, plus what the scenes have in common over all runs.
    Deviation: the runs' means can't differ by less than chance makes them, so that runs that agree by luck don't make
    the interval narrow.

    Args:
        differences: Per task (n_runs, n_scenes): 1 where only the first succeeded, -1 where only the second, else 0.
        scenes: The same for these checkpoints.
        confidence: Level of the two-sided interval, in (0, 1).

    Returns:
        The result; None for a single run, which says nothing about others.
    """
    n_runs = len(differences[0])
    if n_runs < 2:
        return None
    n_scenes = sum(task.shape[1] for task in differences)
    per_run = sum(task.sum(axis=1) for task in differences) / n_scenes
    shared, chance = _scene_components(differences)
    of_chance = max(chance / n_scenes, 1 / (n_runs * n_scenes**2))
    of_scenes = shared / (n_runs * n_scenes)
    difference = float(per_run.mean())
    error = sqrt(max(float(per_run.var(ddof=1)), of_chance) / n_runs + of_scenes)
    result = _t_result(difference, error, n_runs - 1, confidence).within(scenes)
    return RunsResult(
        **result.__dict__,
        standard_error=error,
        chance_error=sqrt(of_chance / n_runs + of_scenes),
        n_runs=n_runs,
        probability_ahead=float(stats.t.cdf(difference / error, n_runs - 1)),
    )


def _scene_components(differences: Sequence[np.ndarray]) -> tuple[float, float]:
    """(n_runs times the variance that a scene has in all runs, that of a single episode)."""
    n_runs = len(differences[0])
    scene_squares = residual_squares = 0.0
    freedom = max(sum(task.shape[1] - 1 for task in differences), 1)
    for task in differences:
        of_scenes = task.mean(axis=0, keepdims=True) - task.mean()
        of_task_runs = task.mean(axis=1, keepdims=True) - task.mean()
        scene_squares += n_runs * float((of_scenes**2).sum())
        residual_squares += float(((task - task.mean() - of_scenes - of_task_runs) ** 2).sum())
    chance = residual_squares / ((n_runs - 1) * freedom) if n_runs > 1 else scene_squares / freedom
    return max(scene_squares / freedom - chance, 0.0), chance


def _t_result(difference: float, error: float, freedom: float, confidence: float) -> PairedResult:
    half = float(stats.t.ppf((1 + confidence) / 2, freedom)) * error
    p = float(2 * stats.t.sf(abs(difference) / error, freedom)) if error else float(difference == 0)
    return PairedResult(difference, max(-1.0, difference - half), min(1.0, difference + half), p)


def compare_tasks(
    differences: Sequence[np.ndarray], narrower: PairedResult, runs_vary: bool, confidence: float = 0.95
) -> TasksResult | None:
    """The mean difference over tasks: t with (tasks - 1) degrees of freedom or fewer.

    Tasks are random and crossed with the training runs. The variance of the tasks' means holds everything but what a
    training run has in all tasks, which is added; degrees of freedom by Satterthwaite (1946), Biometrics Bulletin
    2:110-114.

    Args:
        differences: Per task (n_runs, n_scenes): 1 where only the first succeeded, -1 where only the second, else 0.
        narrower: The result over training runs, or for these checkpoints.
        runs_vary: Whether the training runs are a sample too.
        confidence: Level of the two-sided interval, in (0, 1).

    Returns:
        The result; None below `MIN_TASKS` tasks.
    """
    n_tasks = len(differences)
    if n_tasks < MIN_TASKS:
        return None
    means = np.array([task.mean(axis=1) for task in differences]).T  # (n_runs, n_tasks)
    n_runs = len(means)
    of_tasks = float(means.mean(axis=0).var(ddof=1)) / n_tasks
    variance, freedom = of_tasks, float(n_tasks - 1)
    if runs_vary:
        residual = means - means.mean(axis=0) - means.mean(axis=1, keepdims=True) + means.mean()
        of_residual = float((residual**2).sum()) / ((n_runs - 1) * (n_tasks - 1)) / (n_runs * n_tasks)
        of_runs = float(means.mean(axis=1).var(ddof=1)) / n_runs
        if of_runs > of_residual:
            variance += of_runs - of_residual
            parts = of_tasks**2 / freedom + of_runs**2 / (n_runs - 1)
            parts += of_residual**2 / ((n_runs - 1) * (n_tasks - 1))
            freedom = max(1.0, variance**2 / parts)
    difference = float(means.mean())
    error = sqrt(variance)
    result = _t_result(difference, error, freedom, confidence).within(narrower)
    return TasksResult(**result.__dict__, standard_error=error, n_tasks=n_tasks)


def compare_partly_overlapping(
    differences: Sequence[np.ndarray], alone: Sequence[tuple[np.ndarray, np.ndarray]], confidence: float = 0.95
) -> PairedResult | None:
    """Difference over common scenes and over those that only one side has, each weighed by the inverse of its variance.

    The optimal pooled estimate of partly overlapping samples (Dubnicka, Blair and Hettmansperger 2002, Journal of
    Modern Applied Statistical Methods 1:32-41), with normal quantiles. Each variance has two scenes more, at the ends
    of what is possible: sides that always succeed don't make it 0. Both estimates give every task the share that it
    has of the common scenes: else a task with other scenes would count twice.

    Args:
        differences: Per task (n_runs, n_scenes): first minus second on common scenes.
        alone: Per task the rates of the scenes of the first side only, (n,), and of the second only, (m,).
        confidence: Of the interval.

    Returns:
        None unless every task has scenes of both.
    """
    if not alone or not all(len(a) and len(b) for a, b in alone):
        return None
    scenes = [difference.mean(0) for difference in differences]
    weights = np.array([len(each) for each in scenes]) / sum(map(len, scenes))
    paired = weights @ [each.mean() for each in scenes]
    paired_variance = weights**2 @ [_variance(each, -1.0) / len(each) for each in scenes]
    unpaired = weights @ [a.mean() - b.mean() for a, b in alone]
    unpaired_variance = weights**2 @ [_variance(a, 0.0) / len(a) + _variance(b, 0.0) / len(b) for a, b in alone]
    share = unpaired_variance / (paired_variance + unpaired_variance)
    difference = share * paired + (1 - share) * unpaired
    error = sqrt(paired_variance * share)  # of the weighted mean: 1 / (1 / v + 1 / w)
    reach = ndtri((1 + confidence) / 2) * error
    p = 2 * ndtr(-abs(difference) / error)
    return PairedResult(
        float(difference), max(-1.0, float(difference - reach)), min(1.0, float(difference + reach)), float(p)
    )


def _variance(values: np.ndarray, least: float) -> float:
    """Of scenes whose values lie in [least, 1], and of one more at either end."""
    return float(np.var([*values, least, 1.0], ddof=1))


def heterogeneity_p(differences: Sequence[np.ndarray]) -> float | None:
    """Whether the difference is another one in other tasks, for these checkpoints: Welch's F test.

    Welch (1951), "On the comparison of several mean values", Biometrika 38:330-336: tasks may be unequally noisy. (To
    deal the scenes to the tasks at random would ask whether tasks differ in anything, and finds that one of few scenes
    is harder.) Scenes keep what they had in all training runs. Deviation: each task has one more scene of the kind
    that all have, since one without discordant pairs isn't without noise.

    Args:
        differences: Per task (n_runs, n_scenes): 1 where only the first succeeded, -1 where only the second, else 0.

    Returns:
        The p-value; None for a single task.
    """
    n_tasks = len(differences)
    if n_tasks < 2:
        return None
    sums = [task.sum(axis=0).astype(float) for task in differences]
    of_all = float(np.var(np.concatenate(sums), ddof=1))
    if of_all == 0:
        return 1.0
    freedom = np.array([max(len(task) - 1, 1) for task in sums])
    squares = np.array([((task - task.mean()) ** 2).sum() for task in sums])
    weight = np.array([len(task) for task in sums]) * freedom / (squares + of_all)
    share = weight / weight.sum()
    means = np.array([task.mean() for task in sums])
    between = float((weight * (means - share @ means) ** 2).sum()) / (n_tasks - 1)
    spread = float(((1 - share) ** 2 / freedom).sum())
    statistic = between / (1 + 2 * (n_tasks - 2) / (n_tasks**2 - 1) * spread)
    return float(stats.f.sf(statistic, n_tasks - 1, (n_tasks**2 - 1) / (3 * spread)))


def margin_p(counts: PairCounts, scenes: ScenesResult, runs: RunsResult | None, margin: float) -> tuple[float, float]:
    """One-sided p-values of "the first is not worse by `margin`" and "it is not better by `margin`".

    The larger of the two is that of equivalence (two one-sided tests, Schuirmann 1987, Journal of Pharmacokinetics and
    Biopharmaceutics 15:657-680). Tango's score test, and t over training runs where there are several: the larger one.
    Corrected for continuity: without that, 25 pairs that all agree show "as good" within 10 points, and do so in 7 %
    of studies where the second has these 10 points.

    Args:
        counts: The pairs.
        scenes: The difference for these checkpoints.
        runs: The same over training runs.
        margin: Difference of success rates, in (0, 1).
    """
    share = scenes.n_effective / counts.n
    wins, losses, n = counts.wins * share, counts.losses * share, scenes.n_effective
    not_worse = float(ndtr(-tango_score(-margin, wins, losses, n, 0.5)))
    not_better = float(ndtr(tango_score(margin, wins, losses, n, -0.5)))
    if runs is not None:
        freedom, error = runs.n_runs - 1, runs.standard_error
        not_worse = max(not_worse, float(stats.t.sf((runs.difference + margin) / error, freedom)))
        not_better = max(not_better, float(stats.t.cdf((runs.difference - margin) / error, freedom)))
    return not_worse, not_better
