"""Two verdicts on a world memory, by fixed rules: is it used, and is it needed at test time?

docs/statistics.md has the rules with their reasons. A verdict joins tests with "and": it is an intersection-union test
(Berger 1982, "Multiparameter hypothesis testing and acceptance sampling", Technometrics 24:295-300), which holds its
level if every part holds it, so nothing is divided by the number of parts. Its p-value is the largest of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from world_modality_core.studies.evidence.paired import PairCounts, PairedResult, RunsResult
from world_modality_core.studies.evidence.plan import smallest_effect, smallest_effect_over_runs
from world_modality_core.studies.evidence.sequential import SequentialResult

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


@dataclass(frozen=True)
class Evidence:
    """A paired comparison of a model's intact arm with something else."""

    name: str
    counts: PairCounts
    paired: PairedResult
    # Over training runs; None for arms of one checkpoint, and for a single run.
    runs: RunsResult | None = None
    sequential: SequentialResult | None = None

    @property
    def p(self) -> float:
        """Two-sided p-value: over training runs too where there are several, anytime-valid where asked for."""
        if self.sequential is not None:
            return self.sequential.p
        return max(self.paired.p, self.runs.p if self.runs else 0.0)

    @property
    def is_ahead(self) -> bool:
        """Whether intact is ahead; at the stop where the test was sequential."""
        if self.sequential is not None:
            return self.sequential.wins_at_stop > self.sequential.losses_at_stop
        return self.paired.difference > 0

    def smallest_effect(self, alpha: float) -> float | None:
        """Smallest difference that as many pairs (and runs) see with `POWER`; None where they see none."""
        over_pairs = smallest_effect(self.counts.n, self.counts.discordance, POWER, alpha)
        if self.runs is None or over_pairs is None:
            return over_pairs
        over_runs = smallest_effect_over_runs(self.runs.standard_error, self.runs.n_runs, POWER, alpha)
        return None if over_runs is None else max(over_pairs, over_runs)


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


def judge(
    model: str,
    arms: Mapping[str, Evidence],
    matched: Evidence | None,
    gates: Mapping[int, float],
    alpha: float = 0.05,
) -> tuple[Verdict, Verdict]:
    """Both verdicts on a model.

    Args:
        model: Its label.
        arms: Arm -> intact against that arm.
        matched: Intact against the parameter-matched model that was trained without memory.
        gates: Training seed -> mean |gate| of the intact arm; empty if the model logs none.
        alpha: Level of each test.

    Returns:
        "Memory used" and "memory needed at test time".
    """
    used_parts = {arm: arms.get(arm) for arm in USED_ARMS}
    needed_parts = {**used_parts, CLOSED_ARM: arms.get(CLOSED_ARM), MATCHED: matched}
    return (
        _verdict(model, USED, used_parts, gates, alpha),
        _verdict(model, NEEDED, needed_parts, gates, alpha),
    )


def _verdict(
    model: str, question: str, parts: Mapping[str, Evidence | None], gates: Mapping[int, float], alpha: float
) -> Verdict:
    found = {name: part for name, part in parts.items() if part is not None}
    failed = [part for part in found.values() if not (part.is_ahead and part.p <= alpha)]
    reasons = [_reason(part, part not in failed, alpha) for part in found.values()]
    missing = [name for name in parts if name not in found]
    shut = sorted(seed for seed, gate in gates.items() if gate < SHUT_GATE)
    if gates and len(shut) == len(gates):
        gate = f"mean |gate| is at most {max(gates.values()):.1e} in every training run (open from {SHUT_GATE:g})"
        if failed or missing:
            return Verdict(model, question, SHUT, (gate, *reasons), None, None)
        reasons.append(f"{gate}, yet its arms differ: something else than the memory does")
        return Verdict(model, question, UNDECIDED, tuple(reasons), max(part.p for part in found.values()), None)
    if shut:
        reasons.append(f"the gate never opened in training runs {', '.join(map(str, shut))}")
    reasons += [_missing(name) for name in missing]
    over_runs = found.get(MATCHED)
    undecided = bool(missing)
    if not failed and over_runs is not None and (over_runs.runs is None or over_runs.sequential is not None):
        # What a single run, or a look before the end, can't tell: whether retraining would give the same.
        reasons.append(
            "the comparison with the matched model needs "
            + ("at least two training runs" if over_runs.runs is None else "its interval over training runs, which "
               "holds its level only at the planned end: run without --sequential then")
        )  # fmt: skip
        undecided = True
    p = None if missing else max(part.p for part in found.values())
    if failed:
        effects = [part.smallest_effect(alpha) for part in failed]
        smallest = None if None in effects else max(effects)
        return Verdict(model, question, NOT_SHOWN, tuple(reasons), p, smallest)
    return Verdict(model, question, UNDECIDED if undecided else SHOWN, tuple(reasons), p, None)


def _reason(part: Evidence, holds: bool, alpha: float) -> str:
    text = f"{part.name}: {100 * part.counts.difference:+.1f} points over {part.counts.n} pairs, "
    if part.sequential is not None:
        text += f"anytime-valid p = {part.sequential.p:.2g}"
        if part.sequential.stopped_at is not None:
            text += f" (decided after {part.sequential.stopped_at} pairs)"
    else:
        text += f"p = {part.paired.p:.2g}"
        if part.runs is not None:
            text += f", over {part.runs.n_runs} training runs p = {part.runs.p:.2g}"
    if holds:
        return text
    effect = part.smallest_effect(alpha)
    seen = "no effect" if effect is None else f"an effect of {100 * effect:.1f} points"
    if not part.is_ahead and part.p <= alpha:
        text += "; intact is worse"
    return f"{text}; this n would have seen {seen} with {100 * POWER:.0f} % power"


def _missing(name: str) -> str:
    if name == MATCHED:
        return "no parameter-matched model without memory was named (--matched)"
    return f"arm {name} was not evaluated"
