"""From episodes to success rates, paired comparisons and verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.checkpoint import THROUGH_MEMORY
from world_modality_core.studies.evidence.comparable import (
    ModelArm,
    NotComparableError,
    Pairs,
    check_matched,
    pair,
    rows_of,
)
from world_modality_core.studies.evidence.families import holm, shaffer
from world_modality_core.studies.evidence.paired import (
    PairCounts,
    PairedResult,
    RunsResult,
    ScenesResult,
    TasksResult,
    compare_partly_overlapping,
    compare_runs,
    compare_scenes_of_groups,
    compare_tasks,
    design_effect,
    heterogeneity_p,
    margin_p,
)
from world_modality_core.studies.evidence.sequential import SequentialResult, sequential_test
from world_modality_core.studies.evidence.verdicts import Evidence, Verdict, judge
from world_modality_core.studies.evidence.wilson import wilson_interval
from world_modality_core.studies.evidence.wording import DifferenceAnswer, TwoSides, answer_of, population

INTACT = "intact"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class SuccessRate:
    """A success rate with its Wilson interval: of a task, of a tier, or over all episodes (`name` is "episodes")."""

    level: str
    name: str
    successes: int
    n: int
    rate: float
    low: float
    high: float


@dataclass(frozen=True)
class ModelArmRates:
    """Success of one model and arm."""

    side: ModelArm
    train_seeds: tuple[int, ...]
    rates: tuple[SuccessRate, ...]
    # Over "episodes", over the means of the "tasks", over the means of the "tiers" (that of a tier's tasks).
    means: dict[str, float]
    # Mean |gate| per training seed; empty where no gate was logged.
    gates: dict[int, float]


@dataclass(frozen=True)
class PairedPart:
    """A paired difference within a task or a tier, or over all episodes."""

    level: str
    name: str
    counts: PairCounts
    result: ScenesResult


@dataclass(frozen=True)
class Comparison:
    """One side against another on the same scenes."""

    # "arm": one checkpoint, two arms; "model": two models; "matched": a model and its parameter-matched control.
    kind: str
    first: ModelArm
    second: ModelArm
    train_seeds: tuple[int, ...]
    n_left_out: int
    # Over all episodes first, then per tier, then per task.
    parts: tuple[PairedPart, ...]
    # As in `ModelArmRates`.
    means: dict[str, float]
    # Over training runs; None for arms of one checkpoint and for a single run.
    runs: RunsResult | None
    # For tasks like these; None where nothing can be said of them.
    tasks: TasksResult | None
    # Whether tasks differ in what the difference is; None for a single task.
    heterogeneity_p: float | None
    sequential: SequentialResult | None
    # One-sided p-values of "not worse by the margin" and "not better by the margin", adjusted within the family; None
    # without a margin.
    margin_p: tuple[float, float] | None
    # Holm's p-value within the family: the arms of a model, or the candidates of a baseline.
    p_holm: float = 1.0
    # Of the pairs and the scenes that only one side has; None unless both have such scenes.
    overlapping: PairedResult | None = None

    @property
    def evidence(self) -> Evidence:
        """What a verdict reads."""
        name = f"{self.first.arm} - {self.second.arm}" if self.kind == "arm" else f"{self.first} - {self.second}"
        counts, scenes = self.parts[0].counts, self.parts[0].result
        return Evidence(name, counts, scenes, self.runs, self.sequential, self.population)

    @property
    def population(self) -> str:
        """Whom the comparison's p-value speaks of."""
        n_checkpoints = len(self.train_seeds) * (1 if self.kind == "arm" else 2)
        return population(n_checkpoints, self.runs and self.runs.n_runs, self.n_tasks)

    @property
    def n_tasks(self) -> int:
        """Tasks that were compared."""
        return sum(part.level == "task" for part in self.parts)

    def tested(self, alpha: float, margin: float | None) -> TwoSides:
        """What there is to be put into words."""
        evidence, interval, in_turn = self.evidence, self.runs or self.parts[0].result, self.sequential
        return TwoSides(
            first=str(self.first),
            second=str(self.second),
            difference=interval.difference,
            low=interval.low,
            high=interval.high,
            is_ahead=evidence.is_ahead,
            p=evidence.p,
            p_holm=self.p_holm,
            population=self.population,
            detectable=evidence.detectable(alpha),
            open_after=(in_turn.n_pairs, in_turn.n_planned) if in_turn and in_turn.is_open else None,
            share=in_turn and in_turn.share,
            margin=margin,
            margin_p=self.margin_p,
            heterogeneity_p=None if in_turn else self.heterogeneity_p,
        )


