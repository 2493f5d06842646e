"""What the demo's page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from results import Result


@dataclass
class Step:
    """One future step of a moment.

    Attributes:
        offset: Frames ahead.
        found: (h, w, 3) uint8 recorded frame whose latent is nearest to the predicted one.
        found_where: Its episode and frame, in words.
        real: (h, w, 3) uint8 frame that really came.
        cosine: Predicted to real latent.
        copy_cosine: Current to real latent.
    """

    offset: int
    found: np.ndarray
    found_where: str
    real: np.ndarray
    cosine: float
    copy_cosine: float


@dataclass
class Moment:
    """One frame of a held-out episode and what was foreseen there."""

    task: str
    episode: int
    frame: int
    now: np.ndarray
    steps: list[Step]


@dataclass
class Imagined:
    """Moments, and the mean over all held-out frames.

    Attributes:
        moments: The pictures.
        offsets: Frames ahead, k values.
        cosine: Mean cosine of predicted to real latents, per offset.
        copy_cosine: Mean cosine of current to real latents, per offset.
        n_frames: Held-out frames that the means are over.
        n_episodes: Held-out episodes.
        n_searched: Recorded frames that the nearest one was searched among.
        fps: Frames per second.
    """

    moments: list[Moment]
    offsets: list[int]
    cosine: list[float]
    copy_cosine: list[float]
    n_frames: int
    n_episodes: int
    n_searched: int
    fps: float


@dataclass
class Video:
    """A rollout: what it shows and its file."""

    caption: str
    path: Path


@dataclass
class PageData:
    """Everything that the page shows.

    Attributes:
        results: Per task and over all, of the policy.
        blind: The same of the blind control; empty without one.
        metrics: One dict per line of the policy's metrics file, steps ascending.
        videos: Rollouts.
        imagined: The imagined futures.
        stages: (name, what, command, time in words).
    """

    results: list[Result]
    blind: list[Result]
    metrics: list[dict[str, float]]
    videos: list[Video]
    imagined: Imagined
    stages: list[tuple[str, str, str, str]]
