"""Tasks that one frame can't solve: a cue is shown while the robot is held, and gone when it may move.

After the kinds that RoboMME (arXiv:2603.04639) tests: permanence, reference, order and counting. Scenes are
Meta-World's `reach-v3` with marks that are drawn and have no body; its scripted expert reaches for what the cue asked
for. A task is failed for good by touching what it didn't ask for, so that trying everything is no solution.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import mujoco
import numpy as np
from numpy.random import Generator

SPHERE, BOX = mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_BOX
BLUE, YELLOW, RED, GREY, DARK = (
    (0.1, 0.3, 0.9, 1), (1, 0.9, 0.1, 1), (0.9, 0.1, 0.1, 1), (0.5, 0.5, 0.55, 1), (0.15, 0.15, 0.15, 1)
)  # fmt: skip

# Seen beside the arm from Meta-World's cameras, and so far apart that the expert's way between two of them, or to them
# from where the hand starts, doesn't touch the third.
TRIANGLE = np.array([[0.2, 0.64, 0.1], [0.12, 0.86, 0.1], [-0.13, 0.86, 0.1]])
LAMP = np.array([0.0, 0.9, 0.25])
TOUCH_M, LEAVE_M = 0.05, 0.08
RISE = np.array([0.0, 0.0, 0.15])


class Mark(NamedTuple):
    """A geom that is drawn and has no body: type, half sizes and position in metres, colour."""

    shape: int
    size: tuple[float, float, float]
    position: np.ndarray
    rgba: tuple[float, float, float, float]


@dataclass(frozen=True)
class MemoryTask:
    """One task.

    Attributes:
        instruction: What the policy is told.
        cue_steps: Steps in which the cue is shown and the robot held.
        draw: Draws places (j, 3) and the answer: the places to touch, in this order.
        marks: (places, answer, step) -> what is drawn at a step; from `cue_steps` on the same for every answer.
        settle_steps: The answer is given once nothing was touched for so long after a touch; 0: at the last touch.
    """

    instruction: str
    cue_steps: int
    draw: Callable[[Generator], tuple[np.ndarray, tuple[int, ...]]]
    marks: Callable[[np.ndarray, tuple[int, ...], int], list[Mark]]
    settle_steps: int = 0


def _ball(position: np.ndarray, rgba, radius: float = 0.03) -> Mark:
    return Mark(SPHERE, (radius, radius, radius), position, rgba)


def _triangle(rng: Generator) -> np.ndarray:
    return TRIANGLE + rng.uniform(-0.015, 0.015, TRIANGLE.shape)


def _one_of_three(rng: Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    return _triangle(rng), (int(rng.integers(3)),)


def _anywhere(rng: Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    return rng.uniform([0.03, 0.66, 0.06], [0.22, 0.86, 0.24])[None], (0,)


def _an_order(rng: Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    return _triangle(rng), tuple(int(i) for i in rng.permutation(3))


def _one_to_three_times(rng: Generator) -> tuple[np.ndarray, tuple[int, ...]]:
    return rng.uniform([0.05, 0.68, 0.08], [0.2, 0.8, 0.08])[None], (0,) * int(rng.integers(1, 4))


def _place(places, answer, step):
    return [_ball(places[0], RED)] if step < 24 else []


def _cover(places, answer, step):
    lifted = 0.15 if step < 24 else 0.0
    covers = [Mark(BOX, (0.04, 0.04, 0.05), place - [0, 0, 0.05 - lifted], GREY) for place in places]
    return covers + ([_ball(places[answer[0]] - [0, 0, 0.06], RED)] if lifted else [])


def _highlight(places, answer, step):
    return [_ball(place, YELLOW if step < 24 and i == answer[0] else BLUE) for i, place in enumerate(places)]


def _sequence(places, answer, step):
    lit = answer[step // 16] if step < 48 else None
    return [_ball(place, YELLOW if i == lit else BLUE) for i, place in enumerate(places)]


def _blinks(places, answer, step):
    is_on = step < 48 and step % 16 < 8 and step // 16 < len(answer)
    return [_ball(places[0], RED), _ball(LAMP, YELLOW if is_on else DARK, 0.05)]


MEMORY_TASKS = {
    "recall-place": MemoryTask("Reach for the place that was shown", 24, _anywhere, _place),
    "recall-cover": MemoryTask("Touch the cover that hides the ball", 32, _one_of_three, _cover),
    "recall-highlight": MemoryTask("Touch the ball that was highlighted", 24, _one_of_three, _highlight),
    "recall-order": MemoryTask("Touch the balls in the order in which they lit up", 48, _an_order, _sequence),
    "recall-count": MemoryTask("Touch the ball as often as the lamp blinked", 48, _one_to_three_times, _blinks, 40),
}


class Touches:
    """What the hand has touched so far, and whether that is the answer.

    Args:
        task: The task.
        places: (j, 3).
        answer: The places to touch.
    """

    def __init__(self, task: MemoryTask, places: np.ndarray, answer: tuple[int, ...]):
        self.task, self.places, self.answer = task, places, answer
        self.touched: list[int] = []
        self._inside: int | None = None
        self._n_away = 0
        self.has_failed = self.has_succeeded = False

    def note(self, hand: np.ndarray) -> None:
        """Take in where the hand (3,) is after a step."""
        distances = np.linalg.norm(self.places - hand, axis=1)
        nearest = int(distances.argmin())
        if self._inside is None and distances[nearest] < TOUCH_M:
            self.touched.append(nearest)
            self._inside, self._n_away = nearest, 0
        elif self._inside is None:
            self._n_away += 1
        elif distances[self._inside] > LEAVE_M:
            self._inside = None
        is_given = len(self.touched) >= len(self.answer)
        if self.task.settle_steps:
            is_given = bool(self.touched) and self._inside is None and self._n_away >= self.task.settle_steps
        is_prefix = tuple(self.touched) == self.answer[: len(self.touched)]
        self.has_failed |= not is_prefix or (is_given and len(self.touched) < len(self.answer))
        self.has_succeeded |= is_given and not self.has_failed

    def aim(self) -> np.ndarray:
        """(3,) where the expert reaches for."""
        n = len(self.touched)
        if self.task.settle_steps and (self._inside is not None or n >= len(self.answer)):
            return self.places[self.answer[0]] + RISE
        return self.places[self.answer[min(n, len(self.answer) - 1)]]