LABEL_COLUMNS = (
    "policy_type", "episodes", "action_free", "train_steps", "n_trainable", "n_frozen", "sees", "memory_content",
)  # fmt: skip
"""Columns of the rows that tell what a model's label stands for."""


@dataclass(frozen=True)
class ComparisonReport:
    """All that `compare` found."""

    alpha: float
    sides: tuple[ModelArmRates, ...]
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    # Holm's p-value of each verdict's p-value over the models judged, by (model, question).
    verdict_p_holm: dict[tuple[str, str], float] = field(default_factory=dict)
    # Why comparisons were refused; empty if that was an error.
    refusals: tuple[str, ...] = ()
    # Difference below which two models count as equally good; None if none was named.
    margin: float | None = None
    outcome: str = "success"
    # What else tells two models apart than what they were to be compared for.
    notes: tuple[str, ...] = ()
    # What each model was trained on and sees, by `LABEL_COLUMNS`; "" where the rows don't say.
    labels: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def answers(self) -> tuple[DifferenceAnswer, ...]:
        """What may be said of each comparison."""
        tested = [replace(c.tested(self.alpha, self.margin), outcome=self.outcome) for c in self.comparisons]
        return tuple(answer_of(sides, self.alpha) for sides in tested)

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, dictionaries, numbers and strings."""
        comparisons = [
            asdict(c)
            | {"parts": [asdict(p) | {"n": p.counts.n} for p in c.parts], "p": c.evidence.p, "answer": answer.answer}
            | {"population": c.population}
            for c, answer in zip(self.comparisons, self.answers, strict=True)
        ]
        verdicts = [asdict(v) | {"p_holm": self.verdict_p_holm.get((v.model, v.question))} for v in self.verdicts]
        return {
            "schema": SCHEMA_VERSION,
            "alpha": self.alpha,
            "outcome": self.outcome,
            "sides": [asdict(side) for side in self.sides],
            "comparisons": comparisons,
            "verdicts": verdicts,
            "labels": {name: dict(zip(LABEL_COLUMNS, said, strict=True)) for name, said in self.labels.items()},
        }


def compare(
    episodes: pd.DataFrame,
    *,
    baseline: str = "",
    candidates: Sequence[str] = (),
    arms: Sequence[str] = (),
    matched: str = "",
    alpha: float = 0.05,
    n_planned: int | None = None,
    common_scenes: bool = False,
    margin: float | None = None,
    outcome: str = "success",
    all_or_nothing: bool = True,
) -> ComparisonReport:
    """Compare arms with intact, and models with a baseline, on the same scenes.

    Args:
        episodes: Rows with the columns of `EPISODE_SCHEMA`.
        baseline: Model that the candidates' intact arms are compared with; needed where there are several models and
            none has another arm than intact.
        candidates: Models to be judged; all but the baseline and `matched` if not given.
        arms: Arms to compare with intact; all that the candidates have if not given.
        matched: Model with as many parameters, trained without memory: the control of "needed at test time".
        alpha: Level of each test; the intervals have level 1 - alpha.
        n_planned: Pairs that are planned, of which any number may be there: test so that one may look at any time.
        common_scenes: Compare on the scenes that both sides have, rather than refuse.
        margin: Difference below which two models count as equally good.
        outcome: One of `OUTCOMES`: by what an episode is better than another.
        all_or_nothing: Raise if a comparison must be refused or nothing is left to compare; else make the others, and
            name what was refused in the report.

    Returns:
        Rates, comparisons and verdicts.

    Raises:
        ConfigError: if a model or an arm is unknown, or nothing is left to compare.
        NotComparableError: if episodes must not be compared; the message has all reasons.
    """
    # Every comparison looks for its rows: among 100,000 texts, or in columns that lie apart (which a copy puts side by
    # side), that takes longer than all the statistics.
    episodes = episodes.astype({"model": "category", "arm": "category"}).copy()
    models = sorted(episodes["model"].unique())
    candidates = _check_names(episodes, models, baseline, candidates, arms, matched)
    wanted = _wanted(episodes, baseline, candidates, arms, matched)
    if all_or_nothing and not wanted:
        raise ConfigError(f"baseline={baseline!r}: nothing to compare; {_remedy(models)}")
    paired, problems, notes = [], [], {}
    for kind, first, second in wanted:
        try:
            if kind == "matched":
                reasons, notes[first.model] = check_matched(episodes, first.model, second.model)
                if reasons:
                    raise NotComparableError(
                        f"matched={matched!r} is no control of {first.model}: {'; '.join(reasons)}; compare the two "
                        "with --baseline, which asks for nothing but the same scenes"
                    )
            paired.append((kind, pair(episodes, first, second, common_scenes, outcome)))
        except NotComparableError as error:
            problems.append(str(error))
    problems = list(dict.fromkeys(problems))
    if all_or_nothing and problems:
        raise NotComparableError("\n".join(problems))
    for kind, pairs in paired if n_planned else ():
        if kind != "arm" and len(pairs.train_seeds) > 1:
            raise ConfigError(
                f"sequential: {pairs.first} - {pairs.second} has {len(pairs.train_seeds)} training runs, and whether "
                "recipes differ can't be tested before the planned end; leave --sequential out then, or compare arms"
            )
    comparisons = with_holm([compare_pairs(kind, pairs, alpha, n_planned, margin) for kind, pairs in paired])
    names = list(dict.fromkeys(side for c in comparisons for side in (c.second, c.first)))
    sides = [rates_of(episodes, side, 1 - alpha) for side in sorted(names, key=lambda s: (s.model, s.arm != INTACT))]
    gates = {side.side: side.gates for side in sides}
    verdicts = []
    for model in candidates:
        verdicts += _judge(model, comparisons, gates, alpha, _tautologies(episodes, model), notes.get(model, ()))
    return ComparisonReport(
        alpha,
        tuple(sides),
        tuple(comparisons),
        tuple(verdicts),
        _verdict_holm(verdicts),
        tuple(problems),
        margin,
        outcome,
        _notes(episodes, comparisons),
        describe_labels(episodes, [side.model for side in names]),
    )


def describe_labels(episodes: pd.DataFrame, models: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """What the rows say of each model, by `LABEL_COLUMNS`; "differs by seed" where training seeds do."""
    labels = {}
    for model in sorted(set(models)):
        rows = episodes[episodes["model"] == model]
        values = [rows[name].dropna().unique() for name in LABEL_COLUMNS]
        labels[model] = tuple(str(v[0]) if len(v) == 1 else "differs by seed" if len(v) else "" for v in values)
    return labels


def _notes(episodes: pd.DataFrame, comparisons: list[Comparison]) -> tuple[str, ...]:
    """How models that are compared with a baseline were trained otherwise than it, as far as the rows say."""
    notes = []
    for c in comparisons:
        if c.kind == "model":
            differing, _ = check_matched(episodes, c.first.model, c.second.model)
            if differing:
                notes.append(f"{c.first.model} and {c.second.model} were not trained alike: {'; '.join(differing)}.")
    return tuple(notes)


def _check_names(episodes, models, baseline, candidates, arms, matched) -> list[str]:
    """The candidates, after every name was looked up."""
    for name, values in (("baseline", [baseline]), ("candidates", candidates), ("matched", [matched])):
        for value in values:
            if value and value not in models:
                raise ConfigError(
                    f"{name}={value!r} is no model of these episodes; they are of {', '.join(models) or 'none'}"
                )
    for name, values in (("candidates", candidates), ("arms", arms)):
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}={','.join(values)}: each is named once, else it counts twice in Holm's family")
    known = sorted(episodes["arm"].unique())
    for arm in arms:
        if arm not in known:
            raise ConfigError(f"arms={arm!r}: no model was evaluated with it; known arms are {', '.join(known)}")
    for model in candidates:
        lacking = set(arms) - set(episodes.loc[episodes["model"] == model, "arm"])
        if lacking:
            raise ConfigError(f"arms={min(lacking)!r}: {model} was not evaluated with it; run wm-eval with that arm")
    chosen = list(candidates) or [model for model in models if model not in (baseline, matched)]
    for name, value in (("baseline", baseline), ("matched", matched)):
        if value in chosen:
            raise ConfigError(f"{name}={value!r} is a candidate too: name other candidates")
    return chosen


def _wanted(episodes, baseline: str, candidates: list[str], arms, matched: str) -> list[tuple[str, ModelArm, ModelArm]]:
    """(kind, first, second) of all comparisons."""
    wanted = []
    for model in candidates:
        own = set(episodes.loc[episodes["model"] == model, "arm"])
        intact = ModelArm(model, INTACT)
        wanted += [("arm", intact, ModelArm(model, arm)) for arm in sorted(set(arms or own) & own - {INTACT})]
        if baseline:
            wanted.append(("model", intact, ModelArm(baseline, INTACT)))
        if matched:
            wanted.append(("matched", intact, ModelArm(matched, INTACT)))
    return wanted


def _remedy(models: list[str]) -> str:
    if len(models) > 1:
        return f"name one of the models {', '.join(models)} with --baseline"
    return f"evaluate {models[0]} with other arms than {INTACT}, or another model"


def compare_pairs(
    kind: str, pairs: Pairs, alpha: float = 0.05, n_planned: int | None = None, margin: float | None = None
) -> Comparison:
    """Everything that is said of one comparison, but for Holm's p-value.

    Args:
        kind: "arm", "model" or "matched".
        pairs: The episodes.
        alpha, n_planned, margin: As in `compare`.
    """
    groups = [("overall", "episodes", pairs.tasks)]
    tiers = sorted({task.tier for task in pairs.tasks} - {""})
    groups += [("tier", tier, [task for task in pairs.tasks if task.tier == tier]) for tier in tiers]
    groups += [("task", task.task, [task]) for task in pairs.tasks]
    results = compare_scenes_of_groups([[task.difference for task in tasks] for _, _, tasks in groups], 1 - alpha)
    parts = []
    for (level, name, tasks), result in zip(groups, results, strict=True):
        first = np.concatenate([task.first.ravel() for task in tasks])
        counts = PairCounts.of(first, np.concatenate([task.second.ravel() for task in tasks]))
        parts.append(PairedPart(level, name, counts, result))
    differences, scenes = [task.difference for task in pairs.tasks], parts[0].result
    runs = None if kind == "arm" else compare_runs(differences, scenes, 1 - alpha)
    in_tasks_like_these = None
    if kind == "arm" or runs is not None:  # of a single run's recipe nothing is known, in whatever task
        in_tasks_like_these = compare_tasks(differences, runs or scenes, runs is not None, 1 - alpha)
    return Comparison(
        kind=kind,
        first=pairs.first,
        second=pairs.second,
        train_seeds=pairs.train_seeds,
        n_left_out=pairs.n_left_out,
        parts=tuple(parts),
        means=overall_means([task.astype(float) for task in differences], [task.tier for task in pairs.tasks]),
        runs=runs,
        tasks=in_tasks_like_these,
        heterogeneity_p=heterogeneity_p(differences),
        sequential=sequential_test(pairs.in_order(n_planned), n_planned, alpha) if n_planned else None,
        margin_p=None if margin is None else margin_p(parts[0].counts, scenes, runs, margin),
        overlapping=compare_partly_overlapping(differences, pairs.alone, 1 - alpha),
    )


def overall_means(values: Sequence[np.ndarray], tiers: Sequence[str]) -> dict[str, float]:
    """The overall means.

    Args:
        values: Per task (n_runs, n_scenes) float, NaN where there is no episode.
        tiers: Each task's tier; "" where there is none.

    Returns:
        Name -> mean; without "tiers" where a task has none.
    """
    of_tasks = np.array([np.nanmean(task) for task in values])
    means = {
        "episodes": float(sum(np.nansum(task) for task in values) / sum(np.isfinite(task).sum() for task in values)),
        "tasks": float(of_tasks.mean()),
    }
    if all(tiers):
        names = np.array(tiers)
        means["tiers"] = float(np.mean([of_tasks[names == tier].mean() for tier in sorted(set(tiers))]))
    return means


def with_holm(comparisons: list[Comparison]) -> list[Comparison]:
    """Fill in Holm's p-values within each family."""
    families: dict[tuple, list[int]] = {}
    for i, c in enumerate(comparisons):
        families.setdefault((c.kind, c.first.model if c.kind == "arm" else c.second.model), []).append(i)
    adjusted = list(comparisons)
    for members in families.values():
        for i, p in zip(members, holm([comparisons[i].evidence.p for i in members]), strict=True):
            adjusted[i] = replace(comparisons[i], p_holm=p)
        if comparisons[members[0]].margin_p is not None:
            for i, margin_p in zip(members, shaffer([comparisons[i].margin_p for i in members]), strict=True):
                adjusted[i] = replace(adjusted[i], margin_p=margin_p)
    return adjusted


