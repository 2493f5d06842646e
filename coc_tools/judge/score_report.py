"""From counts to a report: bootstrap intervals over episodes, the check of every metric, a table per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from coc_tools.judge.corruptions import CORRUPTIONS
from coc_tools.judge.gripper import GripperSignal
from coc_tools.judge.scores import METRICS, Case
from coc_tools.judge.words import things
from coc_tools.schema import EpisodeLabel
from world_modality_core.io.errors import ConfigError

N_DRAWS = 4
"""Corrupted versions of each episode, added up."""
MIN_EPISODES = 5
"""A metric is not trusted on fewer episodes: resampling them says nothing."""
ALL = "all"


@dataclass(frozen=True)
class FieldScore:
    """A metric over some episodes.

    Attributes:
        value: None where nothing could be counted.
        low, high: 95 % bootstrap interval over episodes; None with fewer than 2 episodes.
        n_counted: the denominator: steps, or pairs of steps.
    """

    value: float | None
    low: float | None
    high: float | None
    n_counted: float


@dataclass
class ScoreReport:
    """What `coc-eval` found.

    Attributes:
        n_reference, n_labelled: episodes of the reference, and how many of them have a label.
        n_unknown: labelled episodes that the reference does not have.
        n_episodes: task -> episodes that were scored.
        scores: task -> metric -> score, for the metrics that can be trusted; the last task is `ALL`.
        rejected: metric -> why it is left out.
        no_better_than: metric -> corruptions of these labels that score no worse than the labels.
    """

    n_reference: int
    n_labelled: int
    n_unknown: int
    n_episodes: dict[str, int]
    scores: dict[str, dict[str, FieldScore]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)
    no_better_than: dict[str, list[str]] = field(default_factory=dict)


def judge(
    labels: Mapping[int, EpisodeLabel],
    reference: Mapping[int, EpisodeLabel],
    grippers: Mapping[int, GripperSignal] | None = None,
    min_iou: float = 0.5,
    n_bootstrap: int = 2000,
    seed: int = 0,
) -> ScoreReport:
    """Score labels against a reference.

    Args:
        labels: by episode.
        reference: the true labels, by episode.
        grippers: by episode, or None where no dataset was given.
        min_iou: temporal IoU from which two steps can be the same.
        n_bootstrap: resamples of the episodes.
        seed: of the resamples and of the corruptions.

    Raises:
        ConfigError: the two have no episode in common, or an episode has another task in one than in the other.
    """
    episodes = sorted(set(labels) & set(reference))
    if not episodes:
        raise ConfigError("the labels and the reference have no episode in common")
    for episode in episodes:
        if labels[episode].task != reference[episode].task:
            raise ConfigError(
                f"episode {episode} is {labels[episode].task!r} in the labels and {reference[episode].task!r} in the "
                "reference: they are of different datasets"
            )
    tasks = [reference[episode].task for episode in episodes]
    report = ScoreReport(
        n_reference=len(reference),
        n_labelled=len(episodes),
        n_unknown=len(labels) - len(episodes),
        n_episodes={**{task: tasks.count(task) for task in sorted(set(tasks))}, ALL: len(episodes)},
    )
    report.scores = {task: {} for task in report.n_episodes}
    resamples = {task: _resamples(n, n_bootstrap, seed) for task, n in report.n_episodes.items()}
    own = {episode: labels[episode] for episode in episodes}
    true = {episode: reference[episode] for episode in episodes}
    counts = _counts(own, true, grippers, min_iou)
    unable_on_own = _undetected(own, true, grippers, min_iou, resamples[ALL], seed)
    unable_on_true = _undetected(true, true, grippers, min_iou, resamples[ALL], seed)
    for metric in METRICS:
        if metric.name not in counts:
            report.rejected[metric.name] = "needs the gripper's signal: give --dataset.repo_id or --dataset.root"
        elif len(episodes) < MIN_EPISODES:
            report.rejected[metric.name] = f"{len(episodes)} episodes are too few, expected at least {MIN_EPISODES}"
        elif unable := unable_on_true[metric.name]:
            report.rejected[metric.name] = f"on the reference itself it can't detect {' or '.join(unable)}"
        else:
            if unable := unable_on_own[metric.name]:
                report.no_better_than[metric.name] = unable
            for task, rows in resamples.items():
                mine = np.array([task in (ALL, t) for t in tasks])
                report.scores[task][metric.name] = _score(counts[metric.name][mine], rows)
    return report


Labels = Mapping[int, EpisodeLabel]
Grippers = Mapping[int, GripperSignal]


def _counts(labels: Labels, reference: Labels, grippers: Grippers | None, min_iou: float) -> dict[str, np.ndarray]:
    """Metric -> (episodes, 2) numerators and denominators, of the metrics that can be computed."""
    cases = [
        Case(labels[episode].steps, reference[episode].steps, grippers and grippers[episode], min_iou)
        for episode in reference
    ]
    metrics = [metric for metric in METRICS if grippers is not None or not metric.needs_gripper]
    return {metric.name: np.array([metric.count(case) for case in cases], dtype=float) for metric in metrics}


def _undetected(
    labels: Labels, reference: Labels, grippers: Grippers | None, min_iou: float, rows: np.ndarray, seed: int
) -> dict[str, list[str]]:
    """Metric -> the corruptions that do not lower it for certain: the interval of the paired loss reaches 0."""
    names = sorted({name for label in reference.values() for step in label.steps for name in things(step)})
    original = _counts(labels, reference, grippers, min_iou)
    unable: dict[str, list[str]] = {name: [] for name in original}
    for corruption in CORRUPTIONS:
        corrupted = {name: np.zeros_like(counts) for name, counts in original.items()}
        for draw in range(N_DRAWS):
            wrong = {e: _corrupt(label, corruption, names, [seed, e, draw]) for e, label in labels.items()}
            for name, counts in _counts(wrong, reference, grippers, min_iou).items():
                corrupted[name] += counts
        for metric in METRICS:
            if metric.name in original and corruption in metric.must_detect:
                # A corruption may leave nothing to count at all; that is not a good score.
                wrong_score = np.nan_to_num(_ratio(corrupted[metric.name][rows].sum(axis=1)))
                loss = _ratio(original[metric.name][rows].sum(axis=1)) - wrong_score
                if np.isnan(loss).all() or not np.nanquantile(loss, 0.025) > 0:
                    unable[metric.name].append(corruption)
    return unable


def _corrupt(label: EpisodeLabel, corruption: str, names: Sequence[str], seed: list[int]) -> EpisodeLabel:
    steps = CORRUPTIONS[corruption](label.steps, label.length_s, names, np.random.default_rng(seed))
    return label.model_copy(update={"steps": steps})


def _resamples(n_episodes: int, n_bootstrap: int, seed: int) -> np.ndarray:
    """(n_bootstrap, n_episodes) episodes drawn with replacement."""
    return np.random.default_rng(seed).integers(n_episodes, size=(n_bootstrap, n_episodes))


def _ratio(sums: np.ndarray) -> np.ndarray:
    """Quotients of (..., 2) sums; nan where nothing was counted."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return sums[..., 0] / sums[..., 1]


