"""`wm-monitor fit`: from Prophets and successful episodes to a monitor that keeps a promised rate of false alarms."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from world_modality_core.configs import check_at_least
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json
from world_modality_core.monitor.calibration import EpisodeScores, calibrate, phase_of, split_in_two
from world_modality_core.monitor.monitor_rows import read_monitor_rows, scores_of_rows
from world_modality_core.monitor.recorded_scores import score_episodes
from world_modality_core.monitor.saved_monitor import Monitor, MonitorDescription
from world_modality_core.prophet.data import CompanionFrames, default_source, open_companions
from world_modality_core.prophet.episode_split import parse_episodes
from world_modality_core.prophet.saved_prophet import CONFIG_FILE, ProphetCheckpoint, ProphetWeights
from world_modality_core.studies.evidence.checkpoint import label_of

# Latents of each task and phase that the nearest one is looked for among.
N_KEPT = 128
# Share of a task's episodes that become the reference, where the Prophet learned from none of them.
REFERENCE_SHARE = 0.25


def fit(given: argparse.Namespace) -> Monitor:
    """Fit a monitor, save it, and say what it was fitted on.

    Raises:
        ConfigError: before any work, naming the option and the remedy.
    """
    if bool(given.prophet) == bool(given.monitor):
        raise ConfigError("give either --prophet (and --companions) or --monitor (and --rows)")
    if given.prophet and not given.companions:
        raise ConfigError("companions is empty: name the latents of successful episodes with --companions")
    if given.monitor and not given.rows:
        raise ConfigError("rows is empty: name the folders of wm-eval --monitor that hold the episodes to calibrate on")
    if not 0 < given.false_alarm_rate < 1:
        raise ConfigError(f"false_alarm_rate={given.false_alarm_rate}: expected a share between 0 and 1")
    check_at_least(given, 1, "n_phases", "window")
    check_at_least(given, 0, "seed")
    monitor, lines = _fit_again(given) if given.monitor else _fit_anew(given)
    monitor.save(Path(given.output_dir).resolve())
    use = shlex.quote(f"--monitor={given.output_dir}")
    print("\n".join([*lines, f"Monitor: {given.output_dir}\n  use it with wm-eval {use}"]))
    return monitor


# Anew: from a Prophet and companions.


def _fit_anew(given: argparse.Namespace) -> tuple[Monitor, list[str]]:
    checkpoints = [ProphetCheckpoint.read(name.strip(), "prophet") for name in given.prophet.split(",")]
    weights = [checkpoint.weights() for checkpoint in checkpoints]
    _check_alike(checkpoints, weights)
    companions = open_companions([name.strip() for name in given.companions.split(",")])
    first = checkpoints[0]
    if wrong := first.encoder.differences(companions[0].spec):
        raise ConfigError(
            f"prophet={str(first.folder)!r} was trained on other latents than those of {companions[0].root} (Prophet's "
            f"!= companion's): {'; '.join(wrong)}. Make the companion with wm-precompute --reuse_from=ONE_OF_THE_"
            "PROPHET'S_COMPANIONS"
        )
    sources = None
    if first.prophet.use_state:
        named = [name.strip() for name in given.sources.split(",") if name.strip()]
        if named and len(named) != len(companions):
            raise ConfigError(f"sources={given.sources!r} names {len(named)} folders for {len(companions)} companions")
        sources = named or [default_source(companion) for companion in companions]
    frames = CompanionFrames(companions, sources)
    chosen, reference = _choose(given, frames, checkpoints)
    tasks = sorted({frames.tasks[i] for i in frames.episode_task()[chosen]})
    rng = np.random.default_rng(given.seed)
    number = {task: i for i, task in enumerate(tasks)}
    of_task = {i: [e for e in chosen if number[frames.tasks[frames.episode_task()[e]]] == i] for i in range(len(tasks))}
    references, calibrating, split = {}, {}, {}
    for i, episodes in of_task.items():
        known = [e for e in episodes if e in reference]
        rest = [e for e in episodes if e not in reference]
        if not known:
            drawn = rng.permutation(rest)[: max(1, round(REFERENCE_SHARE * len(rest)))].tolist()
            known, rest = sorted(drawn), [e for e in rest if e not in drawn]
        references[i], calibrating[i] = known, rest
        split[i] = split_in_two(len(rest), given.false_alarm_rate, rng, f"task {tasks[i]!r} of {given.companions}")
    n_frames = np.diff(frames.bounds, axis=1)[:, 0]
    lengths = [
        int(np.median(n_frames[[*references[i], *(calibrating[i][j] for j in split[i][0])]])) for i in range(len(tasks))
    ]
    monitor = _build(given, checkpoints, weights, frames, tasks, lengths)
    for i, episodes in references.items():
        _fill_bank(monitor, frames, i, episodes)
    if monitor.description.action_dim:
        _fit_commands(monitor, frames, sorted(e for episodes in references.values() for e in episodes))
    numbered = [(i, episode) for i in calibrating for episode in calibrating[i]]
    scored = score_episodes(monitor, frames, [episode for _, episode in numbered])
    place = {i: [n for n, (task, _) in enumerate(numbered) if task == i] for i in calibrating}
    in_all = {i: tuple(np.array(place[i])[part] for part in split[i]) for i in split}
    _calibrate(given, monitor, scored, in_all)
    monitor.description.fitted_on = {
        "prophets": [label_of(checkpoint.folder) for checkpoint in checkpoints],
        "companions": [
            {"repo_id": companion.repo_id, "content_sha256": companion.info.content_sha256} for companion in companions
        ],
        "episodes": {
            tasks[i]: {
                "reference": frames.origin[references[i]].tolist(),
                "shape": frames.origin[[calibrating[i][j] for j in split[i][0]]].tolist(),
                "hold": frames.origin[[calibrating[i][j] for j in split[i][1]]].tolist(),
            }
            for i in split
        },
        "seed": given.seed,
    }
    return monitor, _summary(monitor, {i: len(references[i]) for i in references}, split)


def _check_alike(checkpoints: list[ProphetCheckpoint], weights: list[ProphetWeights]) -> None:
    first = checkpoints[0]
    windows = ("n_obs_steps", "history_stride", "n_future_steps", "future_stride")
    for other, its in zip(checkpoints[1:], weights[1:], strict=True):
        wrong = [
            f"{name}: {getattr(first, name)} != {getattr(other, name)}"
            for name in windows
            if getattr(first, name) != getattr(other, name)
        ]
        wrong += first.encoder.differences(other.encoder)
        wrong += ["prophet options"] * (_options(first) != _options(other))
        wrong += ["standardisation of the latents"] * (
            not (torch.equal(weights[0].mean, its.mean) and torch.equal(weights[0].std, its.std))
        )
        if wrong:
            raise ConfigError(
                f"prophet: {first.folder} and {other.folder} differ in more than their seeds: {'; '.join(wrong)}; name "
                "Prophets that were trained alike"
            )


def _options(checkpoint: ProphetCheckpoint) -> dict[str, Any]:
    """A Prophet's options, without what it was started from, and frozen."""
    return asdict(replace(checkpoint.prophet, init_from=None, initialised_from=None, freeze=True))


