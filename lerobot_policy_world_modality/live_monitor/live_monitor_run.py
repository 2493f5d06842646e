"""A monitor beside a policy that acts: frames in, readings out."""

from __future__ import annotations

import time
from time import perf_counter

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.host import PolicyWithWorld
from world_modality_core.encoders import make_world_encoder
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.monitor.watch import Reading, Watch


class LiveMonitorRun:
    """Watches the episodes of b environments that step together, or of one robot.

    Args:
        monitor: What watches.
        is_wall_clock: Whether frames come irregularly, so that time is read off a clock and not counted in calls.

    Attributes:
        readings: Of this episode, oldest first.
        seconds: What watching has taken since `reset`.
    """

    def __init__(self, monitor: Monitor, is_wall_clock: bool = False):
        self.monitor, self.is_wall_clock = monitor, is_wall_clock
        this, spec = monitor.description, monitor.spec
        self._frames = FrameHistory(
            spec.cameras,
            this.n_obs_steps,
            this.history_stride,
            spec.n_frames,
            spec.frame_stride,
            tolerance=max(1, this.history_stride // 2) if is_wall_clock else 0,
            every=spec.every,
        )
        self._encoder = None
        self.reset()

    def reset(self) -> None:
        """Forget the episode."""
        self._frames.clear()
        self._watch: Watch | None = None
        self._start: float | None = None
        self._plan: Tensor | None = None
        self._last_tick = -1
        self.readings: list[Reading] = []
        self.seconds = 0.0

    def see(self, observation: dict[str, Tensor], tasks: list[str]) -> None:
        """Remember what is seen at this step.

        Args:
            observation: Images (b, c, h, w) in [0, 1] or uint8 under the names of the monitor's cameras, before any
                normalisation, and the state (b, s) as recorded, where its Prophet reads it.
            tasks: The b instructions.

        Raises:
            ConfigError: if an instruction is unknown to the monitor.
            ValueError: if a camera is missing.
        """
        begun = perf_counter()
        step = None
        if self.is_wall_clock:
            now = time.monotonic()
            self._start = now if self._start is None else self._start
            step = round((now - self._start) * self.monitor.description.fps)
        self._frames.append(observation, step)
        self._watch = self._watch or Watch(self.monitor, tasks)
        self._state = observation.get(OBS_STATE)
        self.seconds += perf_counter() - begun

    def tell(self, host: PolicyWithWorld | None = None, action: Tensor | None = None) -> Reading | None:
        """What the present step tells, if it is time to look.

        Args:
            host: A policy with a world that has acted on this step. Where it has planned, it has encoded the frame: if
                it sees by the same encoder, its latents are taken. If it tells its plans, they are compared.
            action: (b, a) that was executed in the step before this one, where it is known.
        """
        begun = perf_counter()
        step, watch = self._frames.now, self._watch
        if action is not None:
            watch.note_action(action)
        plan = getattr(host, "last_plan", None)
        if plan is not None and plan is not self._plan:
            watch.note_plan(step, plan)
            self._plan = plan
        tick = step // watch.every
        reading = None
        if tick > self._last_tick and (self.is_wall_clock or watch.is_due(step)):
            self._last_tick = tick
            if host is not None and not self.monitor.spec.differences(host.config.encoder):
                self._frames.adopt(host.latent_reader.frames)
            reading = watch.look(tick * watch.every, *self._frames.latents(self._world_encoder()), self._state)
            self.readings.append(reading)
        self.seconds += perf_counter() - begun
        return reading

    def _world_encoder(self):
        if self._encoder is None:
            # Building a network draws weights before it loads its own: a seeded rollout must not notice.
            with torch.random.fork_rng(devices=[]):
                device = self.monitor.space.mean.device
                self._encoder = make_world_encoder(self.monitor.spec, pca=self.monitor.space.pca, device=device)
        return self._encoder
