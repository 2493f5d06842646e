"""All of the world in a qwen_world_fplus: Prophet, the reader of its memory, FLARE's alignment, and their losses."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import QwenWorldFPlusConfig
from lerobot_policy_world_modality.policies.qwen_world_fplus.heads import FutureAlignment
from lerobot_policy_world_modality.policies.shared.latent_reader import WorldBatch
from lerobot_policy_world_modality.policies.shared.memory_filling import (
    WorldSide,
    draws,
    fill_memory,
    hold_gates,
    memory_shape,
    prophet_objective,
    reader_values,
)
from world_modality_core.configs import MemorySource
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.prophet.losses import future_latent_loss
from world_modality_core.prophet.network import Futures


class StepCount(nn.Module):
    """Stands where a policy without a world (E0) has its `QwenWorld`: the count of optimiser steps alone."""

    def __init__(self):
        super().__init__()
        self.register_buffer("train_step", torch.zeros((), dtype=torch.int64))


class QwenWorld(WorldSide):
    """Latents' space, Prophet and count of steps, and what connects them with the action states.

    Args:
        config: The policy's config, its encoder resolved.
        d: Width of the action states.
    """

    def __init__(self, config: QwenWorldFPlusConfig, d: int):
        super().__init__(config)
        self.config = config
        self.memory_shape = memory_shape(config)
        n, k, p, d_memory = self.memory_shape
        self.reader: GatedCrossAttention | None = None
        if config.use_memory:
            self.reader = GatedCrossAttention(d, d_memory, n * k * p, config.memory.n_heads, config.memory.gate)
        self.alignment: FutureAlignment | None = None
        if config.lambda_align > 0:
            self.alignment = FutureAlignment(
                d, config.prophet.d_model, config.n_future_steps, config.encoder.n_tokens, config.encoder.dim
            )

    def inform(self, states: Tensor, world_batch: WorldBatch, source: MemorySource, step: int, count: int) -> Tensor:
        """Let the action states (b, h, d) read the memory; without injection they stay as they are.

        Args:
            states: The action states.
            world_batch: What the policy sees of the world.
            source: Where the memory comes from.
            step: Optimiser steps so far.
            count: What the draws depend on, see `draws`.
        """
        if self.reader is None:
            return states
        config = self.config.memory
        hold_gates(self.reader.modules(), step < config.gate_warmup_steps)
        generator = draws(config.seed, count, self.train_step.device)
        memory = fill_memory(self.prophet, world_batch, source, config, self.memory_shape, generator, step)
        return self.reader(states, memory.tokens, memory.is_pad)

    def objectives(self, states: Tensor, world_batch: WorldBatch) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Weighted losses per sample (b,) of Prophet and alignment, 0 without any, and what to log."""
        config, loss, values = self.config, 0.0, {}
        if config.trains_prophet:
            loss_world, skill = prophet_objective(self.prophet, world_batch)
            loss = loss + config.world_weight * loss_world
            values |= {"loss_world": loss_world.mean()} | skill
        if self.alignment is not None:
            predicted = self.alignment(states, world_batch.current)
            futures = Futures(predicted[:, None], predicted.new_zeros(len(predicted), 1))
            loss_align = future_latent_loss(futures, world_batch.future, world_batch.future_is_pad)
            loss = loss + config.lambda_align * loss_align
            values["loss_align"] = loss_align.mean()
        if self.reader is not None:
            values |= reader_values(self.reader, self.memory_shape)
        return loss, values

    @property
    def watched(self) -> dict[str, nn.Module]:
        """Modules whose gradient norm is logged."""
        found = {"prophet": self.prophet} if self.config.trains_prophet else {}
        return found | ({} if self.reader is None else {"memory": self.reader, "gate": self.reader.gate})