def _choose(
    given: argparse.Namespace, frames: CompanionFrames, checkpoints: list[ProphetCheckpoint]
) -> tuple[list[int], set[int]]:
    """Episodes that are used at all, and those among them that a Prophet learned from."""
    sizes = [len(companion.bounds) for companion in frames.companions]
    place = {(c, e): i for i, (c, e) in enumerate(frames.origin.tolist())}
    wanted = parse_episodes(given.episodes, sizes, "episodes")
    chosen = [i for (c, e), i in place.items() if wanted[c] is None or e in wanted[c]]
    if given.reference:
        if given.reference == "none":
            return chosen, set()
        named = parse_episodes(given.reference, sizes, "reference")
        return chosen, {place[c, e] for c, of in enumerate(named) for e in of or ()}
    learned: set[int] = set()
    for checkpoint in checkpoints:
        if checkpoint.is_of_policy:
            raise ConfigError(
                f"prophet={str(checkpoint.folder)!r} is a policy's checkpoint, which doesn't say which episodes of "
                "these companions it learned from; name them with --reference=0-59 (or --reference=none)"
            )
        for made in read_json(checkpoint.folder / CONFIG_FILE, dict)["training"]["companions"]:
            for c, companion in enumerate(frames.companions):
                if companion.info.content_sha256 == made["content_sha256"]:
                    learned |= {place[c, e] for e in made["episodes"]}
    return chosen, learned


