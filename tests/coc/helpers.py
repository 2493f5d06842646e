"""Labels and backends for the tests."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from coc_tools.backends import LabelRequest, Reply
from coc_tools.config import KeyframesConfig
from coc_tools.episodes import EpisodeReader
from coc_tools.pipeline import Summary, label_episodes
from coc_tools.prompts import load_prompt
from coc_tools.request import RequestBuilder, choose_gripper
from coc_tools.schema import EpisodeLabel, LabelStep, Provenance
from coc_tools.store import LabelFile

PROVENANCE = Provenance(backend="test", model="m", date="2026-01-01T00:00:00+00:00", tool_version="1")


def step(start_s: float, end_s: float, what: str = "The gripper pushes the puck", **kwargs) -> LabelStep:
    """A step; "why" names the step."""
    values = {"why": f"the goal of {start_s} is near", "objects": ["puck"], "outcome": "success"}
    return LabelStep(start_s=start_s, end_s=end_s, what=what, **(values | kwargs))


def label_of(reader: EpisodeReader, episode: int, starts: Sequence[float] = (0.0, 0.5), mark: str = "") -> EpisodeLabel:
    """A label of an episode with a step at each of some times; the texts name the episode and the step."""
    known = reader[episode]
    ends = [*starts[1:], known.length_s]
    return EpisodeLabel(
        episode_index=episode,
        task=known.task,
        length_s=known.length_s,
        steps=[step(a, b, f"Step {a} of episode {episode}{mark}") for a, b in zip(starts, ends, strict=True)],
        provenance=PROVENANCE,
    )


def steps_json(length_s: float, *whats: str) -> str:
    """A valid reply whose steps share the episode's length."""
    whats = whats or ("The gripper moves to the puck", "The gripper pushes the puck")
    width = length_s / len(whats)
    steps = [step(round(i * width, 4), round((i + 1) * width, 4), what) for i, what in enumerate(whats)]
    return json.dumps({"steps": [s.model_dump() for s in steps]})


class ScriptedLabeller:
    """A backend that answers by a function of the request; notes what it was asked."""

    name, model, revision, sampling = "scripted", "script", None, {}

    def __init__(self, script: Callable[[LabelRequest], str], n_workers: int = 4, batch_size: int = 1) -> None:
        self.script, self.n_workers, self.batch_size, self.needs_images = script, n_workers, batch_size, True
        self.asked: list[LabelRequest] = []
        self.batches: list[int] = []
        self._lock = threading.Lock()

    def label_many(self, requests: Sequence[LabelRequest]) -> list[Reply]:
        with self._lock:
            self.asked += requests
            self.batches.append(len(requests))
        return [Reply(self.script(request), 10, 5) for request in requests]

    def close(self) -> None:
        pass


def builder_of(reader: EpisodeReader, **kwargs) -> RequestBuilder:
    """A request builder with the package's prompt."""
    config = KeyframesConfig(**kwargs)
    return RequestBuilder(load_prompt("coc_v1"), config, reader.cameras, choose_gripper(config, reader))


def run_pipeline(reader: EpisodeReader, labeller, path: Path, episodes=None, **kwargs) -> Summary:
    """`label_episodes` of all episodes that the label file doesn't have."""
    with LabelFile(path) as labels:
        todo = [e for e in (range(len(reader)) if episodes is None else episodes) if e not in labels]
        return label_episodes(reader, todo, builder_of(reader), labeller, labels, show_progress=False, **kwargs)
