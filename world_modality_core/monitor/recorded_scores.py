"""Raw scores of recorded episodes, from a companion, by the very path that watches live ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from world_modality_core.monitor.calibration import EpisodeScores
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.monitor.watch import Watch
from world_modality_core.prophet.data import CompanionFrames

# Episodes replayed side by side.
_GROUP = 64


def score_episodes(monitor: Monitor, frames: CompanionFrames, episodes: Sequence[int]) -> list[EpisodeScores]:
    """Replay recorded episodes, tick by tick; what comes after a tick is not read at it.

    Args:
        monitor: What watches.
        frames: The recordings.
        episodes: Numbers in `frames`.
    """
    lengths = np.diff(frames.bounds[list(episodes)], axis=1)[:, 0] if len(episodes) else np.zeros(0, int)
    order = np.argsort(-lengths, kind="stable")  # episodes of about one length end together
    done: dict[int, EpisodeScores] = {}
    for start in range(0, len(order), _GROUP):
        group = [episodes[i] for i in order[start : start + _GROUP]]
        done |= dict(zip(group, _replay(monitor, frames, group), strict=True))
    return [done[episode] for episode in episodes]


def _replay(monitor: Monitor, frames: CompanionFrames, episodes: list[int]) -> list[EpisodeScores]:
    this = monitor.description
    tasks = [frames.tasks[number] for number in frames.episode_task()[episodes]]
    watch = Watch(monitor, tasks)
    starts, ends = torch.from_numpy(frames.bounds[episodes]).T
    offsets = [-i * this.history_stride for i in reversed(range(this.n_obs_steps))]
    values: list[np.ndarray] = []
    longest = int((ends - starts).max())
    for step in range(0, longest, watch.every):
        index = torch.minimum(starts + step, ends - 1)  # an episode that has ended waits for the others, unread
        rows, is_pad = frames.latents(index, offsets, watch.device)
        history = rows.unflatten(-1, monitor.space.mean.shape)
        state = frames.states[index] if monitor.options.use_state else None
        if monitor.description.action_dim and frames.actions is not None and step:
            for ago in range(watch.every, 0, -1):
                watch.note_action(frames.actions[index - ago])
        values.append(watch.scores(step, history, is_pad, state))
    found = np.stack(values, axis=1)  # (b, ticks, c)
    steps = np.arange(0, longest, watch.every)
    is_in = [steps < int(length) for length in ends - starts]
    numbers = monitor.task_numbers(tasks)
    return [EpisodeScores(numbers[i], steps[is_in[i]], found[i, is_in[i]]) for i in range(len(episodes))]
