"""Which step of a label is which step of the reference: by time, or by what it says."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment

from coc_tools.judge.words import relation_of, same_thing, things
from coc_tools.schema import Steps

Pairs = list[tuple[int, int]]
"""(index in the label's steps, index in the reference's steps), by the former."""

_TIE = 1e-3
"""Weight of what only decides between otherwise equal assignments."""


def temporal_iou(label: Steps, reference: Steps) -> np.ndarray:
    """(n label, n reference) intersection over union of the steps' spans, 0 to 1."""
    a = np.array([(s.start_s, s.end_s) for s in label], dtype=float).reshape(-1, 1, 2)
    b = np.array([(s.start_s, s.end_s) for s in reference], dtype=float).reshape(1, -1, 2)
    overlap = np.clip(np.minimum(a[..., 1], b[..., 1]) - np.maximum(a[..., 0], b[..., 0]), 0, None)
    union = (a[..., 1] - a[..., 0]) + (b[..., 1] - b[..., 0]) - overlap
    return overlap / union


def object_overlap(label: Steps, reference: Steps) -> np.ndarray:
    """(n label, n reference) Jaccard overlap of the things that the steps name, the robot apart; 1 if neither does."""
    named, referred = [things(s) for s in label], [things(s) for s in reference]
    overlap = np.array([[_jaccard(a, b) for b in referred] for a in named])
    return overlap.reshape(len(label), len(reference))


def match_by_time(label: Steps, reference: Steps, min_iou: float) -> Pairs:
    """One-to-one pairs of steps with the largest total of temporal IoU; the same things decide between equals.

    Args:
        label: steps to be judged.
        reference: the true steps.
        min_iou: pairs below it are not allowed.
    """
    iou = temporal_iou(label, reference)
    return _assign(np.where(iou >= min_iou, iou + _TIE * object_overlap(label, reference), 0.0))


def match_by_content(label: Steps, reference: Steps) -> Pairs:
    """One-to-one pairs of steps that tell the same: the same relation, and a thing in common.

    Time only decides between repeated events, so that the order of the pairs is the label's own. Steps whose relation
    is not known take no part.
    """
    overlap = object_overlap(label, reference)
    found, true = [relation_of(s) for s in label], [relation_of(s) for s in reference]
    same = np.array([[a is not None and a == b for b in true] for a in found], dtype=bool).reshape(overlap.shape)
    near = temporal_iou(label, reference)
    return _assign(np.where(same & (overlap > 0), overlap + _TIE * near, 0.0))


def concordance(label: Steps, reference: Steps, pairs: Pairs) -> tuple[int, int]:
    """How many pairs of matched steps come in the same order in both, and how many there are (Kendall's pairs)."""
    times = [(label[i].start_s, reference[j].start_s) for i, j in pairs]
    n_same = n_all = 0
    for k, (a, b) in enumerate(times):
        for other_a, other_b in times[k + 1 :]:
            n_all += 1
            n_same += (a - other_a) * (b - other_b) > 0
    return n_same, n_all


def _assign(weight: np.ndarray) -> Pairs:
    """The assignment of largest total weight; pairs of weight 0 are none."""
    if weight.size == 0:
        return []
    rows, columns = linear_sum_assignment(weight, maximize=True)
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if weight[i, j] > 0]


def _jaccard(one: list[str], other: list[str]) -> float:
    if not one and not other:
        return 1.0
    n_common = sum(any(same_thing(a, b) for b in other) for a in one)
    return n_common / (len(one) + len(other) - n_common)
