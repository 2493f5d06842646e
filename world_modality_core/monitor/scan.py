"""`wm-monitor scan`: the strangest moments of a recorded dataset, as a page, and the episodes to leave out."""

from __future__ import annotations

import argparse
import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.datasets import LeRobotDataset

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text
from world_modality_core.latents.companion import CompanionError, default_root
from world_modality_core.monitor.calibration import EpisodeScores
from world_modality_core.monitor.recorded_scores import score_episodes
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.monitor.strips import Picture, Strip, check_report_extra, level_chart, write_page
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
    """

    episode: int
    task: str
    step: int
    time_s: float
    level: float
    line: float
    scores: dict[str, float]


def scan(given: argparse.Namespace) -> dict[str, Any]:
    """Score a dataset's episodes and write `scan.json` and `scan.html`.

    Raises:
        ConfigError: before any work, naming option and remedy.
    """
    if given.n_moments < 1:
        raise ConfigError(f"n_moments={given.n_moments}: expected at least 1")
    check_report_extra()
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
    moments = [_moment(monitor, scored[e], e, i, float(levels[e][i]), lines[e]) for e, i in places]
    found = {
        "monitor": str(given.monitor),
        "companion": companion.repo_id,
        "n_episodes": len(episodes),
        "episodes": alarming,
        "levels": {e: float((levels[e] - lines[e]).max()) for e in episodes},
        "moments": [asdict(moment) for moment in moments],
    }
    folder = Path(given.output_dir).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "scan.json", json.dumps(found, indent=1) + "\n")
    strips = [_strip(monitor, frames, dataset, moment, scored[moment.episode], levels) for moment in moments]
    name, rate = companion.source.repo_id, monitor.description.false_alarm_rate
    intro = (
        f"{len(alarming)} of {len(episodes)} episodes have an alarm{': ' * bool(alarming)}{str(alarming)[1:-1]}. Of "
        f"successful ones like those that the monitor was calibrated on, at most {rate:.1%} would. A moment is strange "
        "where frames aren't as a Prophet forecast them, or like nothing in successful episodes; the grey line is "
        "where alarms begin."
    )
    write_page(folder / "scan.html", f"Strangest moments of {name}", intro, strips)
    print(_text(monitor, found, dataset, folder))
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


def _moment(monitor: Monitor, of: EpisodeScores, episode: int, tick: int, level: float, line: float) -> Moment:
    surprise = monitor.calibration.surprise(of.task, of.steps[[tick]], of.values[[tick]])[0]
    told = {name: float(v) for name, v in zip(monitor.score_names, surprise, strict=True) if np.isfinite(v)}
    best = dict(sorted(told.items(), key=lambda pair: -pair[1])[:3])
    step, task = int(of.steps[tick]), monitor.description.tasks[of.task]
    return Moment(episode, task, step, step / monitor.description.fps, level, line, best)


def _strip(
    monitor: Monitor,
    frames: CompanionFrames,
    dataset: LeRobotDataset,
    moment: Moment,
    of: EpisodeScores,
    levels: list[np.ndarray],
) -> Strip:
    start, end = frames.bounds[moment.episode]
    ticks = (moment.step + i * monitor.description.future_stride for i in _STRIP)
    steps = sorted({int(np.clip(step, 0, end - start - 1)) for step in ticks})
    camera = monitor.spec.cameras[0]
    pictures = [
        Picture(
            (dataset[int(start) + step][camera] * 255).round().byte().permute(1, 2, 0).numpy(),
            f"frame {step}",
            step == moment.step,
        )
        for step in steps
    ]
    chart = level_chart(
        f"Episode {moment.episode}",
        "seconds",
        of.steps / monitor.description.fps,
        levels[moment.episode],
        moment.line,
    )
    scores = ", ".join(f"{name} ({nats:.1f} nats)" for name, nats in moment.scores.items())
    alarm = ": alarm" if moment.level > moment.line else ""
    return Strip(
        f"Episode {moment.episode}, {moment.time_s:.2f} s{alarm} ({moment.task})",
        f"Level {moment.level:.1f}, line {moment.line:.1f}; most of it from {scores}.",
        pictures,
        chart,
    )


def _text(monitor: Monitor, found: dict[str, Any], dataset: LeRobotDataset, folder: Path) -> str:
    n, alarming = found["n_episodes"], found["episodes"]
    lines = [
        f"{len(alarming)} of {n} episodes have an alarm; of successful ones like those that the monitor was calibrated "
        f"on, at most {monitor.description.false_alarm_rate:.1%} would: {alarming}",
        f"Page: {folder / 'scan.html'}",
    ]
    keep = [e for e in range(n) if e not in alarming]
    if alarming and keep:
        delete = [
            f"--repo_id={dataset.repo_id}", f"--root={dataset.root}", f"--new_repo_id={dataset.repo_id}_kept",
            f"--new_root={dataset.root}_kept", "--operation.type=delete_episodes",
            f"--operation.episode_indices={alarming}",
        ]  # fmt: skip
        lines += [
            "Look at them; then leave them out of a training run with",
            f'  lerobot-train --dataset.episodes="{json.dumps(keep, separators=(",", ":"))}" ...',
            "or write a copy without them with",
            f"  {shlex.join(['lerobot-edit-dataset', *delete])}",
        ]
    return "\n".join(lines)
