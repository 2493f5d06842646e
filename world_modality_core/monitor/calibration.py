"""From raw scores to alarms at a promised rate: split conformal over the episodes' maxima, by task and phase.

What is promised: of successful episodes that are exchangeable with those calibrated on, at most a share
`false_alarm_rate` has any alarm at all, from first step to last. On what it rests: half of the calibration episodes
(`shape`) say how scores are turned into one number, the other half (`hold`) say where the line is; for that half the
number is a fixed function, and so the ceil((n + 1)(1 - rate))-th smallest of their n maxima is exceeded by a new
episode's maximum with probability at most `rate` (split conformal: Lei et al., arXiv:1604.04173), over the
draw of both the new episode and the calibration episodes, whatever the scores are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from world_modality_core.io.errors import ConfigError

# Episodes of a task that say how scores are combined, at least.
MIN_SHAPE = 5


@dataclass
class EpisodeScores:
    """Raw scores of an episode.

    Attributes:
        task: Number of its task.
        steps: (n,) int64 step of each tick.
        values: (n, c) float64 raw scores; NaN where one couldn't be told.
    """

    task: int
    steps: np.ndarray
    values: np.ndarray


def n_hold_needed(rate: float) -> int:
    """Episodes of a task that a promise of `rate` needs at least."""
    return math.ceil(1 / rate - 1 - 1e-9)


def conformal_quantile(maxima: np.ndarray, rate: float) -> float:
    """The ceil((n + 1)(1 - rate))-th smallest of n maxima.

    Raises:
        ValueError: if n is too small.
    """
    rank = math.ceil((len(maxima) + 1) * (1 - rate) - 1e-9)
    if rank > len(maxima):
        raise ValueError(f"{len(maxima)} episodes can't promise a rate of {rate}: it takes {n_hold_needed(rate)}")
    return float(np.sort(maxima)[rank - 1])


def split_in_two(n: int, rate: float, rng: np.random.Generator, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Draw which of n episodes of a task are `shape`, and which are `hold`.

    Raises:
        ConfigError: if there are too few.
    """
    needed = n_hold_needed(rate)
    if n < needed + MIN_SHAPE:
        raise ConfigError(
            f"false_alarm_rate={rate}: {what} has {n} successful episodes to calibrate on, and this rate needs "
            f"{needed + MIN_SHAPE} ({MIN_SHAPE} to combine scores, {needed} to set the threshold); give more, or a "
            f"rate of {1 / max(2, n - MIN_SHAPE + 1):.3f} or more"
        )
    order = rng.permutation(n)
    n_hold = max(needed, min(n // 2, n - MIN_SHAPE))
    return np.sort(order[n_hold:]), np.sort(order[:n_hold])


class Calibration:
    """How raw scores become one level, and where its line is.

    Args:
        lengths: (tasks,) usual length of a successful episode, in steps.
        n_phases: Phases of an episode, f: equal parts of that length; the last one goes on until the end.
        groups: c numbers: which of the c raw scores count as one in the combination; -1 for those that aren't in it.
        window: Ticks over which the combined score is averaged.
        maxima: (tasks, f, c, n) float32 maxima of the raw scores in each phase, sorted, one for each of the first
            `count` shape episodes.
        count: (tasks, f, c) int64; 0 for a score that is left out.
        mean: (tasks, f) float64 of the combined score's maxima in each phase, over the shape episodes.
        std: (tasks, f) float64.
        quantile: (tasks,) float64: the level above which there is an alarm.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        n_phases: int,
        groups: Sequence[int],
        window: int,
        maxima: np.ndarray,
        count: np.ndarray,
        mean: np.ndarray,
        std: np.ndarray,
        quantile: np.ndarray,
    ):
        self.lengths, self.n_phases, self.window = np.asarray(lengths), n_phases, window
        self.maxima, self.count, self.mean, self.std, self.quantile = maxima, count, mean, std, quantile
        self.groups = np.asarray(groups)
        self._curves = {
            place: _curve(maxima[place][: count[place]].astype(np.float64)) for place in np.ndindex(count.shape)
        }

    def phase(self, task: int | np.ndarray, step: int | np.ndarray) -> np.ndarray:
        """Phase of a step."""
        return phase_of(self.lengths[task], step, self.n_phases)

    def surprise(self, task: int, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Raw scores (n, c) at steps (n,) as -log of their conformal p-values (n, c), in nats; NaN stays NaN.

        A p-value says which share of successful episodes had a maximum as high in that phase. Above all of them it is
        carried on by an exponential tail with the mean excess of their upper half: else the strangest moments would
        be equal, and no line could be drawn between them.
        """
        phases = self.phase(task, steps)
        out = np.full(values.shape, np.nan)
        for phase in np.unique(phases):
            rows = phases == phase
            for i in range(values.shape[1]):
                out[rows, i] = _apply(self._curves[task, phase, i], values[rows, i])
        return out

    def combined(self, task: int, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(n,) mean surprise over the groups of scores that can be told, averaged over the last `window` ticks."""
        return trailing_mean(self._instant(task, steps, values), self.window)

    def _instant(self, task: int, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
        surprise = self.surprise(task, steps, values)
        grouped = [_mean(surprise[:, self.groups == group]) for group in np.unique(self.groups[self.groups >= 0])]
        return np.nan_to_num(_mean(np.stack(grouped, axis=1)), nan=0.0)

    def level(self, task: int, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
        """(n,) combined scores in standard deviations of the phase's maxima, over their mean: comparable in phases."""
        phases = self.phase(task, steps)
        return (self.combined(task, steps, values) - self.mean[task, phases]) / self.std[task, phases]

    def live(self, tasks: Sequence[int]) -> LiveLevel:
        """The same, tick by tick."""
        return LiveLevel(self, tasks)


class LiveLevel:
    """Levels of b episodes while they run.

    Args:
        calibration: How scores are combined.
        tasks: b numbers of tasks.
    """

    def __init__(self, calibration: Calibration, tasks: Sequence[int]):
        self.calibration, self.tasks = calibration, tasks
        self._last: deque[np.ndarray] = deque(maxlen=calibration.window)

    def __call__(self, step: int, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Levels (b,) and whether there is an alarm (b,), from raw scores (b, c) at a step."""
        this, steps = self.calibration, np.array([step])
        instant = [this._instant(task, steps, row[None])[0] for task, row in zip(self.tasks, values, strict=True)]
        self._last.append(np.array(instant))
        phases = this.phase(np.asarray(self.tasks), step)
        level = (np.mean(self._last, axis=0) - this.mean[self.tasks, phases]) / this.std[self.tasks, phases]
        return level, level > this.quantile[self.tasks]


def phase_of(length: int | np.ndarray, step: int | np.ndarray, n_phases: int) -> np.ndarray:
    """Which of `n_phases` equal parts of a usual length a step is in; the last one goes on until the end."""
    return np.minimum(np.asarray(step) * n_phases // length, n_phases - 1)


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and those before it, `window` at most."""
    sums = np.cumsum(np.r_[0.0, values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


def calibrate(
    episodes: Sequence[EpisodeScores],
    tasks: Sequence[str],
    lengths: Sequence[int],
    n_phases: int,
    groups: Sequence[int],
    window: int,
    rate: float,
    split: dict[int, tuple[np.ndarray, np.ndarray]],
) -> Calibration:
    """Calibrate on successful episodes.

    Args:
        episodes: Their raw scores.
        tasks: Names, for messages.
        lengths: Usual length of each task's successful episodes, in steps; not from the `hold` episodes.
        n_phases, groups, window: As for `Calibration`.
        rate: Share of successful episodes that may have an alarm.
        split: Task -> numbers of its `shape` and of its `hold` episodes.
    """
    n_tasks, c = len(tasks), len(groups)
    widest = max(len(shape) for shape, _ in split.values())
    maxima = np.zeros((n_tasks, n_phases, c, widest), dtype=np.float32)
    count = np.zeros((n_tasks, n_phases, c), dtype=np.int64)
    mean, std = np.zeros((n_tasks, n_phases)), np.ones((n_tasks, n_phases))
    quantile = np.zeros(n_tasks)

    def made() -> Calibration:
        return Calibration(lengths, n_phases, groups, window, maxima, count, mean, std, quantile)

    for task, (shape, _) in split.items():
        for phase in range(n_phases):
            found = [_phase_maxima(episodes[i], lengths[task], n_phases, phase) for i in shape]
            for j in range(c):
                column = np.sort([row[j] for row in found if np.isfinite(row[j])])
                maxima[task, phase, j, : len(column)], count[task, phase, j] = column, len(column)
            if phase and not count[task, phase].any():  # no shape episode comes so far: as in the phase before
                maxima[task, phase], count[task, phase] = maxima[task, phase - 1], count[task, phase - 1]
    first = made()
    for task, (shape, _) in split.items():
        combined = [first.combined(task, episodes[i].steps, episodes[i].values) for i in shape]
        phases = [first.phase(task, episodes[i].steps) for i in shape]
        for phase in range(n_phases):
            tops = [row[of == phase].max() for row, of in zip(combined, phases, strict=True) if (of == phase).any()]
            if len(tops) > 1:
                mean[task, phase], std[task, phase] = np.mean(tops), max(float(np.std(tops, ddof=1)), 1e-3)
            elif phase:
                mean[task, phase], std[task, phase] = mean[task, phase - 1], std[task, phase - 1]
    second = made()
    for task, (_, hold) in split.items():
        tops = np.array([second.level(task, episodes[i].steps, episodes[i].values).max() for i in hold])
        quantile[task] = conformal_quantile(tops, rate)
    return made()


def _phase_maxima(episode: EpisodeScores, length: int, n_phases: int, phase: int) -> np.ndarray:
    """(c,) maxima of an episode's raw scores in a phase; NaN where there is none."""
    rows = episode.values[phase_of(length, episode.steps, n_phases) == phase]
    known = np.where(np.isnan(rows), -np.inf, rows)
    top = known.max(0, initial=-np.inf)
    return np.where(np.isfinite(top), top, np.nan)


def _curve(maxima: np.ndarray) -> tuple[np.ndarray, np.ndarray, float] | None:
    """Places, their surprise, and the tail's scale, from sorted maxima; None without any."""
    n = len(maxima)
    if not n:
        return None
    places, first = np.unique(maxima, return_index=True)
    surprise = -np.log((n - first) / (n + 1))  # n - first episodes had a maximum at least as high
    half = maxima[n // 2 :]
    excess = float((half - half[0]).mean())
    return places, surprise, max(excess, 1e-6 + 1e-3 * abs(float(places[-1])))


def _apply(curve: tuple[np.ndarray, np.ndarray, float] | None, values: np.ndarray) -> np.ndarray:
    if curve is None:
        return np.full(len(values), np.nan)
    places, surprise, scale = curve
    return np.interp(values, places, surprise, left=0.0) + np.maximum(values - places[-1], 0.0) / scale


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis of what is not NaN; NaN where all is."""
    is_known = ~np.isnan(values)
    n = is_known.sum(-1)
    total = np.where(is_known, values, 0.0).sum(-1)
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)
