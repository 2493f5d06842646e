"""A policy whose scenes draw for themselves, whichever scenes run beside them."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from torch import Tensor, nn

from lerobot_policy_world_modality.evaluation.memory_bank import pinned_generator


def noise_shape(config: PreTrainedConfig) -> tuple[int, int] | None:
    """Shape (h, a) of the noise that a plan of one scene starts from; None where `select_action` takes none."""
    if config.type in ("smolvla", "smolvla_world"):
        return config.chunk_size, config.max_action_dim
    if config.type in ("diffusion", "diffusion_world"):
        return config.horizon, config.action_feature.shape[0]
    if config.type == "qwen_world_fplus" and config.head.kind == "flow":
        return config.chunk_size, config.action_feature.shape[0]
    return None


class PinnedPolicy(nn.Module):
    """What LeRobot's `rollout` is given in place of a policy: plans start from noise that belongs to their scene.

    The noise depends on (task, seed, step) alone: neither on the arm, nor on the batch, nor on what was run before.
    What else a policy draws comes from torch's global generator, for the batch as a whole (`has_drawn`).

    Args:
        policy: The policy.
    """

    def __init__(self, policy: nn.Module):
        super().__init__()
        self.policy = policy
        self._shape = noise_shape(policy.config)
        self._device = torch.device(policy.config.device)

    def start(self, task: str, seeds: list[int]) -> None:
        """Begin a batch of episodes.

        Args:
            task: Their task.
            seeds: (b,) seeds of their scenes.
        """
        self._task, self._seeds = task, seeds
        self._states = self._random_states()

    def reset(self) -> None:
        """Forget the episode."""
        self.policy.reset()
        self._step = 0

    def select_action(self, batch: dict[str, Any]) -> Tensor:
        """The policy's next action (b, a)."""
        if self._shape is None:
            return self.policy.select_action(batch)
        generators = [pinned_generator("noise", self._task, seed, self._step) for seed in self._seeds]
        noise = torch.stack([torch.randn(self._shape, generator=generator) for generator in generators])
        self._step += 1
        return self.policy.select_action(batch, noise=noise.to(self._device))

    @property
    def has_drawn(self) -> bool:
        """Whether anything was drawn from torch's global generators since `start`."""
        return any(not torch.equal(*pair) for pair in zip(self._states, self._random_states(), strict=True))

    def _random_states(self) -> list[Tensor]:
        states = [torch.get_rng_state()]
        if self._device.type != "cpu":
            states.append(torch.get_device_module(self._device).get_rng_state())
        return states
