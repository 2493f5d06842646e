"""The metrics: what each counts in an episode, and which corruptions it must detect."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from coc_tools.judge.gripper import GripperSignal, gripper_agreement
from coc_tools.judge.matching import Pairs, concordance, match_by_content, match_by_time, object_overlap
from coc_tools.judge.words import relation_of, things
from coc_tools.schema import Steps

Counts = tuple[float, float]
"""(numerator, denominator): a score over episodes is the quotient of the sums."""


@dataclass(frozen=True)
class Case:
    """A label of one episode and what it is held against.

    Attributes:
        label: its steps.
        reference: the true steps.
        gripper: None where no dataset was given.
        min_iou: of steps that are matched by time.
    """

    label: Steps
    reference: Steps
    gripper: GripperSignal | None
    min_iou: float

    @cached_property
    def pairs(self) -> Pairs:
        """Steps matched by time."""
        return match_by_time(self.label, self.reference, self.min_iou)


@dataclass(frozen=True)
class Metric:
    """A share between 0 and 1, the higher the better.

    Attributes:
        name: as in tables and JSON.
        count: what it counts in an episode.
        must_detect: corruptions that must lower it.
        needs_gripper: whether it looks at the gripper's signal.
    """

    name: str
    count: Callable[[Case], Counts]
    must_detect: tuple[str, ...]
    needs_gripper: bool = False


def _recall(case: Case) -> Counts:
    return len(case.pairs), len(case.reference)


def _precision(case: Case) -> Counts:
    return len(case.pairs), len(case.label)


def _object_accuracy(case: Case) -> Counts:
    """Jaccard overlap of the things named, over the steps matched by time in which the reference names any."""
    overlap = object_overlap(case.label, case.reference)
    pairs = [(i, j) for i, j in case.pairs if things(case.reference[j])]
    return float(sum(overlap[i, j] for i, j in pairs)), len(pairs)


def _relation_accuracy(case: Case) -> Counts:
    """Over the steps matched by time whose relation is known on both sides."""
    pairs = [(relation_of(case.label[i]), relation_of(case.reference[j])) for i, j in case.pairs]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    return sum(a == b for a, b in known), len(known)


def _order(case: Case) -> Counts:
    pairs = match_by_content(case.label, case.reference)
    return concordance(case.label, case.reference, pairs)


def _gripper(case: Case) -> Counts:
    return gripper_agreement(case.label, case.gripper)


METRICS = (
    Metric("step_recall", _recall, ("shifted times",)),
    Metric("step_precision", _precision, ("shifted times",)),
    Metric("object_accuracy", _object_accuracy, ("swapped objects",)),
    Metric("relation_accuracy", _relation_accuracy, ("shuffled steps",)),
    Metric("order_agreement", _order, ("shuffled steps",)),
    Metric("gripper_agreement", _gripper, ("shuffled steps", "shifted times"), needs_gripper=True),
)
