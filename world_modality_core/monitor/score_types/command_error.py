"""How far the robot is from where its own commands should have taken it in the last tick."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.monitor.score_types.score import View

# Of the inputs' squares: enough for a solution where one of them never changes.
_RIDGE = 1e-4


class CommandModel(nn.Module):
    """A linear model of a tick: from the state, its last change and the last two ticks' commands to the next change.

    Args:
        state_dim: s.
        action_dim: a.
    """

    def __init__(self, state_dim: int, action_dim: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(2 * state_dim + 2 * action_dim + 1, state_dim))
        self.register_buffer("spread", torch.ones(state_dim))

    def fit(self, states: Tensor, commands: Tensor) -> None:
        """Least squares.

        Args:
            states: (n, 3, s) standardised states of three successive ticks.
            commands: (n, 2, a) mean commands between them.
        """
        inputs, change = _inputs(states[:, :2], commands).double(), (states[:, 2] - states[:, 1]).double()
        ridge = _RIDGE * len(inputs) * torch.eye(inputs.shape[1], dtype=torch.float64)
        weight = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ change)
        self.weight.copy_(weight)
        self.spread.copy_((change - inputs @ weight).std(0).clamp(min=1e-3))

    def error(self, states: Tensor, commands: Tensor) -> Tensor:
        """(n,) root mean square of what the model leaves unexplained, in standard deviations of the same in `fit`."""
        left = states[:, 2] - states[:, 1] - _inputs(states[:, :2], commands) @ self.weight
        return (left / self.spread).square().mean(-1).sqrt()


def _inputs(states: Tensor, commands: Tensor) -> Tensor:
    return torch.cat(
        [states[:, 1], states[:, 1] - states[:, 0], commands.flatten(1), torch.ones_like(states[:, 0, :1])], dim=1
    )


class CommandError:
    """The error of a `CommandModel`: commands that are late, weakened, or not executed.

    Known where the executed actions are: in recordings and in `wm-eval`.

    Args:
        model: Fitted on successful episodes.
    """

    names = ("command_error",)
    uncombined = ()

    def __init__(self, model: CommandModel):
        self.model = model

    def __call__(self, view: View) -> Tensor:
        """(b, 1)."""
        ticks = range(view.tick - 2, view.tick + 1)
        if not (all(tick in view.states for tick in ticks) and all(tick in view.commands for tick in ticks[1:])):
            return view.unknown()[:, None]
        states = torch.stack([view.states[tick] for tick in ticks], dim=1)
        commands = torch.stack([view.commands[tick] for tick in ticks[1:]], dim=1)
        return self.model.error(states, commands)[:, None]