def rates_of(episodes: pd.DataFrame, side: ModelArm, confidence: float = 0.95) -> ModelArmRates:
    """Success of one model and arm.

    Args:
        episodes: Rows with the columns of `EPISODE_SCHEMA`, of others too.
        side: Whose.
        confidence: Level of the intervals, in (0, 1).
    """
    rows = rows_of(episodes, side)
    # (n_runs, n_scenes) per task, NaN where an episode is missing; the same runs in all tasks.
    train_seeds = sorted(rows["train_seed"].unique())
    values, tiers = {}, {}
    for task, of_task in rows.groupby("task"):
        scenes, scene = np.unique(of_task["seed"], return_inverse=True)
        values[str(task)] = np.full((len(train_seeds), len(scenes)), np.nan)
        values[str(task)][np.searchsorted(train_seeds, of_task["train_seed"]), scene] = of_task["success"]
        tiers[str(task)] = str(of_task["tier"].iloc[0])
    rates = [_rate("overall", "episodes", list(values.values()), confidence)]
    for tier in sorted(set(tiers.values()) - {""}):
        rates.append(_rate("tier", tier, [values[task] for task in values if tiers[task] == tier], confidence))
    rates += [_rate("task", task, [of_task], confidence) for task, of_task in values.items()]
    gates = rows["gate"].abs().groupby(rows["train_seed"]).mean().dropna()
    return ModelArmRates(
        side=side,
        train_seeds=tuple(int(s) for s in train_seeds),
        rates=tuple(rates),
        means=overall_means(list(values.values()), list(tiers.values())),
        gates={int(train_seed): float(gate) for train_seed, gate in gates.items()},
    )


