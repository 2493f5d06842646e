"""What the demo's page shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from results import Result
from world_modality_core.studies.report.film import Imagined


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
