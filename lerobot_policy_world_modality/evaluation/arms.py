"""Arms: what is done to a checkpoint's memory while it acts, and nothing else (docs/evaluation.md)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lerobot_policy_world_modality.evaluation.memory_bank import MemoryBank, pinned_generator
from lerobot_policy_world_modality.policies.shared.host import host_of
from lerobot_policy_world_modality.policies.shared.memory_filling import current_content
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.configs import MemoryConfig
from world_modality_core.memory.sources import (
    ARM_SOURCES,
    EXCHANGING_SOURCES,
    Memory,
    MemoryInputs,
    MemorySource,
    make_memory,
)

INTACT = "intact"
ARMS = (INTACT, *(source.value for source in ARM_SOURCES))

# Arms that show a scene the memories of another one.
BANK_ARMS = tuple(source.value for source in EXCHANGING_SOURCES)


class MemoryArm:
    """An arm as an `Intervention`: sees each plan's memory, and returns what the policy reads in its place.

    Draws depend on (draw_seed, arm, task, seed, plan) alone: neither on the batch nor on what was run before.

    Args:
        name: One of `ARMS`.
        bank: Memories of other episodes; None if no arm of the evaluation needs them.
        draw_seed: Seed of the draws.
        stale_plans: Age of the memory of `stale`, in plans.
        config: The policy's memory options; None for one that is read through gates and holds latents.
    """

    def __init__(
        self,
        name: str,
        bank: MemoryBank | None = None,
        draw_seed: int = 0,
        stale_plans: int = 4,
        config: MemoryConfig | None = None,
    ):
        self.name, self.bank, self.draw_seed, self.stale_plans = name, bank, draw_seed, stale_plans
        self.source = None if name == INTACT else MemorySource(name)
        self.config = config or MemoryConfig()
        self.shape: tuple[int, int, int, int] | None = None
        self.start("", [])

    def start(self, task: str, seeds: list[int]) -> None:
        """Begin a batch of episodes.

        Args:
            task: Their task.
            seeds: (b,) seeds of their scenes.
        """
        self._task, self._seeds = task, seeds
        # (b, m, d) fp16 of each plan: what `intact` predicted, if there is a bank to keep it; empty in every other arm.
        self.for_bank: list[Tensor] = []
        self._past: list[Tensor] = []  # (b, m, d) of the last plans, for `stale`
        self._n_plans = 0
        self._other_scenes: list[Tensor] = []  # for each of the b scenes, those of another one: (n_plans, m, d)
        if self.name in BANK_ARMS:
            scenes = [self.bank.draw_scene(self.name, task, seed, self.draw_seed) for seed in seeds]
            self._other_scenes = [self.bank.load(*scene) for scene in scenes]

    @contextmanager
    def applied_to(self, policy: nn.Module) -> Iterator[None]:
        """Put the arm between a policy and its memory, for as long as the context lasts."""
        host = host_of(policy)
        if host is None:
            yield
            return
        host.close_gates(self.name == "gate_closed")
        host.latent_reader.intervention = self
        try:
            yield
        finally:
            host.close_gates(False)
            host.latent_reader.intervention = None

    def __call__(self, memory: Memory, world_batch: WorldBatch, shape: tuple[int, int, int, int]) -> Memory:
        """The memory that is read in place of `memory`; see `Intervention`."""
        tokens, plan = memory.tokens, self._n_plans
        self.shape, self._n_plans = shape, plan + 1
        if self.source is None:
            if self.config.rollout_source.traits.is_noise:
                # The same draws as the policy's own, but of the scene's, not of its place in the batch.
                return Memory(self._noise(tokens, plan))
            if self.bank is not None:
                past = [] if world_batch.past is None else [world_batch.past.flatten(1, 2)]
                self.for_bank.append(torch.cat([*past, tokens], dim=1).half().cpu())
            return memory
        if self.source is MemorySource.gate_closed:
            if self.config.entry != "appended":
                return memory  # the readers themselves are shut
            if world_batch.past_is_pad is not None:
                world_batch.past_is_pad = torch.ones_like(world_batch.past_is_pad)
            return Memory(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))
        if self.source is MemorySource.stale:
            self._past = [*self._past[-self.stale_plans :], tokens]
            return Memory(self._past[0])
        traits = self.source.traits
        if traits.partner:
            # The same plan of the other episode, or its last: what differs is the content, not the phase.
            plans = torch.stack([episode[min(plan, len(episode) - 1)] for episode in self._other_scenes])
            n_past = plans.shape[1] - tokens.shape[1]
            if traits.past:
                world_batch.past = plans[:, :n_past].to(world_batch.past).view_as(world_batch.past)
                return memory
            return Memory(plans[:, n_past:].to(tokens))
        given = MemoryInputs((len(tokens), *shape), tokens.device, predicted=tokens.view(len(tokens), *shape))
        if traits.past:
            changed = traits.past(world_batch.past, world_batch.past_is_pad, given)
            world_batch.past, world_batch.past_is_pad = changed
            return memory
        if traits.is_noise:
            return Memory(self._noise(tokens, plan))
        if traits.reads_current:
            given.current = current_content(world_batch, self.config.content, shape)
        return Memory(make_memory(self.source, given).tokens.to(tokens.dtype))

    def _noise(self, tokens: Tensor, plan: int) -> Tensor:
        """Gaussian directions with the norms of the tokens that they replace, (b, m, d)."""
        noise = torch.stack(
            [
                torch.randn(tokens.shape[1:], generator=pinned_generator(self.draw_seed, "random", *scene, plan))
                for scene in ((self._task, seed) for seed in self._seeds)
            ]
        ).to(tokens)
        return noise * tokens.norm(dim=-1, keepdim=True) / noise.norm(dim=-1, keepdim=True)
