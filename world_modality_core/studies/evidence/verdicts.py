"""Two verdicts on a world memory, by fixed rules: is it used, and is it needed at test time?

docs/statistics.md has the rules with their reasons. A verdict joins tests with "and": it is an intersection-union test
(Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24:295-300), which holds its
level if every part holds it, so nothing is divided by the number of parts. Its p-value is the largest of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from world_modality_core.studies.evidence.paired import PairCounts, RunsResult, ScenesResult
from world_modality_core.studies.evidence.plan import smallest_effect, smallest_effect_over_runs, worst_standard_error
from world_modality_core.studies.evidence.sequential import SequentialResult
from world_modality_core.studies.evidence.wording import detectable, p_text

USED_ARMS = ("shuffle_within_task", "copy_current")
"""The memory is used if intact beats each of these."""
CLOSED_ARM = "gate_closed"
MATCHED = "matched"
"""Key of the comparison with the parameter-matched model."""
SHUT_GATE = 1e-3
"""A gate whose mean |tanh(gate)| stays below this in every training run never opened; a prototype's memory was worth 16
points with a gate of 0.026."""
POWER = 0.8
"""Of the smallest effect that is named where nothing was shown."""

USED, NEEDED = "memory used", "memory needed at test time"
SHOWN, NOT_SHOWN, SHUT, UNDECIDED = "shown", "not shown", "not used: the gate never opened", "not decided"
NOT_INFORMATIVE = "not informative"
# Records keep these names; what people read is in `Verdict.statement`.
_CLAIMS = {USED: "the memory is read", NEEDED: "it beats a policy trained without"}


@dataclass(frozen=True)
class Evidence:
    """A paired comparison of a model's intact arm with something else."""

    name: str
    counts: PairCounts
    scenes: ScenesResult
    # Over training runs; None for arms of one checkpoint, and for a single run.
    runs: RunsResult | None = None
    sequential: SequentialResult | None = None
    # Whom it speaks of, in words.
    population: str = ""

    @property
    def p(self) -> float:
        """Two-sided p-value: over training runs too where there are several, anytime-valid where asked for."""
        if self.sequential is not None:
            return self.sequential.p
        return max(self.scenes.p, self.runs.p if self.runs else 0.0)

    @property
    def is_ahead(self) -> bool:
        """Whether intact is ahead; at the stop where the test was sequential."""
        if self.sequential is not None:
            return self.sequential.wins_at_stop > self.sequential.losses_at_stop
        return self.scenes.difference > 0

    def smallest_effect(self, alpha: float, at_worst: bool = False) -> float | None:
        """Smallest difference that as many pairs (and runs) see with `POWER`; None where they see none.

        Args:
            alpha: Level of the test.
            at_worst: Take the training runs to spread as much as they may, rather than as much as they did.
        """
        over_pairs = smallest_effect(round(self.scenes.n_effective), self.counts.discordance, POWER, alpha)
        if self.runs is None or over_pairs is None:
            return over_pairs
        error = worst_standard_error(self.runs) if at_worst else self.runs.standard_error
        over_runs = smallest_effect_over_runs(error, self.runs.n_runs, POWER, alpha)
        return None if over_runs is None else max(over_pairs, over_runs)

    def detectable(self, alpha: float) -> str:
        """What so many pairs (and runs) can see, in words."""
        at_worst = self.smallest_effect(alpha, at_worst=True) if self.runs else None
        n_runs = self.runs.n_runs if self.runs else 1
        return detectable(self.counts.n, self.smallest_effect(alpha), n_runs, at_worst)


@dataclass(frozen=True)
class Verdict:
    """A verdict and what it rests on."""

    model: str
    question: str
    answer: str
    # One sentence per reason.
    reasons: tuple[str, ...]
    # Largest p-value of the parts; None where a part is missing.
    p: float | None
    # Smallest difference that this n would have seen with `POWER`, the largest of the parts'; None if shown or unknown.
    smallest_effect: float | None
    # Whom it speaks of.
    population: str = ""

    @property
    def statement(self) -> str:
        """What may be said: "evidence that the memory is read", "no evidence that ...", "not decided whether ..."."""
        claim = _CLAIMS[self.question]
        if self.answer == SHOWN:
            return f"evidence that {claim}"
        if self.answer in (NOT_SHOWN, SHUT):
            return f"no evidence that {claim}" + (": the gate never opened" if self.answer == SHUT else "")
        return f"{self.answer} whether {claim}"