def _build(
    given: argparse.Namespace,
    checkpoints: list[ProphetCheckpoint],
    weights: list[ProphetWeights],
    frames: CompanionFrames,
    tasks: list[str],
    lengths: list[int],
) -> Monitor:
    first, values, companion = checkpoints[0], weights[0].prophet, frames.companions[0]
    has_commands = first.prophet.use_state and first.prophet.tells_state and frames.actions is not None
    state_dim = len(values["displacement.weight"]) if first.prophet.tells_state else 0
    monitor = Monitor(
        MonitorDescription(
            encoder=companion.spec.to_dict(),
            prophet=_options(first),
            n_prophets=len(checkpoints),
            n_obs_steps=first.n_obs_steps,
            history_stride=first.history_stride,
            n_future_steps=first.n_future_steps,
            future_stride=first.future_stride,
            state_dim=len(weights[0].state_shift) if first.prophet.use_state else state_dim,
            action_dim=frames.actions.shape[1] if has_commands else 0,
            language_dim=values["language.weight"].shape[1] if first.prophet.use_language else 0,
            fps=float(companion.fps),
            tasks=tasks,
            lengths=lengths,
            n_phases=given.n_phases,
            n_kept=N_KEPT,
            n_maxima=1,
            window=given.window,
            false_alarm_rate=given.false_alarm_rate,
        )
    )
    for prophet, its in zip(monitor.prophets, weights, strict=True):
        prophet.load_state_dict(its.prophet)
    monitor.space.mean.copy_(weights[0].mean)
    monitor.space.std.copy_(weights[0].std)
    if companion.pca is not None:
        monitor.space.pca.load_state_dict(companion.pca.state_dict())
    if first.prophet.use_state:
        monitor.state_shift.copy_(weights[0].state_shift)
        monitor.state_scale.copy_(weights[0].state_scale)
    if first.prophet.use_language:
        from world_modality_core.encoders.sentence_encoder import SentenceEncoder

        sentences = SentenceEncoder(first.language.model_id, revision=first.language.revision)
        monitor.language.copy_(sentences.encode(tasks))
    return monitor.requires_grad_(False)


def _fill_bank(monitor: Monitor, frames: CompanionFrames, task: int, episodes: list[int]) -> None:
    this = monitor.description
    steps = [np.arange(0, end - start, this.future_stride) for start, end in frames.bounds[episodes]]
    index = np.concatenate([start + own for (start, _), own in zip(frames.bounds[episodes], steps, strict=True)])
    phases = phase_of(this.lengths[task], np.concatenate(steps), this.n_phases)
    for phase in range(this.n_phases):
        found = torch.from_numpy(index[phases == phase])
        if len(found):
            rows, _ = frames.latents(found, [0], torch.device("cpu"))
            monitor.bank.keep(task, phase, monitor.space.standardise_rows(rows[:, 0]))


def _fit_commands(monitor: Monitor, frames: CompanionFrames, episodes: list[int]) -> None:
    every = monitor.description.future_stride
    states = (frames.states - monitor.state_shift) / monitor.state_scale
    index = torch.cat([torch.arange(start + 2 * every, end) for start, end in frames.bounds[episodes]])
    commands = torch.stack([frames.actions[index - every - 1 - i] for i in range(every)]).mean(0)
    last = torch.stack([frames.actions[index - 1 - i] for i in range(every)]).mean(0)
    monitor.commands.fit(
        torch.stack([states[index - 2 * every], states[index - every], states[index]], dim=1),
        torch.stack([commands, last], dim=1),
    )


