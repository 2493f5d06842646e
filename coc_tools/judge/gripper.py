"""Does the gripper do what a label says? The one check that needs no reference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from coc_tools.episodes import EpisodeReader
from coc_tools.judge.words import relation_of
from coc_tools.schema import Step

HELD = ("lifts", "carries", "places")


@dataclass
class GripperConfig:
    """Where a dataset says what the gripper is told to do."""

    # Feature that holds the gripper signal, and the dimension of it.
    key: str = "action"
    dim: int = -1
    # Whether large or small values close it; the border is the middle of the dataset's range.
    closed_is: Literal["high", "low"] = "high"


@dataclass(frozen=True)
class GripperSignal:
    """When the gripper is told to be closed.

    Attributes:
        is_closed: (t,) bool, per frame.
        fps: frames per second.
    """

    is_closed: np.ndarray
    fps: float

    def within(self, step: Step) -> np.ndarray:
        """The frames of a step; a time may be off by one frame."""
        first = max(0, int(np.floor(step.start_s * self.fps)) - 1)
        last = int(np.ceil(step.end_s * self.fps)) + 1
        return self.is_closed[first : last + 1]


def gripper_range(reader: EpisodeReader, cfg: GripperConfig) -> tuple[float, float]:
    """Least and greatest value of the gripper's signal in the whole dataset.

    Raises:
        ValueError: the dataset has no such feature or dimension.
    """
    stats = (reader.meta.stats or {}).get(cfg.key)
    if stats is None:
        raise ValueError(f"gripper.key={cfg.key!r}: the dataset has no statistics of such a feature")
    low, high = np.ravel(stats["min"]), np.ravel(stats["max"])
    if not -len(low) <= cfg.dim < len(low):
        raise ValueError(f"gripper.dim={cfg.dim}: {cfg.key} has {len(low)} dimensions")
    return float(low[cfg.dim]), float(high[cfg.dim])


def read_grippers(reader: EpisodeReader, episodes: Iterable[int], cfg: GripperConfig) -> dict[int, GripperSignal]:
    """The gripper's signal of some episodes.

    Raises:
        ValueError: the dataset has no such feature or dimension, or fewer episodes.
    """
    low, high = gripper_range(reader, cfg)
    middle = (low + high) / 2
    signals = {}
    for episode in episodes:
        if episode >= len(reader):
            raise ValueError(f"episode {episode} is labelled, but {reader.root} has {len(reader)} episodes")
        signal = reader[episode].gripper(cfg.key, cfg.dim)
        is_closed = signal > middle if cfg.closed_is == "high" else signal < middle
        signals[episode] = GripperSignal(is_closed, reader.meta.fps)
    return signals


def gripper_agreement(steps: Sequence[Step], signal: GripperSignal) -> tuple[int, int]:
    """How many of the steps that tell something about the gripper it does not contradict, and how many do tell.

    A grasp needs a frame with the gripper closed, a release one with it open, and what is lifted, carried or placed a
    gripper that is closed for at least half of the step.
    """
    n_agree = n_told = 0
    for step in steps:
        relation = relation_of(step)
        frames = signal.within(step)
        if relation not in ("grasps", "releases", *HELD) or not len(frames):
            continue
        n_told += 1
        if relation == "grasps":
            n_agree += bool(frames.any())
        elif relation == "releases":
            n_agree += not frames.all()
        else:
            n_agree += bool(frames.mean() >= 0.5)
    return n_agree, n_told
