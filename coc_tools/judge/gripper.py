"""Does the gripper do what a label says? The one check that needs no reference."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from coc_tools.config import GripperConfig
from coc_tools.judge.words import relation_of
from coc_tools.schema import LabelStep, Steps
from world_modality_core.io.errors import ConfigError

if TYPE_CHECKING:  # LeRobot and torch
    from coc_tools.episodes import EpisodeReader, SignalDimension

HELD = ("lifts", "carries", "places")


@dataclass(frozen=True)
class GripperSignal:
    """When the gripper is commanded to be closed.

    Attributes:
        is_closed: (t,) bool, per frame.
        fps: frames per second.
    """

    is_closed: np.ndarray
    fps: float

    def within(self, step: LabelStep) -> np.ndarray:
        """The frames of a step; a time may be off by one frame."""
        first = max(0, int(np.floor(step.start_s * self.fps)) - 1)
        last = int(np.ceil(step.end_s * self.fps)) + 1
        return self.is_closed[first : last + 1]


def gripper_range(reader: EpisodeReader, dimension: SignalDimension) -> tuple[float, float]:
    """Least and greatest value of a signal in the whole dataset.

    Raises:
        ConfigError: the dataset has no statistics of it.
    """
    stats = (reader.meta.stats or {}).get(dimension.key)
    if stats is None:
        raise ConfigError(f"gripper.key={dimension.key!r}: {reader.root} has no statistics of it in meta/stats.json")
    return float(np.ravel(stats["min"])[dimension.index]), float(np.ravel(stats["max"])[dimension.index])


def read_grippers(
    reader: EpisodeReader, episodes: Iterable[int], cfg: GripperConfig
) -> tuple[SignalDimension, dict[int, GripperSignal]]:
    """Which signal is the gripper's, and what it is in some episodes.

    Raises:
        ConfigError: the dataset has no such feature or dimension, or fewer episodes.
    """
    dimension = reader.dimension(cfg.key, cfg.dim, "gripper.")
    if dimension is None:
        raise ConfigError(f"gripper.key={cfg.key!r}: {reader.root} has no actions; name another feature, or no dataset")
    low, high = gripper_range(reader, dimension)
    middle = (low + high) / 2
    signals = {}
    for episode in episodes:
        if episode >= len(reader):
            raise ConfigError(f"episode {episode} is labelled, but {reader.root} has {len(reader)} episodes")
        signal = reader[episode].signal(dimension)
        is_closed = signal > middle if cfg.closed_is == "high" else signal < middle
        signals[episode] = GripperSignal(is_closed, reader.meta.fps)
    return dimension, signals


def gripper_agreement(steps: Steps, signal: GripperSignal) -> tuple[int, int]:
    """How many of the steps that say something about the gripper it does not contradict, and how many say something.

    A grasp needs a frame with the gripper closed, a release one with it open, and what is lifted, carried or placed a
    gripper that is closed for at least half of the step.
    """
    n_agree = n_steps = 0
    for step in steps:
        relation = relation_of(step)
        frames = signal.within(step)
        if relation not in ("grasps", "releases", *HELD) or not len(frames):
            continue
        n_steps += 1
        if relation == "grasps":
            n_agree += bool(frames.any())
        elif relation == "releases":
            n_agree += not frames.all()
        else:
            n_agree += bool(frames.mean() >= 0.5)
    return n_agree, n_steps
