"""What the demo's page shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from results import Result
from world_modality_core.studies.report.film import Imagined, Picture


@dataclass
class Video:
    """A rollout: what it shows and its file."""

    caption: str
    path: Path


@dataclass
class PageData:
    """Everything that the page shows; what isn't there yet is empty.

    Attributes:
        stages: (name, what, command, time in words or "runs" or "waits").
        demonstrations: (task in words, pictures (h, w, 3) of one recorded episode).
        results: Per task and over all, of the policy.
        no_memory: The same of the same policy behind a closed gate.
        blind: The same of the control without images.
        verdict: What `wm-compare --brief` says.
        metrics: One dict per line of the policy's metrics file, steps ascending.
        videos: Rollouts.
        imagined: The imagined futures.
        is_done: Whether nothing more will come.
    """

    stages: list[tuple[str, str, str, str]]
    demonstrations: list[tuple[str, list[Picture]]] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    no_memory: list[Result] = field(default_factory=list)
    blind: list[Result] = field(default_factory=list)
    verdict: str = ""
    metrics: list[dict[str, float]] = field(default_factory=list)
    videos: list[Video] = field(default_factory=list)
    imagined: Imagined | None = None
    is_done: bool = True
