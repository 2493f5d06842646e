"""What becomes of the states at the action tokens: proprioception, actions (MSE or flow), alignment with the future."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import ActionHeadConfig
from world_modality_core.memory.gated_attention import Gate
from world_modality_core.memory.trunk import FutureHead
from world_modality_core.prophet.transformer import make_encoder


class Proprioception(nn.Module):
    """Let the action states see the robot's state: x + tanh(gate) * mlp(state), gate = 0 at the start.

    Args:
        d: Width of the action states.
        state_dim: Width of the robot's state.
    """

    def __init__(self, d: int, state_dim: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(state_dim, d), nn.GELU(), nn.Linear(d, d))
        self.gate = Gate("scalar", d, 1)

    def forward(self, states: Tensor, robot_state: Tensor) -> Tensor:
        """Add the robot's state (b, s) to the action states (b, h, d)."""
        read = self.mlp(robot_state.to(self.mlp[0].weight.dtype))[:, None]
        return states + (self.gate(states) * read).to(states.dtype)


class MSEHead(nn.Module):
    """LayerNorm + MLP on each action state; squared error.

    Args:
        d: Width of the action states.
        n_actions: Width of an action.
        config: `d_model` is the hidden width.
    """

    def __init__(self, d: int, n_actions: int, config: ActionHeadConfig):
        super().__init__()
        self.net = nn.Sequential(
            nn.LayerNorm(d), nn.Linear(d, config.d_model), nn.GELU(), nn.Linear(config.d_model, n_actions)
        )

    def error(self, states: Tensor, actions: Tensor) -> Tensor:
        """Squared error (b, h, a) of the actions that the states (b, h, d) stand for."""
        return (self.sample(states) - actions).square()

    def sample(self, states: Tensor, noise: Tensor | None = None) -> Tensor:
        """Actions (b, h, a); this head draws nothing, so that `noise` has no effect."""
        return self.net(states.to(self.net[1].weight.dtype)).float()


class FlowHead(nn.Module):
    """Rectified flow from noise to actions, conditioned on the action states.

    x_t = t * noise + (1 - t) * actions, and the network predicts dx/dt = noise - actions (arXiv:2209.03003 with time
    running from actions at 0 to noise at 1, as in SmolVLA and pi0). One t per sample: a chunk is integrated as a whole,
    so that the network only ever sees chunks whose steps are equally noisy.

    Args:
        d: Width of the action states.
        n_actions: Width of an action.
        chunk_size: Actions of a chunk, h.
        config: Sizes.
    """

    def __init__(self, d: int, n_actions: int, chunk_size: int, config: ActionHeadConfig):
        super().__init__()
        width = config.d_model
        self.n_steps, self.width, self.n_actions = config.n_flow_steps, width, n_actions
        self.condition = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, width))
        self.embed = nn.Linear(n_actions, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.position = nn.Parameter(torch.randn(chunk_size, width) * 0.02)
        self.encoder = make_encoder(width, config.n_layers, config.n_heads, 0, 0.0)
        self.out = nn.Linear(width, n_actions)

    def velocity(self, x: Tensor, t: Tensor, states: Tensor) -> Tensor:
        """dx/dt (b, h, a) at noisy chunks x (b, h, a) and times t (b,), given the action states (b, h, d)."""
        condition = self.condition(states.to(self.embed.weight.dtype))
        time = self.time(sinusoids(t, self.width).to(self.embed.weight.dtype))[:, None]
        return self.out(self.encoder(self.embed(x) + condition + time + self.position)).float()

    def error(self, states: Tensor, actions: Tensor) -> Tensor:
        """Squared error (b, h, a) of the velocity, at one time and noise per sample, drawn by torch's generator."""
        noise = torch.randn_like(actions)
        t = torch.rand(len(actions), device=actions.device)
        x = torch.lerp(actions, noise, t[:, None, None])
        return (self.velocity(x, t, states) - (noise - actions)).square()

    def sample(self, states: Tensor, noise: Tensor | None = None) -> Tensor:
        """Integrate from noise to actions (b, h, a) with `n_flow_steps` equal Euler steps, t = 1, 1 - 1/n, ..., 1/n.

        Args:
            states: (b, h, d) action states.
            noise: (b, h, a) to start from; drawn if None.
        """
        shape = (*states.shape[:2], self.n_actions)
        x = torch.randn(shape, device=states.device) if noise is None else noise
        for i in range(self.n_steps):
            t = torch.full((len(x),), 1 - i / self.n_steps, device=x.device)
            x = x - self.velocity(x, t, states) / self.n_steps
        return x


def sinusoids(t: Tensor, width: int, longest: float = 4.0, shortest: float = 0.004) -> Tensor:
    """Sine and cosine of times t (b,) in [0, 1], at periods from `longest` to `shortest`: (b, width). As in pi0."""
    periods = torch.logspace(math.log10(longest), math.log10(shortest), width // 2, device=t.device)
    angles = 2 * math.pi * t[:, None].float() / periods
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def make_action_head(d: int, n_actions: int, chunk_size: int, config: ActionHeadConfig) -> MSEHead | FlowHead:
    """The head that `config.kind` names."""
    return MSEHead(d, n_actions, config) if config.kind == "mse" else FlowHead(d, n_actions, chunk_size, config)


class FutureAlignment(nn.Module):
    """A projector from the action states to future latents (`lambda_align`).

    FLARE (arXiv:2505.15659) aligns hidden states of its policy, at tokens of their own, with the embedding of a future
    observation by cosine, through an MLP. Here the action tokens' own states are aligned (there are no further tokens),
    learned queries read one prediction per future step from them, and the target is the change of the latent, as the
    Prophet's: static scenes would make the latent itself too easy.

    Args:
        d: Width of the action states.
        width: Width of the projector.
        n_future: Future frames, k.
        n_tokens: Latent tokens per frame, p.
        dim: Width of a latent token.
    """

    def __init__(self, d: int, width: int, n_future: int, n_tokens: int, dim: int):
        super().__init__()
        self.shape = (n_tokens, dim)
        self.reduce = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, width))
        self.head = FutureHead(width, 4, n_future, n_tokens * dim, zero_init=True)

    def forward(self, states: Tensor, current: Tensor) -> Tensor:
        """Predict future latents (b, k, p, d) from action states (b, h, d) and current latents (b, p, d)."""
        context = self.reduce(states.to(self.reduce[1].weight.dtype))
        is_pad = torch.zeros(context.shape[:2], dtype=torch.bool, device=context.device)
        return self.head(context, is_pad).unflatten(-1, self.shape) + current[:, None]
