"""A policy of ours that plans a chunk of actions and executes some of it: the interface that world_* and qwen share."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.host import PolicyWithWorld
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.memory.sources import MemorySource
from world_modality_core.prophet.network import Futures


def check_reduction(reduction: str) -> None:
    """Refuse what LeRobot's trainer never asks for.

    Raises:
        ValueError: naming it.
    """
    if reduction not in ("mean", "none"):
        raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'none'")


def action_padding(batch: dict[str, Tensor], error: Tensor) -> Tensor:
    """(b, h) True for actions beyond the end of the episode; `error` is (b, h, a)."""
    is_pad = batch.get("action_is_pad")
    return torch.zeros(error.shape[:2], dtype=torch.bool, device=error.device) if is_pad is None else is_pad


class PlanningPolicy(PolicyWithWorld):
    """A mixin, before LeRobot's policy class: a policy with a world and a forward pass of its own."""

    def _plan(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Plan (b, h, a) from the current observation, whose frame is remembered."""
        raise NotImplementedError

    def _plan_recorded(
        self, batch: dict[str, Tensor], world_batch: WorldBatch, source: MemorySource | None, noise: Tensor | None
    ) -> Tensor:
        """Plan (b, h, a) from recorded frames."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        self._forget_episode()
        self._action_queue: deque[Tensor] = deque()
        self.last_plan: Tensor | None = None  # for who watches

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action of the plan, planning anew every `n_action_steps`.

        Args:
            batch: The current observation of b environments: images (b, c, h, w), state (b, s), `task`.

        Returns:
            (b, a) normalised action.
        """
        self.eval()
        self._check_acts_alone()
        self._drop_old_plan(batch, self._action_queue)
        if self._action_queue:
            self.remember(batch)
        else:
            chunk = self.predict_action_chunk(batch, **kwargs)
            self._action_queue.extend(chunk[:, : self.config.n_action_steps].unbind(1))
        return self._action_queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        """Remember the current frame and plan from it.

        Args:
            batch: As for `select_action`.
            noise: (b, h, a) that a flow head starts from; drawn if None, and no matter to policies that draw none.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        self.remember(batch)
        with self._autocast():
            self.last_plan = self._finite(self._plan(batch, noise))
        return self.last_plan

    @torch.no_grad()
    def plan_recorded(
        self,
        batch: dict[str, Tensor],
        source: MemorySource | str | None = None,
        noise: Tensor | None = None,
        futures: Futures | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Plan from recorded frames, with the memory of any source; for offline interventions.

        Args:
            batch: A preprocessed batch of the dataset, with `index` (b,).
            source: Memory source, `oracle` included; None for the training source. No matter without a memory.
            noise: (b, h, a) that a flow head starts from; drawn if None.
            futures: What the Prophet is to have predicted; None lets it predict.
            seed: Seed of the memory's draws; None for `memory.seed`.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        world_batch = self._recorded_plan_batch(batch, futures, seed)
        memory = self.config.memory if self.config.reads_memory else None
        if memory is not None:
            source = memory.source if source is None else MemorySource(source)
        with self._autocast():
            return self._plan_recorded(batch, world_batch, source, noise)
