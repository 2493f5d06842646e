"""What every score is: a function of the present and the past of some episodes, never of their future."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


@dataclass
class View:
    """What a score may look at: b episodes that step together, at one tick.

    A tick is a look at the world, every `future_stride` steps of the Prophet: so a forecast's steps fall on ticks.

    Attributes:
        step: Steps since the episodes' start.
        tick: Ticks since then.
        task: (b,) int64 number of each episode's task.
        phase: (b,) int64 phase of each episode: elapsed time, in parts of its task's usual length.
        latents: Tick -> (b, p, d) standardised latents, of the last ticks and this one.
        forecasts: Tick -> (b, m, n, k, p, d) what m Prophets predicted then, n hypotheses each, this tick's included.
        plans: (step at which it was made, (b, h, a) actions) of the policy's last two plans, oldest first; fewer where
            there are none.
        states: Tick -> (b, s) the robot's standardised state, where the Prophets read and tell it.
        state_forecasts: Tick -> (b, m, k, s) what they predicted of it then.
        commands: Tick -> (b, a) mean of the actions executed since the tick before, where they are known.
    """

    step: int
    tick: int
    task: Tensor
    phase: Tensor
    latents: dict[int, Tensor] = field(default_factory=dict)
    forecasts: dict[int, Tensor] = field(default_factory=dict)
    plans: list[tuple[int, Tensor]] = field(default_factory=list)
    states: dict[int, Tensor] = field(default_factory=dict)
    state_forecasts: dict[int, Tensor] = field(default_factory=dict)
    commands: dict[int, Tensor] = field(default_factory=dict)

    def unknown(self) -> Tensor:
        """(b,) NaN: a score that can't be told yet."""
        return torch.full(self.task.shape, torch.nan, device=self.task.device)


class MonitorScore(Protocol):
    """One or several numbers per episode and tick; the higher, the stranger.

    Attributes:
        names: A name for each of its c numbers.
        uncombined: Those of them that are recorded for comparison only; the others become the combination.
    """

    names: tuple[str, ...]
    uncombined: tuple[str, ...]

    def __call__(self, view: View) -> Tensor:
        """(b, c) float; NaN where it can't be told yet."""
        ...
