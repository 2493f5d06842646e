"""world_A, world_B, world_B_cont, world_C and world_F: what each adds to what they share (`world_policy`)."""

# Annotations are objects here, not strings: LeRobot reads that of `config`.

import torch
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.shared.host import make_prophet
from lerobot_policy_world_modality.policies.shared.memory_filling import make_reader, n_memory_tokens
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from lerobot_policy_world_modality.policies.world.action_free_frames import ActionFreeFrames
from lerobot_policy_world_modality.policies.world.configuration_world_modality import (
    WorldAConfig,
    WorldBConfig,
    WorldBContConfig,
    WorldCConfig,
    WorldFConfig,
    WorldModalityConfig,
)
from lerobot_policy_world_modality.policies.world.world_policy import WorldModalityPolicy
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.sources import MemorySource
from world_modality_core.memory.trunk import AppendedMemory, FutureHead
from world_modality_core.prophet.losses import (
    future_latent_objective,
    future_token_loss,
    future_token_metrics,
    masked_mean,
)
from world_modality_core.prophet.network import Futures


class WorldAPolicy(WorldModalityPolicy):
    """Behaviour cloning baseline; with `lambda_states`, co-trained on where the robot's state will be."""

    config_class = WorldAConfig
    name = "world_A"
    action_free: ActionFreeFrames | None = None

    def __init__(self, config: WorldAConfig, dataset_stats=None, dataset_meta=None, **kwargs):
        super().__init__(config, dataset_stats, dataset_meta, **kwargs)
        companion = self.latent_reader.companion
        if config.lambda_states and companion is not None:
            stats = dataset_stats or dataset_meta.stats
            offsets = [i * config.future_stride for i in range(1, config.n_future_steps + 1)]
            episodes = config.action_free_episodes
            self.action_free = ActionFreeFrames(companion, dataset_meta.root, stats, episodes, offsets)

    def _build_world(self) -> None:
        config = self.config
        if config.lambda_states:
            sizes = config.d_model, config.n_heads, config.n_future_steps, self.state_dim
            self.future_head = FutureHead(*sizes, zero_init=True)

    def _objective(self, world_batch, context, is_pad):
        if self.action_free is None:
            return 0.0, {}
        seen, moved, moved_is_pad = self.action_free.draw(self.latent_reader, self._step, self.device)
        _, context, is_pad = self._act(seen, None)
        error = (self.future_head(context, is_pad) - moved).square().mean(-1)
        loss = masked_mean(error, moved_is_pad)
        return self.config.lambda_states * loss, {"loss_world": loss}


class WorldTokenPolicy(WorldModalityPolicy):
    """What B and C share: an auxiliary head for future world tokens; abstract."""

    config_class = WorldModalityConfig
    name = "world_tokens"

    def _build_world(self) -> None:
        config = self.config
        self.future_head = FutureHead(
            config.d_model, config.n_heads, config.n_future_steps, config.tokens.n_per_frame * config.tokens.n_codes
        )

    def _logits(self, context: Tensor, is_pad: Tensor) -> Tensor:
        return self.future_head(context, is_pad).unflatten(-1, (self.config.tokens.n_per_frame, -1))  # (b, k, n, c)

    def _objective(self, world_batch, context, is_pad):
        logits = self._logits(context, is_pad)
        loss = future_token_loss(logits, world_batch.future_tokens, world_batch.future_is_pad)
        values = future_token_metrics(logits, world_batch.future_tokens, world_batch.future_is_pad)
        return self._weighted(loss), {"loss_world": loss.mean()} | values

    @torch.no_grad()
    def predict_tokens(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict the world tokens of recorded frames to come: (b, k, n) codes."""
        _, context, is_pad = self._act(self.recorded_batch(batch), None)
        return self._logits(context, is_pad).argmax(-1)


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


class WorldBContPolicy(WorldModalityPolicy):
    """A, and an auxiliary head for future latents."""

    config_class = WorldBContConfig
    name = "world_B_cont"

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

    def _objective(self, world_batch, context, is_pad):
        predicted = self._predict(world_batch, context, is_pad)
        futures = Futures(predicted[:, None], predicted.new_zeros(len(predicted), 1))
        current, future = world_batch.current, world_batch.future
        loss, values = future_latent_objective(futures, current, future, world_batch.future_is_pad)
        return self._weighted(loss), {"loss_world": loss.mean()} | values

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Tensor]) -> Tensor:
        """As `PolicyWithWorld.predict_latents`, by the auxiliary head."""
        world_batch = self.recorded_batch(batch)
        _, context, is_pad = self._act(world_batch, None)
        return self.space.restore(self._predict(world_batch, context, is_pad))


class WorldFPolicy(WorldModalityPolicy):
    """A's action queries + gated cross-attention to predicted futures."""

    config_class = WorldFConfig
    name = "world_F"

    def _build_world(self) -> None:
        config = self.config
        config.prophet.d_model = config.prophet_width
        if config.n_future_steps:
            self.prophet = make_prophet(config)
        options, d = config.memory, config.d_model
        self.memory: GatedCrossAttention | AppendedMemory
        if options.entry == "appended":
            size = (self.memory_shape[-1], n_memory_tokens(config))
            self.memory = AppendedMemory(d, *size, options.content != "states", options.past.n_frames > 0)
        else:
            self.memory = make_reader(config, d)

    @property
    def _watched(self) -> dict[str, nn.Module]:
        watched = {"memory": self.memory} if self.prophet is None else {"prophet": self.prophet, "memory": self.memory}
        return watched | ({"gate": self.memory.gate} if self.config.memory.entry == "gated" else {})

    def _append_world(self, world_batch, source):
        if self.config.memory.entry != "appended":
            return None
        memory = self.memory_of(world_batch, source)
        return self.memory(memory.tokens, memory.is_pad, memory.time), memory.is_pad

    def _read_world(self, states: Tensor, world_batch: WorldBatch, source: MemorySource) -> Tensor:
        if self.config.memory.entry == "appended":
            return states
        memory = self.memory_of(world_batch, source)
        return self.memory(states, memory.tokens, memory.is_pad, time=memory.time)

    def _objective(self, world_batch, context, is_pad):
        values = self._reader_values(dict.fromkeys(self.readers, ""))
        loss, world_values = self._world_objective(world_batch)
        return loss, values | world_values
