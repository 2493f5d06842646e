"""Paired differences and verdicts, as `world_modality_core.studies.evidence` finds them, in the page's words."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pandas as pd

from world_modality_core.studies.evidence.comparable import ModelArm
from world_modality_core.studies.evidence.compare import (
    Comparison,
    ComparisonReport,
    ModelArmRates,
    compare,
)
from world_modality_core.studies.evidence.paired import PairedResult
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
from world_modality_core.studies.evidence.wording import BETTER, WORSE, p_text
from world_modality_core.studies.report.charts import Scale, scale_around

_VERDICTS = {USED: "is the memory read", NEEDED: "does it beat a policy trained without"}


@dataclass(frozen=True)
class DifferenceGroup:
    """Comparisons of one kind.

    Attributes:
        id, title: Of the heading.
        comparisons: What the table's rows are made of.
    """

    id: str
    title: str
    comparisons: list[Comparison]

    def scale(self, is_overall: bool) -> Scale:
        """That all intervals over all episodes fit into, or all those per tier and task."""
        parts = [part.result for c in self.comparisons for part in c.parts if (part.level == "overall") == is_overall]
        return scale_around([end for result in parts for end in (result.low, result.high)])


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
        if self.question in _VERDICTS.values():  # its answer is a statement
            return f"{self.model}: {self.answer}"
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
        rates: Success of each side.
        refusals: Why comparisons were refused.
        n_left_out: Episodes left out to keep common scenes.
    """

    groups: list[DifferenceGroup]
    sides: list[tuple[ModelArm, ModelArm]]
    findings: list[Finding]
    verdicts: list[Finding]
    rates: dict[ModelArm, ModelArmRates]
    refusals: list[str]
    n_left_out: int


RULES = (
    f"Rules: “{USED}” needs the model as trained to beat {' and '.join(USED_ARMS)}, each in a paired test; “{NEEDED}” "
    f"needs it to beat {CLOSED_ARM} and a parameter-matched model that was trained without memory as well. A gate that "
    "never opened counts as not used. Where nothing was shown, what a difference needs to be detected is named: not "
    "shown is not the same as absent."
)


def compare_all(episodes: pd.DataFrame, baseline: str = "", matched: str = "", common_scenes: bool = False) -> Compared:
    """Compare whatever can be compared; what can't is named with its reason.

    Args:
        episodes: What `read_episodes` returned.
        baseline: Model that all others are compared with; "" for none.
        matched: Parameter-matched model without memory; "" for none.
        common_scenes: Compare on the scenes that both sides have, rather than refuse.

    Raises:
        ConfigError: if there are no episodes of the baseline or the matched model.
    """
    report = compare(
        episodes, baseline=baseline, matched=matched, common_scenes=common_scenes, all_or_nothing=False,
    )  # fmt: skip
    return Compared(
        groups=_groups(report.comparisons),
        sides=[(c.first, c.second) for c in sorted(report.comparisons, key=lambda c: c.kind == "arm")],
        findings=_unanswered(report, baseline)
        + [
            _against_baseline(c, answer.answer)
            for c, answer in zip(report.comparisons, report.answers, strict=True)
            if c.kind != "arm"
        ],
        verdicts=[_verdict(verdict, report) for verdict in report.verdicts],
        rates={rates.side: rates for rates in report.sides},
        refusals=list(report.refusals),
        n_left_out=sum(c.n_left_out for c in report.comparisons),
    )


def _unanswered(report: ComparisonReport, baseline: str) -> list[Finding]:
    """That a page about one model's arms can't say whether its memory helps."""
    if baseline or not report.verdicts:
        return []
    reason = "no model was named that it could be compared with (--baseline): arms tell what a policy relies on"
    return [Finding("open", "does the memory help", "this page can't tell", (reason,), "All models")]


def _groups(comparisons: Sequence[Comparison]) -> list[DifferenceGroup]:
    kinds = {
        "model": ("between-models", "Models against the baseline"),
        "matched": ("against-matched", "Models against the parameter-matched control"),
        "arm": ("between-arms", "As trained, against the same checkpoint with another memory"),
    }
    groups = [DifferenceGroup(*kinds[kind], [c for c in comparisons if c.kind == kind]) for kind in kinds]
    return [group for group in groups if group.comparisons]


def name_of(c: Comparison) -> str:
    """What is compared, in words."""
    if c.kind == "arm":
        return f"{c.first.model}: {c.first.arm} − {c.second.arm}"
    return f"{c.first.model} − {c.second.model}"


def _against_baseline(c: Comparison, answer: str) -> Finding:
    overall, p = c.parts[0], c.evidence.p
    words = {BETTER: "higher success", WORSE: "lower success (negative)"}.get(answer, f"{answer} (negative)")
    control = " (parameter-matched)" if c.kind == "matched" else ""
    reasons = [
        f"{100 * overall.result.difference:+.1f} points (95 % interval {points(overall.result)})",
        f"n = {overall.counts.n} pairs, {overall.counts.wins} won and {overall.counts.losses} lost",
        f"p {_equals(p)}, Holm's p {_equals(c.p_holm)}",
    ]
    if c.runs:
        reasons.append(f"across {c.runs.n_runs} training seeds the 95 % interval is {points(c.runs)}")
    if c.heterogeneity_p is not None:
        reasons.append(f"p that tasks differ {_equals(c.heterogeneity_p)}")
    reasons.append(f"for {c.population}")
    kind = "shown" if answer == BETTER else "not"
    return Finding(kind, f"against {c.second.model}{control}", words, tuple(reasons), c.first.model)


def _verdict(verdict: Verdict, report: ComparisonReport) -> Finding:
    is_negative = verdict.answer in (NOT_SHOWN, SHUT)
    kind = "shown" if verdict.answer == SHOWN else "not" if is_negative else "open"
    answer = verdict.statement + (" (negative)" if is_negative else "")
    sentences = list(verdict.reasons)
    holm = report.verdict_p_holm.get((verdict.model, verdict.question))
    if verdict.p is not None:
        sentences.append(f"p {_equals(verdict.p)}" + (f", Holm's p {_equals(holm)}" if holm is not None else ""))
    if is_negative and verdict.smallest_effect is not None:
        sentences.append(f"needs about {100 * verdict.smallest_effect:.1f} points or more to be detected")
    if verdict.population:
        sentences.append(f"for {verdict.population}")
    id_ = f"{'used' if verdict.question == USED else 'needed'}-{re.sub(r'[^a-zA-Z0-9_.-]+', '-', verdict.model)}"
    return Finding(kind, _VERDICTS[verdict.question], answer, tuple(sentences), verdict.model, id_)


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


def points(result: PairedResult) -> str:
    """An interval such as "+2.1 to +31.0", in points."""
    return f"{100 * result.low:+.1f} to {100 * result.high:+.1f}"


def _equals(p: float) -> str:
    """ "< 0.0001" or "= 0.012"."""
    return p_text(p) if p < 1e-4 else f"= {p_text(p)}"