def _rate(level: str, name: str, values: list[np.ndarray], confidence: float) -> SuccessRate:
    """Wilson's interval of as many independent episodes as these are worth: runs share their scenes."""
    n = int(sum(np.isfinite(task).sum() for task in values))
    successes = int(sum(np.nansum(task) for task in values))
    worth = 1 / design_effect(values, confidence)
    return SuccessRate(
        level, name, successes, n, successes / n, *wilson_interval(successes * worth, n * worth, confidence)
    )


def _tautologies(episodes: pd.DataFrame, model: str) -> list[str]:
    """What of a model makes its arms tell nothing."""
    rows = episodes[episodes["model"] == model]
    found = []
    if rows["memory_content"].eq("states").any():
        found.append("copy_current says that the robot stays where it is, which is zero: no control of more vision")
    if rows["sees"].eq(THROUGH_MEMORY).any():
        found.append("the memory is all that this policy sees by: without it any policy fails")
    return found


def _judge(model: str, comparisons: list[Comparison], gates, alpha: float, tautologies, notes) -> tuple[Verdict, ...]:
    """Both verdicts on a candidate; none if it has no other arm than intact."""
    of_model = [c for c in comparisons if c.first.model == model]
    arms = {c.second.arm: c.evidence for c in of_model if c.kind == "arm"}
    matched = next((c.evidence for c in of_model if c.kind == "matched"), None)
    if not arms:
        return ()
    return judge(model, arms, matched, gates[ModelArm(model, INTACT)], alpha, tautologies, notes)


def _verdict_holm(verdicts: list[Verdict]) -> dict[tuple[str, str], float]:
    adjusted = {}
    for question in {verdict.question for verdict in verdicts}:
        asked = [v for v in verdicts if v.question == question and v.p is not None]
        adjusted |= {(v.model, question): p for v, p in zip(asked, holm([v.p for v in asked]), strict=True)}
    return adjusted
