"""Paired differences and verdicts, as `world_modality_core.studies.evidence` finds them, in the page's words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd
from markupsafe import Markup

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.comparable import ModelArm, NotComparableError, pair
from world_modality_core.studies.evidence.compare import INTACT, Comparison, ComparisonReport, OverallMean, compare
from world_modality_core.studies.evidence.verdicts import (
    CLOSED_ARM,
    NEEDED,
    NOT_SHOWN,
    SHOWN,
    SHUT,
    USED,
    USED_ARMS,
    Verdict,
)
from world_modality_core.studies.report.charts import Scale, scale_around, strip


@dataclass(frozen=True)
class Difference:
    """A row of the forest: success of the first minus that of the second, on the same scenes.

    Attributes:
        name: What is compared, in words.
        models: Their labels, for the page's filter.
        n, wins, losses: Pairs, and those in which only the first or only the second succeeded.
        difference, low, high: With Newcombe's interval.
        p, p_holm: Two-sided p-value, and Holm's; None for Holm's within a task or a tier.
        runs: Interval over training runs in points, such as "+2.1 to +31.0"; "" where there is none.
        level: "overall", "tier" or "task".
    """

    name: str
    models: str
    n: int
    wins: int
    losses: int
    difference: float
    low: float
    high: float
    p: float
    p_holm: float | None = None
    runs: str = ""
    level: str = "overall"

    @property
    def interval(self) -> str:
        """Newcombe's, in points."""
        return _points(self.low, self.high)

    @property
    def p_text(self) -> str:
        """Such as "0.012"."""
        return p_text(self.p)

    @property
    def p_holm_text(self) -> str:
        """Such as "0.036", or ""."""
        return "" if self.p_holm is None else p_text(self.p_holm)

    def strip(self, scale: Scale) -> Markup:
        """The dot with its interval."""
        label = f"{self.name}: {100 * self.difference:+.1f} points, 95 % interval {self.interval}, {self.n} pairs"
        kind = "s3" if self.low > 0 else "s2" if self.high < 0 else "s8"
        return strip(scale, self.difference, self.low, self.high, label, kind, zero=0.0)


@dataclass(frozen=True)
class DifferenceGroup:
    """Comparisons of one kind.

    Attributes:
        id, title: Of the heading.
        rows: Over all episodes.
        parts: The same per tier and task.
        means: (comparison, mean, value and interval) over episodes, tasks and tiers, by the hierarchical bootstrap.
    """

    id: str
    title: str
    rows: list[Difference]
    parts: list[Difference]
    means: list[tuple[str, str, str]]

    @property
    def scale(self) -> Scale:
        """That all intervals over all episodes fit into."""
        return _scale_of(self.rows)

    @property
    def part_scale(self) -> Scale:
        """That all intervals per tier and task fit into."""
        return _scale_of(self.parts)


@dataclass(frozen=True)
class Finding:
    """One line of the summary.

    Attributes:
        kind: "shown", "not" or "open": how it is marked.
        question: What was asked.
        answer: In words, with "(negative)" where it is.
        reasons: The numbers, one part of a sentence each.
        model: Whose.
        id: Of its heading.
    """

    kind: str
    question: str
    answer: str
    reasons: tuple[str, ...]
    model: str
    id: str = ""

    @property
    def title(self) -> str:
        """Who was asked what, and the answer."""
        colon = "" if self.question.startswith("against") else ":"
        return f"{self.model}{colon} {self.question}: {self.answer}"

    @property
    def text(self) -> str:
        """All reasons as a sentence."""
        return "; ".join(self.reasons) + "."


