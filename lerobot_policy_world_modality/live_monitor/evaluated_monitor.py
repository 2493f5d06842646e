"""A monitor in `wm-eval`: it sees what the policy sees, and its rows are written beside the evaluation's."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch
from lerobot.processor import PolicyProcessorPipeline
from torch import nn

from lerobot_policy_world_modality.live_monitor.live_monitor_run import LiveMonitorRun
from lerobot_policy_world_modality.policies.shared.host import host_of
from world_modality_core.monitor.saved_monitor import MONITOR_FILE, TENSORS_FILE, Monitor, at_hand

_ALARM_COLOUR = (220, 30, 30)


def monitor_hash(name: str) -> str:
    """SHA-256 of a monitor's two files."""
    folder = at_hand(name)
    digest = hashlib.sha256()
    for file in (MONITOR_FILE, TENSORS_FILE):
        digest.update((folder / file).read_bytes())
    return digest.hexdigest()


class EvaluatedMonitor:
    """Stands before the policy's preprocessor, and is called after each of its actions.

    Args:
        monitor: What watches.
        policy: What is watched.
        preprocessor: The policy's.
    """

    def __init__(self, monitor: Monitor, policy: nn.Module, preprocessor: PolicyProcessorPipeline):
        self.monitor, self._host = monitor, host_of(policy)
        self._run, self._preprocessor = LiveMonitorRun(monitor), preprocessor

    def start(self) -> None:
        """Begin a batch of episodes."""
        self._run.reset()

    def preprocess(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The policy's preprocessor, after a look at what goes into it."""
        self._run.see(observation, list(observation["task"]))
        self._tasks = list(observation["task"])
        return self._preprocessor(observation)

    def after_action(self, before: np.ndarray | None) -> None:
        """Look at the step that the policy has acted on; `before` (b, a) was executed in the step before it, if any."""
        self._run.tell(self._host, None if before is None else torch.from_numpy(before))

    def row(self, i: int, steps: int) -> dict[str, Any]:
        """What was told of episode i until it was done, as columns of a monitor's row."""
        readings = [reading for reading in self._run.readings if reading.step < steps]
        alarms = [reading.step for reading in readings if reading.is_alarm[i]]
        return {
            "instruction": self._tasks[i],
            "every": self.monitor.description.future_stride,
            "false_alarm_rate": self.monitor.description.false_alarm_rate,
            "alarm_step": alarms[0] if alarms else None,
            "line": float(readings[0].line[i]),
            "monitor_s": self._run.seconds / len(self._tasks),
            "level": [float(reading.level[i]) for reading in readings],
            "values": np.stack([reading.values[i] for reading in readings]),
        }


def mark_alarm(film: list[np.ndarray], alarm_step: int | None) -> list[np.ndarray]:
    """A film (frames (h, w, 3) uint8, one per step) with a red frame around all that comes from an alarm on."""
    if alarm_step is None:
        return film
    marked = []
    for step, picture in enumerate(film):
        if step >= alarm_step:
            picture, width = picture.copy(), max(2, min(picture.shape[:2]) // 32)
            for edge in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
                picture[edge] = _ALARM_COLOUR
        marked.append(picture)
    return marked
