"""Scores of episodes while they run, tick by tick: the one path of recorded and live episodes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from world_modality_core.monitor.calibration import phase_of
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.monitor.score_types.score import View


@dataclass
class Reading:
    """What a tick told of b episodes.

    Attributes:
        step: Steps since their start.
        values: (b, c) float64 raw scores, in the order of the monitor's `score_names`; NaN where one can't be told yet.
        level: (b,) the combined score, in standard deviations over what successful episodes reach in this phase.
        is_alarm: (b,) whether the level is above the task's line.
        line: (b,) that line.
    """

    step: int
    values: np.ndarray
    level: np.ndarray
    is_alarm: np.ndarray
    line: np.ndarray


class Watch:
    """Watches b episodes that step together, from their start.

    Args:
        monitor: What watches.
        tasks: Their b instructions.

    Raises:
        ConfigError: if an instruction is unknown to the monitor.
    """

    def __init__(self, monitor: Monitor, tasks: list[str]):
        self.monitor, self.every = monitor, monitor.description.future_stride
        numbers = monitor.task_numbers(tasks)
        self.device = monitor.space.mean.device
        self._tasks = torch.tensor(numbers, device=self.device)
        self._numbers = np.array(numbers)
        self._view = View(0, 0, self._tasks, self._tasks)
        self._levels = monitor.calibration.live(self._numbers)
        self._actions: list[Tensor] = []

    def is_due(self, step: int) -> bool:
        """Whether to look at a step."""
        return step % self.every == 0

    def note_plan(self, step: int, plan: Tensor) -> None:
        """Take the plan (b, h, a) that the policy made at a step."""
        self._view.plans = [*self._view.plans[-1:], (step, plan)]

    def note_action(self, action: Tensor) -> None:
        """Take the actions (b, a) that were executed in the step before the next look."""
        self._actions.append(action.to(self.device).float())

    @torch.no_grad()
    def scores(self, step: int, history: Tensor, is_pad: Tensor, state: Tensor | None = None) -> np.ndarray:
        """Raw scores at a step.

        Args:
            step: Steps since the start, a multiple of `every`.
            history: (b, t, p, d) latents as a companion stores them, oldest first; the last is the present frame's.
            is_pad: (b, t) True before the start.
            state: (b, s) the robot's state as recorded, where the Prophets read it.

        Returns:
            (b, c) float64.
        """
        monitor, view = self.monitor, self._view
        n_kept = monitor.description.n_future_steps
        view.step, view.tick = step, step // self.every
        lengths = np.asarray(monitor.description.lengths)[self._numbers]
        view.phase = torch.from_numpy(phase_of(lengths, step, monitor.description.n_phases)).to(self.device)
        history = monitor.space.standardise(history.to(self.device).float())
        view.latents[view.tick] = history[:, -1]
        self._forecast(history, is_pad.to(self.device), state)
        if len(self._actions) == self.every:
            view.commands[view.tick] = torch.stack(self._actions).mean(0)
        self._actions = []
        for kept in (view.latents, view.forecasts, view.states, view.state_forecasts, view.commands):
            for tick in [tick for tick in kept if tick < view.tick - n_kept]:
                del kept[tick]
        return torch.cat([score(view).double() for score in monitor.scores], dim=1).cpu().numpy()

    def look(self, step: int, *args, **kwargs) -> Reading:
        """Raw scores at a step, and whether they are an alarm; arguments as for `scores`."""
        values = self.scores(step, *args, **kwargs)
        level, is_alarm = self._levels(step, values)
        return Reading(step, values, level, is_alarm, self.monitor.calibration.quantile[self._numbers])

    def _forecast(self, history: Tensor, is_pad: Tensor, state: Tensor | None) -> None:
        """Note what the Prophets predict at this tick."""
        monitor, view = self.monitor, self._view
        if monitor.options.use_state:
            if state is None:
                raise ValueError("the monitor's Prophet reads the robot's state, and the observation has none")
            state = (state.to(self.device).float() - monitor.state_shift) / monitor.state_scale
        language = monitor.language[self._tasks] if monitor.options.use_language else None
        futures = [
            prophet(history, is_pad, state if monitor.options.use_state else None, language)
            for prophet in monitor.prophets
        ]
        view.forecasts[view.tick] = torch.stack([made.latents for made in futures], dim=1)
        if monitor.tells_state:
            view.states[view.tick] = state
            moved = torch.stack([made.displacement for made in futures], dim=1)
            view.state_forecasts[view.tick] = state[:, None, None] + moved
