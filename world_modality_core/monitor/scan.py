"""`wm-monitor scan`: the strangest moments of a recorded dataset, as a page, and the episodes to leave out."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets import LeRobotDataset

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text, writing
from world_modality_core.latents.companion import CompanionError, default_root
from world_modality_core.monitor.calibration import EpisodeScores
from world_modality_core.monitor.recorded_scores import score_episodes
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.prophet.data import CompanionFrames, default_source, open_companions

# Frames of a moment's filmstrip, this many ticks apart.
_STRIP = (-4, -2, -1, 0, 1, 2)
# Ticks on each side of a moment in which no other of the episode is shown.
_APART = 4


@dataclass(frozen=True)
class Moment:
    """A moment of a recorded episode.

    Attributes:
        episode: Its number.
        task: Its instruction.
        step: Steps since its start.
        time_s: The same, in seconds.
        level: How strange it is; an alarm above `line`.
        line: The task's line.
        scores: The raw scores that contribute most, with their surprise in nats.
        strip: (step, (h, w, 3) uint8 frame) of the frames around it.
        chart: The episode's level over time.
    """

    episode: int
    task: str
    step: int
    time_s: float
    level: float
    line: float
    scores: list[tuple[str, float]]
    strip: list[tuple[int, np.ndarray]]
    chart: Any


def scan(given: argparse.Namespace) -> dict[str, Any]:
    """Score a dataset's episodes and write `scan.json` and `scan.html`.

    Raises:
        ConfigError: before any work, naming option and remedy.
    """
    if given.n_moments < 1:
        raise ConfigError(f"n_moments={given.n_moments}: expected at least 1")
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"{error.name} is not installed: pip install 'lerobot_policy_world_modality[report]'"
        ) from error
    monitor = Monitor.load(given.monitor)
    (companion,) = open_companions([given.companion], "companion")
    if wrong := monitor.spec.differences(companion.spec):
        raise ConfigError(
            f"companion={given.companion!r} holds other latents than the monitor reads (monitor's != companion's): "
            f"{'; '.join(wrong)}. Make it with wm-precompute --reuse_from=ONE_THAT_THE_MONITOR_WAS_FITTED_ON"
        )
    dataset = _open_dataset(given, companion)
    sources = [given.dataset or default_source(companion)] if monitor.options.use_state else None
    frames = CompanionFrames([companion], sources)
    monitor.task_numbers(frames.tasks)
    episodes = list(range(len(frames.bounds)))
    scored = score_episodes(monitor, frames, episodes)
    levels = [monitor.calibration.level(of.task, of.steps, of.values) for of in scored]
    lines = [float(monitor.calibration.quantile[of.task]) for of in scored]
    alarming = [e for e in episodes if (levels[e] > lines[e]).any()]
    places = strangest([level - line for level, line in zip(levels, lines, strict=True)], given.n_moments)
    moments = [_moment(monitor, frames, dataset, e, i, scored[e], levels[e], lines[e]) for e, i in places]
    found = {
        "monitor": str(given.monitor),
        "companion": companion.repo_id,
        "n_episodes": len(episodes),
        "episodes": alarming,
        "levels": {e: float((levels[e] - lines[e]).max()) for e in episodes},
        "moments": [
            {"episode": m.episode, "step": m.step, "time_s": m.time_s, "level": m.level, "line": m.line,
             "task": m.task, "scores": dict(m.scores)}
            for m in moments
        ],
    }  # fmt: skip
    folder = Path(given.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scan.json", json.dumps(found, indent=1) + "\n")
    _write_page(folder / "scan.html", monitor, companion.source.repo_id, found, moments)
    print(_text(monitor, found, companion.source.repo_id, folder))
    return found


def strangest(excess: list[np.ndarray], n: int) -> list[tuple[int, int]]:
    """(episode, tick) of the n highest values, none within `_APART` ticks of a higher one of its episode."""
    places = sorted(((float(v), e, i) for e, of in enumerate(excess) for i, v in enumerate(of)), reverse=True)
    chosen: list[tuple[int, int]] = []
    for _, e, i in places:
        if len(chosen) == n:
            break
        if all(e != other or abs(i - j) > _APART for other, j in chosen):
            chosen.append((e, i))
    return chosen


def _open_dataset(given: argparse.Namespace, companion) -> LeRobotDataset:
    root = Path(given.dataset) if given.dataset else default_root(companion.source.repo_id)
    if not (root / "meta/info.json").is_file():
        raise ConfigError(
            f"no dataset at {str(root)!r} to show frames of; name the companion's source with --dataset=FOLDER"
        )
    dataset = LeRobotDataset(companion.source.repo_id, root=root)
    try:
        companion.check_source(dataset.meta)
    except CompanionError as error:
        raise ConfigError(f"dataset={str(root)!r}: {error}") from error
    if missing := [camera for camera in companion.spec.cameras if camera not in dataset.meta.camera_keys]:
        raise ConfigError(
            f"dataset={str(root)!r} has no frames of {missing[0]!r}: name the source, not its stripped copy"
        )
    return dataset


def _moment(
    monitor: Monitor,
    frames: CompanionFrames,
    dataset: LeRobotDataset,
    episode: int,
    tick: int,
    of: EpisodeScores,
    level: np.ndarray,
    line: float,
) -> Moment:
    from world_modality_core.studies.report.charts import Line, line_chart

    step, every = int(of.steps[tick]), monitor.description.future_stride
    start, end = frames.bounds[episode]
    rows = sorted({int(np.clip(start + step + ticks * every, start, end - 1)) for ticks in _STRIP})
    camera = monitor.spec.cameras[0]
    strip = [(row - int(start), (dataset[row][camera] * 255).round().byte().permute(1, 2, 0).numpy()) for row in rows]
    surprise = monitor.calibration.surprise(of.task, of.steps[[tick]], of.values[[tick]])[0]
    told = [(name, float(v)) for name, v in zip(monitor.score_names, surprise, strict=True) if np.isfinite(v)]
    fps = monitor.description.fps
    chart = line_chart(f"Episode {episode}", [Line("level", of.steps / fps, level)], "seconds", "level", reference=line)
    task = monitor.description.tasks[of.task]
    best = sorted(told, key=lambda pair: -pair[1])[:3]
    return Moment(episode, task, step, step / fps, float(level[tick]), line, best, strip, chart)


def _write_page(path: Path, monitor: Monitor, repo_id: str, found: dict[str, Any], moments: list[Moment]) -> None:
    from world_modality_core.studies.report.templates import template_environment

    template = template_environment(Path(__file__).parent).get_template("scan.html.jinja")
    rate = monitor.description.false_alarm_rate
    with writing(path) as aside, aside.open("w", encoding="utf-8") as file:
        file.writelines(template.generate(repo_id=repo_id, found=found, moments=moments, rate=rate))


def _text(monitor: Monitor, found: dict[str, Any], repo_id: str, folder: Path) -> str:
    n, alarming = found["n_episodes"], found["episodes"]
    lines = [
        f"{len(alarming)} of {n} episodes have an alarm; of successful ones like those that the monitor was calibrated "
        f"on, at most {monitor.description.false_alarm_rate:.1%} would: {alarming}",
        f"Page: {folder / 'scan.html'}",
    ]
    if alarming:
        keep = [e for e in range(n) if e not in alarming]
        lines += [
            "Look at them; then leave them out of a training run with",
            f'  lerobot-train --dataset.episodes="{json.dumps(keep, separators=(",", ":"))}" ...',
            "or delete them with",
            f"  lerobot-edit-dataset --repo_id={repo_id} --operation.type=delete_episodes "
            f'--operation.episode_indices="{alarming}"',
        ]
    return "\n".join(lines)