# Again: from rows of the policy that will be watched.


def _fit_again(given: argparse.Namespace) -> tuple[Monitor, list[str]]:
    """The same scores with thresholds, and a combination, from successful episodes of `wm-eval --monitor`."""
    monitor = Monitor.load(given.monitor)
    rows = read_monitor_rows(given.rows.split(","))
    rows = rows[rows["arm"] == "intact"]
    monitor, left_out = _of_tasks(monitor, set(rows["instruction"]))
    names, tasks = monitor.score_names, monitor.description.tasks
    rows = rows[rows["success"]]
    episodes = scores_of_rows(rows, names, tasks, given.rows)
    rng = np.random.default_rng(given.seed)
    split, lengths = {}, list(monitor.description.lengths)
    for i, task in enumerate(tasks):
        own = np.array([n for n, episode in enumerate(episodes) if episode.task == i], dtype=int)
        shape, hold = split_in_two(len(own), given.false_alarm_rate, rng, f"task {task!r} of {given.rows}")
        split[i] = own[shape], own[hold]
        lengths[i] = int(np.median(rows["steps"].to_numpy()[own[shape]]))
    monitor.description.lengths = lengths
    monitor.description.false_alarm_rate = given.false_alarm_rate
    _calibrate(given, monitor, episodes, split)
    keys = ["model", "train_seed", "task", "seed"]
    monitor.description.fitted_on |= {"rows": rows[keys].astype(object).to_numpy().tolist(), "rows_seed": given.seed}
    said = [f"Left out, since no row is of it: {task}" for task in left_out]
    return monitor, [*_summary(monitor, None, split), *said]


def _of_tasks(monitor: Monitor, wanted: set[str]) -> tuple[Monitor, list[str]]:
    """A monitor of some of its tasks, and the names of the others."""
    this, state = monitor.description, monitor.state_dict()
    kept = [i for i, task in enumerate(this.tasks) if task in wanted] or list(range(len(this.tasks)))
    tasks, lengths = [this.tasks[i] for i in kept], [this.lengths[i] for i in kept]
    reduced = Monitor(replace(this, tasks=tasks, lengths=lengths))
    by_task = ("language", "bank.", "calibration_tensors.")
    reduced.load_state_dict({name: value[kept] if name.startswith(by_task) else value for name, value in state.items()})
    return reduced.requires_grad_(False), [task for task in this.tasks if task not in tasks]


def _calibrate(
    given: argparse.Namespace, monitor: Monitor, episodes: list[EpisodeScores], split: dict[int, tuple]
) -> None:
    this = monitor.description
    monitor.take_calibration(
        calibrate(
            episodes, this.tasks, this.lengths, this.n_phases, monitor.groups, given.window,
            given.false_alarm_rate, split,
        )
    )  # fmt: skip


def _summary(monitor: Monitor, references: dict[int, int] | None, split: dict[int, tuple]) -> list[str]:
    this, lines = monitor.description, []
    for i, task in enumerate(this.tasks):
        shape, hold = map(len, split[i])
        before = f"{references[i]} reference, " if references is not None else ""
        lines.append(
            f"{task}: {before}{shape} + {hold} episodes to calibrate on, usual length {this.lengths[i]} steps, alarm "
            f"above {monitor.calibration.quantile[i]:.2f}"
        )
    used = monitor.calibration.count.any(axis=(0, 1))
    left_out = [name for name, is_used in zip(monitor.score_names, used, strict=True) if not is_used]
    lines.append(f"Scores: {', '.join(name for name in monitor.score_names if name not in left_out)}")
    if left_out:
        lines.append(f"Left out, since nothing of it was seen: {', '.join(left_out)}")
    lines.append(
        f"Promise: of successful episodes like these, at most {this.false_alarm_rate:.1%} have any alarm, on average "
        "over draws of the calibration episodes"
    )
    return lines