@dataclass(frozen=True)
class Compared:
    """What could be compared, and what could not.

    Attributes:
        groups: Forests.
        sides: First and second of the comparisons, those of models first.
        findings: Of models against the baseline.
        verdicts: On memories.
        overall: (model, arm) -> means over tasks and tiers.
        refusals: Why comparisons were refused.
        n_left_out: Episodes left out to keep common scenes.
    """

    groups: list[DifferenceGroup] = field(default_factory=list)
    sides: list[tuple[ModelArm, ModelArm]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    verdicts: list[Finding] = field(default_factory=list)
    overall: dict[tuple[str, str], tuple[OverallMean, ...]] = field(default_factory=dict)
    refusals: list[str] = field(default_factory=list)
    n_left_out: int = 0


RULES = (
    f"Rules: “{USED}” needs the model as trained to beat {' and '.join(USED_ARMS)}, each in a paired test; “{NEEDED}” "
    f"needs it to beat {CLOSED_ARM} and a parameter-matched model that was trained without memory as well. A gate that "
    "never opened counts as not used. Where nothing was shown, the smallest effect that so many pairs would have seen "
    "is named: not shown is not the same as absent."
)


def compare_all(
    episodes: pd.DataFrame, baseline: str = "", matched: str = "", common_scenes: bool = False, n_bootstrap: int = 2000
) -> Compared:
    """Compare whatever can be compared; what can't is named with its reason.

    Args:
        episodes: What `read_episodes` returned.
        baseline: Model that all others are compared with; "" for none.
        matched: Parameter-matched model without memory; "" for none.
        common_scenes: Compare on the scenes that both sides have, rather than refuse.
        n_bootstrap: Draws of the bootstrap.

    Raises:
        ConfigError: if there are no episodes of the baseline or the matched model.
    """
    models = sorted(episodes["model"].unique()) if len(episodes) else []
    for name, value in (("baseline", baseline), ("matched", matched)):
        if value and value not in models:
            raise ConfigError(
                f"{name}={value!r} is no model of these episodes; they are of {', '.join(models) or 'none'}"
            )
    options = {"common_scenes": common_scenes, "n_bootstrap": n_bootstrap}
    refusals: list[str] = []
    try:
        reports = [compare(episodes, baseline=baseline, matched=matched, **options)] if models else []
    except ConfigError:  # there is nothing to compare
        reports = []
    except NotComparableError:
        kept, refusals, against = _comparable(episodes, models, baseline, matched, common_scenes)
        reports = []
        for names in dict.fromkeys(against.values()):
            candidates = [model for model, others in against.items() if others == names]
            reports.append(compare(kept, candidates=candidates, baseline=names[0], matched=names[1], **options))
    comparisons = [c for report in reports for c in report.comparisons]
    return Compared(
        groups=_groups(comparisons),
        sides=[(c.first, c.second) for c in sorted(comparisons, key=lambda c: c.kind == "arm")],
        findings=[_against_baseline(c, r.alpha) for r in reports for c in r.comparisons if c.kind != "arm"],
        verdicts=[_verdict(v, r) for r in reports for v in r.verdicts],
        overall={(s.side.model, s.side.arm): s.overall for r in reports for s in r.sides},
        refusals=refusals,
        n_left_out=sum(c.n_left_out for c in comparisons),
    )


def _comparable(episodes, models: Sequence[str], baseline: str, matched: str, common_scenes: bool):
    """Try every comparison, so that one that is refused does not take the others with it.

    Returns:
        The episodes without refused arms; the reasons; and what each model that has anything to be compared with can be
        compared with: (baseline or "", matched or "").
    """
    refusals, against, dropped = [], {}, []

    def fits(first: ModelArm, second: ModelArm, rows: pd.DataFrame) -> bool:
        try:
            pair(rows, first, second, common_scenes)
        except NotComparableError as error:
            refusals.append(str(error))
            return False
        return True

    by_model = dict(list(episodes.groupby("model"))) if models else {}
    for model in models:
        rows, intact = by_model[model], ModelArm(model, INTACT)
        if model in (baseline, matched):
            continue
        arms = [arm for arm in sorted(rows["arm"].unique()) if arm != INTACT]
        refused = [arm for arm in arms if not fits(intact, ModelArm(model, arm), rows)]
        dropped += [rows.index[rows["arm"] == arm] for arm in refused]
        found = tuple(
            other if other and fits(intact, ModelArm(other, INTACT), pd.concat([rows, by_model[other]])) else ""
            for other in (baseline, matched)
        )
        if any(found) or len(arms) > len(refused):
            against[model] = found
    kept = episodes.drop(index=[i for index in dropped for i in index])
    return kept, list(dict.fromkeys(refusals)), against


def _groups(comparisons: list[Comparison]) -> list[DifferenceGroup]:
    kinds = {
        "model": ("between-models", "Models against the baseline"),
        "matched": ("against-matched", "Models against the parameter-matched control"),
        "arm": ("between-arms", "As trained, against the same checkpoint with another memory"),
    }
    groups = []
    for kind, (id_, title) in kinds.items():
        members = [c for c in comparisons if c.kind == kind]
        if members:
            rows = [_overall_row(c) for c in members]
            parts = [_row(c, part) for c in members for part in c.parts if part.level != "overall"]
            means = [
                (_name(c), f"over {mean.name}", _mean_text(mean, signed=True)) for c in members for mean in c.overall
            ]
            groups.append(DifferenceGroup(id_, title, rows, parts, means))
    return groups


def _scale_of(rows: Iterable[Difference]) -> Scale:
    return scale_around([end for row in rows for end in (row.low, row.high)], at_least=0.1)


def _name(c: Comparison) -> str:
    if c.kind == "arm":
        return f"{c.first.model}: {c.first.arm} − {c.second.arm}"
    return f"{c.first.model} − {c.second.model}"


def _overall_row(c: Comparison) -> Difference:
    runs = _points(c.runs.low, c.runs.high) if c.runs else ""
    return _row(c, c.parts[0], p=c.evidence.p, p_holm=c.p_holm, runs=runs)


def _row(c: Comparison, part, **more) -> Difference:
    name = _name(c) if part.level == "overall" else f"{_name(c)}, {part.name}"
    models = " ".join(dict.fromkeys((c.first.model, c.second.model)))
    counts, result = part.counts, part.result
    values = {"p": result.p, **more}
    return Difference(
        name, models, counts.n, counts.wins, counts.losses, result.difference, result.low, result.high,
        level=part.level, **values,
    )  # fmt: skip


def _against_baseline(c: Comparison, alpha: float) -> Finding:
    row = _overall_row(c)
    is_clear = row.p <= alpha
    answer = ("higher success" if row.difference > 0 else "lower success") if is_clear else "no difference shown"
    negative = "" if is_clear and row.difference > 0 else " (negative)"
    control = " (parameter-matched)" if c.kind == "matched" else ""
    reasons = [
        f"{100 * row.difference:+.1f} points (95 % interval {row.interval})",
        f"n = {row.n} pairs, {row.wins} won and {row.losses} lost",
        f"p {_equals(row.p)}, Holm's p {_equals(row.p_holm)}",
    ]
    if c.runs:
        reasons.append(f"over {c.runs.n_runs} training runs the 95 % interval is {row.runs}")
    kind = "shown" if not negative else "not"
    return Finding(kind, f"against {c.second.model}{control}", answer + negative, tuple(reasons), c.first.model)


def _verdict(verdict: Verdict, report: ComparisonReport) -> Finding:
    is_negative = verdict.answer in (NOT_SHOWN, SHUT)
    kind = "shown" if verdict.answer == SHOWN else "not" if is_negative else "open"
    answer = verdict.answer + (" (negative)" if is_negative else "")
    sentences = list(verdict.reasons)
    holm = report.verdict_p_holm.get((verdict.model, verdict.question))
    if verdict.p is not None:
        sentences.append(f"p {_equals(verdict.p)}" + (f", Holm's p {_equals(holm)}" if holm is not None else ""))
    if is_negative and verdict.smallest_effect is not None:
        sentences.append(
            f"the smallest effect that this n could have seen is {100 * verdict.smallest_effect:.1f} points"
        )
    id_ = f"{'used' if verdict.question == USED else 'needed'}-{re.sub(r'[^a-zA-Z0-9_.-]+', '-', verdict.model)}"
    return Finding(kind, verdict.question, answer, tuple(sentences), verdict.model, id_)


def count_answers(findings: Iterable[Finding]) -> list[str]:
    """For each question that several models were asked, how many had which answer."""
    by_question: dict[str, Counter[str]] = {}
    for finding in findings:
        by_question.setdefault(finding.question, Counter())[finding.answer] += 1
    return [
        f"{question}, {counts.total()} models: "
        + ", ".join(f"{answer} for {n if n > 1 else 'one'}" for answer, n in counts.most_common())
        for question, counts in by_question.items()
        if counts.total() > 1
    ]


def _mean_text(mean: OverallMean, signed: bool = False) -> str:
    """Such as "+12.3 (+1.0 to +20.1)", in points or per cent."""
    sign = "+" if signed else ""
    text = f"{100 * mean.value:{sign}.1f}"
    if mean.low is None or mean.high is None:
        return text
    return f"{text} ({100 * mean.low:{sign}.1f} to {100 * mean.high:{sign}.1f})"


def overall_texts(overall: Iterable[OverallMean]) -> dict[str, str]:
    """Name of a mean -> its value with its interval, in per cent; without the mean over episodes."""
    return {mean.name: _mean_text(mean) for mean in overall if mean.name != "episodes"}


def p_text(p: float) -> str:
    """A p-value with two digits."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def _equals(p: float) -> str:
    """ "< 0.0001" or "= 0.012"."""
    return p_text(p) if p < 1e-4 else f"= {p_text(p)}"


def _points(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"
