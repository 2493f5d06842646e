"""The monitor as a processor step: part of any policy's checkpoint that `wm-monitor attach` wrote.

LeRobot builds it from `policy_preprocessor.json` wherever it loads that checkpoint: lerobot-rollout, the policy server,
wm-eval. It changes nothing of what passes through.
"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from lerobot.processor import EnvTransition, ProcessorStep, TransitionKey
from torch import Tensor

from lerobot_policy_world_modality.live_monitor.live_monitor_run import LiveMonitorRun
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import as_dataclass
from world_modality_core.monitor.saved_monitor import MONITOR_FILE, Monitor, MonitorDescription, check_tensors
from world_modality_core.monitor.watch import Reading

Reaction = Literal["log", "warn", "stop"]
Clock = Literal["calls", "wall"]


class MonitorAlarmError(UserError, RuntimeError):
    """the world isn't as it was forecast, and the monitor was asked to stop then."""


class MonitorStep(ProcessorStep):
    """Watches the observations that pass through, before anything changes them.

    Args:
        description: Contents of a monitor's `monitor.json`.
        reaction: At an alarm: a line in the log, a warning, or `MonitorAlarmError`, which ends the rollout.
        clock: "calls" where each call is one control step; "wall" where they come irregularly (a policy server).
    """

    def __init__(self, description: dict[str, Any], reaction: Reaction = "warn", clock: Clock = "calls"):
        for name, value, choices in (("reaction", reaction, Reaction), ("clock", clock, Clock)):
            if value not in get_args(choices):
                raise ConfigError(f"{name}={value!r}: expected one of {', '.join(get_args(choices))}")
        self.description = as_dataclass(MonitorDescription, description, MONITOR_FILE)
        self.description.check(Path(MONITOR_FILE))
        self.reaction, self.clock = reaction, clock
        self.run: LiveMonitorRun | None = None

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        """Look at the transition's observation, and hand the transition on."""
        if self.run is None:
            raise RuntimeError(
                "the monitor's tensors were not loaded; load the checkpoint by LeRobot's from_pretrained"
            )
        observation = _batched(transition[TransitionKey.OBSERVATION])
        tasks = (transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}).get("task") or ""
        frame = observation.get(self.run.monitor.spec.cameras[0])
        if frame is not None and frame.device != self.run.monitor.space.mean.device:
            self.run.monitor.to(frame.device)  # where LeRobot has put what it sees
        self.run.see(observation, [tasks] if isinstance(tasks, str) else list(tasks))
        was_alarm = self.run.readings[-1].is_alarm if self.run.readings else False
        reading = self.run.tell()
        if reading is not None and (reading.is_alarm & ~np.asarray(was_alarm)).any():  # it begins
            self._react(reading)
        return transition

    def _react(self, reading: Reading) -> None:
        i = int((reading.level - reading.line).argmax())
        said = (
            f"monitor: at step {reading.step} the world isn't as it was forecast (level {reading.level[i]:.1f}, alarms "
            f"from {reading.line[i]:.1f})"
        )
        if self.reaction == "stop":
            raise MonitorAlarmError(f"{said}; stopped. Look at the scene, then start again")
        logging.log(logging.WARNING if self.reaction == "warn" else logging.INFO, said)

    def reset(self) -> None:
        """A new episode begins."""
        if self.run is not None:
            self.run.reset()

    def get_config(self) -> dict[str, Any]:
        """What `policy_preprocessor.json` keeps."""
        return {"description": asdict(self.description), "reaction": self.reaction, "clock": self.clock}

    def state_dict(self) -> dict[str, Tensor]:
        """The monitor's tensors."""
        return {} if self.run is None else self.run.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the monitor's tensors.

        Raises:
            DamagedFileError: naming a tensor that is missing, unknown, or of another shape.
        """
        with torch.device("meta"):
            monitor = Monitor(self.description)
        check_tensors(monitor.state_dict(), state, Path("the monitor's state in the checkpoint"))
        monitor.load_state_dict(state, assign=True)
        self.run = LiveMonitorRun(monitor.requires_grad_(False), is_wall_clock=self.clock == "wall")

    def transform_features(self, features):
        """Nothing changes."""
        return features


def _batched(observation: dict[str, Any]) -> dict[str, Any]:
    """Images (b, c, h, w) and state (b, s) of an observation with or without the batch axis."""
    out = {}
    for name, value in observation.items():
        if isinstance(value, Tensor) and value.ndim == (3 if "image" in name else 1):
            value = value[None]
        out[name] = value
    return out
