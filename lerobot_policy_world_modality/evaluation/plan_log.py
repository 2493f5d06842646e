"""Gate and attention of each episode, from what the readers of a world memory kept of each plan."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_world_modality.evaluation.arms import MemoryArm
from lerobot_policy_world_modality.policies.shared.host import host_of
from lerobot_policy_world_modality.policies.shared.memory_filling import future_mass


class PlanLog:
    """Called by `rollout` after every action; notes down, once per plan, what the readers last did.

    A policy whose actions are sampled in several passes is noted with its last pass; several readers are averaged.

    Args:
        policy: The policy.
        arm: Knows the shape of the memory.
        n_action_steps: Actions taken from each plan.
    """

    def __init__(self, policy: nn.Module, arm: MemoryArm, n_action_steps: int):
        self._arm, self._n_action_steps = arm, n_action_steps
        host = host_of(policy)
        self._readers = [] if host is None else list(host.readers.values())
        self._n_actions = 0
        self._gates: list[Tensor] = []  # (b,) of each plan
        self._entropies: list[Tensor] = []  # (b,)
        self._masses: list[Tensor] = []  # (b, k)

    def __call__(self, policy: nn.Module) -> None:
        if self._n_actions % self._n_action_steps == 0 and self._readers:
            self._note()
        self._n_actions += 1

    def _note(self) -> None:
        self._gates.append(torch.stack([reader.last_sample_gate for reader in self._readers]).mean(0))
        attending = [reader for reader in self._readers if reader.last_sample_mass is not None]
        if attending:  # memory tokens in a prefix have a gate alone
            mass = torch.stack([reader.last_sample_mass for reader in attending]).mean(0)
            self._masses.append(future_mass(mass, self._arm.shape))
            self._entropies.append(torch.stack([reader.last_sample_entropy for reader in attending]).mean(0))

    def summaries(self, n_plans: list[int]) -> list[dict[str, Any]]:
        """Means over each episode's plans.

        Args:
            n_plans: (b,) plans of each episode until it was done.

        Returns:
            `gate`, `attention_entropy` and `attention_mass` of each episode; None where there is no such thing.
        """
        columns = {"gate": self._gates, "attention_entropy": self._entropies, "attention_mass": self._masses}
        values = {name: torch.stack(noted).cpu().double() for name, noted in columns.items() if noted}
        return [
            {name: values[name][:n, i].mean(0).tolist() if name in values else None for name in columns}
            for i, n in enumerate(n_plans)
        ]
