"""world_A, world_B, world_B_cont, world_C and world_F: what each adds to what they share (`world_policy`)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.shared.latent_reader import WorldBatch
from lerobot_policy_world_modality.policies.shared.memory_filling import (
    fill_memory,
    hold_gates,
    memory_shape,
    predict_futures,
    prophet_objective,
    reader_values,
)
from lerobot_policy_world_modality.policies.shared.prophet_start import start_prophet
from lerobot_policy_world_modality.policies.world.configuration_world_modality import (
    WorldAConfig,
    WorldBConfig,
    WorldBContConfig,
    WorldCConfig,
    WorldFConfig,
    WorldModalityConfig,
)
from lerobot_policy_world_modality.policies.world.world_policy import WorldModalityPolicy
from world_modality_core.configs import MemorySource
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.sources import Memory
from world_modality_core.memory.trunk import AppendedMemory, FutureHead
from world_modality_core.prophet.losses import (
    future_latent_loss,
    future_latent_metrics,
    future_token_loss,
    future_token_metrics,
)
from world_modality_core.prophet.network import Futures, Prophet


class WorldAPolicy(WorldModalityPolicy):
    """Behaviour cloning baseline."""

    config_class = WorldAConfig
    name = "world_A"


class WorldTokenPolicy(WorldModalityPolicy):
    """What B and C share: an auxiliary head for future world tokens; abstract."""

    config_class = WorldModalityConfig
    name = "world_tokens"

    @property
    def needs_tokens(self) -> bool:
        return True

    def _build_world(self) -> None:
        config = self.config
        self.future_head = FutureHead(
            config.d_model, config.n_heads, config.n_future_steps, config.tokens.n_per_frame * config.tokens.n_codes
        )

    def _world_objective(self, world_batch, context, is_pad):
        logits = self.future_head(context, is_pad).unflatten(-1, (self.config.tokens.n_per_frame, -1))  # (b, k, n, c)
        loss = future_token_loss(logits, world_batch.future_tokens, world_batch.future_is_pad)
        return loss, future_token_metrics(logits, world_batch.future_tokens, world_batch.future_is_pad)


class WorldBPolicy(WorldTokenPolicy):
    """A, and an auxiliary head for future world tokens."""

    config_class = WorldBConfig
    name = "world_B"


class WorldCPolicy(WorldTokenPolicy):
    """World tokens as an input modality and as the auxiliary target."""

    config_class = WorldCConfig
    name = "world_C"

    def _world_input(self) -> dict[str, int]:
        if not self.config.use_world_input:
            return {}
        return {"n_codes": self.config.tokens.n_codes, "n_world_tokens": self.config.tokens.n_per_frame}

    @property
    def _live_tokens(self) -> bool:
        return self.config.use_world_input


class WorldBContPolicy(WorldModalityPolicy):
    """A, and an auxiliary head for future latents."""

    config_class = WorldBContConfig
    name = "world_B_cont"

    @property
    def needs_latents(self) -> bool:
        return True  # the current latent is what skill (and a residual target) is measured from

    @property
    def needs_future_latents(self) -> bool:
        return True

    def _build_world(self) -> None:
        config, spec = self.config, self.config.encoder
        self.future_head = FutureHead(
            config.d_model,
            config.n_heads,
            config.n_future_steps,
            spec.n_tokens * spec.dim,
            zero_init=config.residual_targets,
        )

    def _predict(self, world_batch: WorldBatch, context: Tensor, is_pad: Tensor) -> Tensor:
        predicted = self.future_head(context, is_pad).unflatten(-1, (self.space.n_tokens, self.space.dim))
        return predicted + world_batch.current[:, None] if self.config.residual_targets else predicted

    def _world_objective(self, world_batch, context, is_pad):
        predicted = self._predict(world_batch, context, is_pad)
        futures = Futures(predicted[:, None], predicted.new_zeros(len(predicted), 1))
        loss = future_latent_loss(futures, world_batch.future, world_batch.future_is_pad)
        return loss, future_latent_metrics(
            predicted, world_batch.current, world_batch.future, world_batch.future_is_pad
        )

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames; see `WorldFPolicy.predict_latents`."""
        world_batch = self._recorded_batch(batch)
        _, context, is_pad = self._act(world_batch, None)
        return self.space.restore(self._predict(world_batch, context, is_pad))


class WorldFPolicy(WorldModalityPolicy):
    """A's action queries + gated cross-attention to predicted futures."""

    config_class = WorldFConfig
    name = "world_F"

    @property
    def needs_latents(self) -> bool:
        return self.config.use_vision or self.config.needs_history

    @property
    def needs_future_latents(self) -> bool:
        return self.config.needs_future

    def _build_world(self) -> None:
        config, spec = self.config, self.config.encoder
        config.prophet.d_model = config.prophet_width
        self.memory_shape = memory_shape(config)
        self.prophet = Prophet(
            spec.n_tokens,
            spec.dim,
            config.n_obs_steps,
            config.n_future_steps,
            config.prophet,
            state_dim=self.state_dim,
            language_dim=config.language.dim,
        )
        n, k, p, d = self.memory_shape
        self.memory: GatedCrossAttention | AppendedMemory
        if config.memory.entry == "gated":
            self.memory = GatedCrossAttention(config.d_model, d, n * k * p, config.memory.n_heads, config.memory.gate)
        else:
            self.memory = AppendedMemory(config.d_model, d, n * k * p, is_normed=config.memory.content != "states")

    @property
    def _world_weight(self) -> float:
        return self.config.world_weight

    def _start(self, stats):
        start_prophet(self.config, self.prophet, self.space, stats)
        super()._start(stats)

    @property
    def _is_gated(self) -> bool:
        return self.config.memory.entry == "gated"

    @property
    def _watched(self) -> dict[str, nn.Module]:
        watched = {"prophet": self.prophet, "memory": self.memory}
        return watched | ({"gate": self.memory.gate} if self._is_gated else {})

    @property
    def _live_latents(self) -> bool:
        return self.config.use_vision or self.config.needs_live_history

    def _fill(self, world_batch: WorldBatch, source: MemorySource) -> Memory:
        return fill_memory(
            self.prophet, world_batch, source, self.config.memory, self.memory_shape, self._generator(), self._step
        )

    def _append_world(self, world_batch, source):
        if self._is_gated:
            return None
        memory = self._fill(world_batch, source)
        return self.memory(memory.tokens, memory.is_pad), memory.is_pad

    def _read_world(self, states: Tensor, world_batch: WorldBatch, source: MemorySource) -> Tensor:
        if not self._is_gated:
            return states
        hold_gates(self.memory.modules(), self._step < self.config.memory.gate_warmup_steps)
        memory = self._fill(world_batch, source)
        return self.memory(states, memory.tokens, memory.is_pad)

    def _world_objective(self, world_batch, context, is_pad):
        values = reader_values(self.memory, self.memory_shape) if self._is_gated else {}
        if not self.config.trains_prophet:
            return None, values
        loss, skill = prophet_objective(self.prophet, world_batch)
        return loss, values | skill

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames.

        Args:
            batch: A preprocessed batch with `index` (b,), and state and task where the Prophet is conditioned.

        Returns:
            (b, k, p, d) latents as the companion stores them, of the hypothesis that the Prophet believes in.
        """
        world_batch = self._recorded_batch(batch)
        return self.space.restore(predict_futures(self.prophet, world_batch).best())
