"""Labels that are wrong on purpose. A metric that does not score them lower measures nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from coc_tools.judge.words import normal, same_thing, things
from coc_tools.schema import LabelStep, Relation, Steps

FOREIGN = ("mug", "drawer", "screwdriver", "banana", "lamp", "towel")
"""Stand-ins where a dataset names one thing only."""


def shuffled_steps(steps: Steps, length_s: float, names: Sequence[str], rng: np.random.Generator) -> list[LabelStep]:
    """What happens moves to other times: the contents change places, none stays, the spans stay."""
    if len(steps) < 2:
        return list(steps)
    order = rng.permutation(len(steps))
    while (order == np.arange(len(steps))).any():
        order = rng.permutation(len(steps))
    spans = [{"start_s": step.start_s, "end_s": step.end_s} for step in steps]
    return [steps[k].model_copy(update=span) for k, span in zip(order, spans, strict=True)]


def swapped_objects(steps: Steps, length_s: float, names: Sequence[str], rng: np.random.Generator) -> list[LabelStep]:
    """Each thing becomes another one of `names`, throughout an episode; what is done to it stays."""
    swap = {}
    for name in dict.fromkeys(name for step in steps for name in things(step)):
        others = [other for other in (*names, *FOREIGN) if not same_thing(other, name)]
        swap[name] = others[rng.integers(len(others))]
    return [
        step.model_copy(
            update={
                "objects": [swap[name] for name in things(step)],
                "relations": [
                    Relation(subject=r.subject, relation=r.relation, object=swap.get(normal(r.object), r.object))
                    for r in step.relations
                ],
            }
        )
        for step in steps
    ]


def shifted_times(steps: Steps, length_s: float, names: Sequence[str], rng: np.random.Generator) -> list[LabelStep]:
    """Everything happens later, by one to two thirds of the episode; what leaves it at the end comes at its start."""
    shift = rng.uniform(1 / 3, 2 / 3) * length_s
    shifted = []
    for step in steps:
        start = (step.start_s + shift) % length_s
        end = min(start + step.end_s - step.start_s, length_s)
        if end > start:
            shifted.append(step.model_copy(update={"start_s": start, "end_s": end}))
    return sorted(shifted, key=lambda step: step.start_s)


CORRUPTIONS: dict[str, Callable[..., list[LabelStep]]] = {
    "shuffled steps": shuffled_steps,
    "swapped objects": swapped_objects,
    "shifted times": shifted_times,
}