def judge(
    model: str,
    arms: Mapping[str, Evidence],
    matched: Evidence | None,
    gates: Mapping[int, float],
    alpha: float = 0.05,
    tautologies: Sequence[str] = (),
    notes: Sequence[str] = (),
) -> tuple[Verdict, Verdict]:
    """Both verdicts on a model.

    Args:
        model: Its label.
        arms: Arm -> intact against that arm.
        matched: Intact against the parameter-matched model that was trained without memory.
        gates: Training seed -> mean |gate| of the intact arm; empty if the model logs none.
        alpha: Level of each test.
        tautologies: Why its arms can't but differ from intact, or are one another: they tell nothing then.
        notes: What is to be said of the parameter-matched model.

    Returns:
        "Memory used" and "memory needed at test time".
    """
    used_parts = {arm: arms.get(arm) for arm in USED_ARMS}
    needed_parts = {**used_parts, CLOSED_ARM: arms.get(CLOSED_ARM), MATCHED: matched}
    return (
        _verdict(model, USED, used_parts, gates, alpha, tautologies),
        _verdict(model, NEEDED, needed_parts, gates, alpha, tautologies, notes if matched else ()),
    )


def _verdict(
    model: str,
    question: str,
    parts: Mapping[str, Evidence | None],
    gates: Mapping[int, float],
    alpha: float,
    tautologies: Sequence[str],
    notes: Sequence[str] = (),
) -> Verdict:
    found = {name: part for name, part in parts.items() if part is not None}
    failed = [part for part in found.values() if not (part.is_ahead and part.p <= alpha)]
    reasons = [_reason(part, part not in failed, alpha) for part in found.values()]
    reasons += notes
    missing = [name for name in parts if name not in found]
    populations = dict.fromkeys(part.population for part in found.values())
    p = None if missing else max(part.p for part in found.values())

    def verdict(answer: str, smallest: float | None = None) -> Verdict:
        whom = "; against the matched model ".join(populations)
        return Verdict(model, question, answer, tuple(reasons), None if answer == SHUT else p, smallest, whom)

    shut = sorted(seed for seed, gate in gates.items() if gate < SHUT_GATE)
    if gates and len(shut) == len(gates):
        gate = f"mean |gate| is at most {max(gates.values()):.1e} in every training run (open from {SHUT_GATE:g})"
        if failed or missing:
            reasons.insert(0, gate)
            return verdict(SHUT)
        reasons.append(f"{gate}, yet its arms differ: something else than the memory does")
        return verdict(UNDECIDED)
    if shut:
        reasons.append(f"the gate never opened in training runs {', '.join(map(str, shut))}")
    reasons += [_missing(name) for name in missing]
    is_open = [part for part in failed if part.sequential is not None and part.sequential.is_open]
    if failed and len(is_open) < len(failed):
        effects = [part.smallest_effect(alpha) for part in failed]
        return verdict(NOT_SHOWN, None if None in effects else max(effects))
    if not failed and MATCHED in found and found[MATCHED].runs is None:
        # What a single run can't tell: whether retraining would give the same.
        reasons.append("the comparison with the matched model needs at least two training runs")
        return verdict(UNDECIDED)
    if missing or is_open:
        return verdict(UNDECIDED)
    reasons += tautologies
    if tautologies and question == NEEDED:
        reasons.append("so this rests on the comparison with the matched model alone")
    return verdict(NOT_INFORMATIVE if tautologies and question == USED else SHOWN)


def _reason(part: Evidence, holds: bool, alpha: float) -> str:
    text = f"{part.name}: {100 * part.counts.difference:+.1f} points over {part.counts.n} pairs, "
    if part.sequential is not None:
        text += f"sequential p {p_text(part.sequential.p, alpha)}"
        if part.sequential.stopped_at is not None:
            text += f" (decided after {part.sequential.stopped_at} pairs)"
        elif part.sequential.is_open:
            return f"{text} (open: {part.sequential.n_pairs} of {part.sequential.n_planned} pairs)"
    else:
        text += f"p {p_text(part.scenes.p, alpha)}"
        if part.runs is not None:
            text += f", across {part.runs.n_runs} training seeds p {p_text(part.runs.p, alpha)}"
    if holds:
        return text
    if not part.is_ahead and part.p <= alpha:
        text += "; intact is worse"
    return f"{text}; {part.detectable(alpha)}"


def _missing(name: str) -> str:
    if name == MATCHED:
        return "no parameter-matched model without memory was named (--matched)"
    return f"arm {name} was not evaluated"