def _score(counts: np.ndarray, rows: np.ndarray) -> FieldScore:
    total = counts.sum(axis=0)
    if total[1] == 0:
        return FieldScore(None, None, None, 0)
    value = float(total[0] / total[1])
    if len(counts) < 2:
        return FieldScore(value, None, None, float(total[1]))
    low, high = np.nanquantile(_ratio(counts[rows].sum(axis=1)), [0.025, 0.975])
    return FieldScore(value, float(low), float(high), float(total[1]))


def format_report(report: ScoreReport) -> str:
    """The report as text."""
    metrics = list(report.scores[ALL])
    header = ["task", "episodes", *metrics]
    lines = [
        [task, str(report.n_episodes[task]), *(_cell(scores[metric]) for metric in metrics)]
        for task, scores in report.scores.items()
    ]
    rows = [header, *lines]
    widths = [max(len(row[k]) for row in rows) for k in range(len(header))]
    text = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    text.insert(1, "-" * len(text[0]))
    if not metrics:
        text = []
    text += ["", f"{report.n_labelled} of {report.n_reference} episodes of the reference have a label"]
    if report.n_labelled < report.n_reference:
        text[-1] += "; the others are left out"
    if report.n_unknown:
        text.append(f"{report.n_unknown} labelled episodes are not in the reference; they are left out")
    for metric, corruptions in report.no_better_than.items():
        text.append(
            f"NO BETTER THAN CHANCE: {metric} of these labels is no higher than with {' or '.join(corruptions)}"
        )
    for metric, reason in report.rejected.items():
        text.append(f"REJECTED: {metric}: {reason}")
    return "\n".join(text)


def _cell(score: FieldScore) -> str:
    if score.value is None:
        return "-"
    if score.low is None:
        return f"{score.value:.2f}"
    return f"{score.value:.2f} [{score.low:.2f}, {score.high:.2f}]"
