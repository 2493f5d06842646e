"""world_A, world_B, world_B_cont, world_C and world_F: one trunk, five policy types.

Training and rollout build the same `Sight` (from the companion, or from live frames) and run the same `_act` on it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from lerobot_policy_world_modality.configuration_world_modality import (
    WorldAConfig,
    WorldBConfig,
    WorldBContConfig,
    WorldCConfig,
    WorldFConfig,
    WorldModalityConfig,
)
from lerobot_policy_world_modality.sight import Eyes, Sight, open_training_companion, policy_spec
from lerobot_policy_world_modality.training_log import TrainingLog
from lerobot_policy_world_modality.world_memory import (
    draws,
    fill_memory,
    foresee,
    gate_parameters,
    hold_gates,
    optimizer_groups,
    prophet_objective,
    reader_values,
)
from world_modality_core.configs import MemorySource, TokenizerConfig
from world_modality_core.gated_attention import GatedCrossAttention
from world_modality_core.losses import (
    future_latent_loss,
    future_latent_metrics,
    future_token_loss,
    future_token_metrics,
    masked_mean,
)
from world_modality_core.metrics import LoggedValues
from world_modality_core.prophet import Futures, Prophet
from world_modality_core.trunk import FutureHead, WorldTrunk
from world_modality_core.world_space import WorldSpace


class WorldModalityPolicy(PreTrainedPolicy):
    """What the five types share; abstract.

    A type says which latents and tokens it needs, may let the action states read a memory, and may have a world
    objective.

    Args:
        config: The type's config. In training its encoder, token and language fields are filled in from the companion.
        dataset_stats: Given by LeRobot; normalisation happens in the processors, so it is not used.
        dataset_meta: Metadata of the training dataset; None at evaluation, where everything is computed live.
    """

    config_class = WorldModalityConfig
    name = "world_modality"

    def __init__(
        self,
        config: WorldModalityConfig,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        needs_world = self.needs_latents or self.needs_future_latents or self.needs_tokens
        companion = None
        if dataset_meta is not None and needs_world:
            companion = open_training_companion(config, dataset_meta)
            self._take_shapes(companion)
        elif dataset_meta is not None:
            config.use_cameras({})
        elif needs_world and not config.encoder.is_resolved:
            raise ValueError(
                f"{config.type} without a checkpoint or a dataset does not know its world latents' shape; load it with "
                "--policy.path=CHECKPOINT, or train it with lerobot-train and --policy.companion.root=FOLDER"
            )
        config.validate_features()

        self.space = WorldSpace(config.encoder, getattr(config, "tokens", None)) if needs_world else None
        if companion is not None:
            self.space.fill(companion.mean, companion.std, companion.pca, companion.codebook)
        self.eyes = Eyes(
            config,
            self.space,
            companion,
            n_history=config.n_obs_steps,
            use_state=config.use_state,
            use_language=config.use_language,
        )
        if config.use_language and config.language.dim == 0:
            config.language.dim = self.eyes.sentences(torch.device("cpu")).dim

        state = config.robot_state_feature
        self.state_dim = state.shape[0] if config.use_state else 0
        self.trunk = WorldTrunk(
            d=config.d_model,
            n_layers=config.n_layers,
            n_heads=config.n_heads,
            d_feedforward=config.d_feedforward,
            dropout=config.dropout,
            n_actions=config.chunk_size,
            latent_shape=(config.n_obs_steps, config.encoder.n_tokens, config.encoder.dim)
            if config.use_vision
            else None,
            per_cell=config.per_cell,
            state_dim=self.state_dim,
            language_dim=config.language.dim if config.use_language else 0,
            **self._world_input(),
        )
        self.action_head = nn.Sequential(
            nn.LayerNorm(config.d_model),
            nn.Linear(config.d_model, config.d_model),
            nn.GELU(),
            nn.Linear(config.d_model, config.action_feature.shape[0]),
        )
        # Optimiser steps so far: what `scheduled` memory and all draws depend on, so that a resumed run goes on alike.
        self.register_buffer("train_step", torch.zeros((), dtype=torch.int64))
        self._step = 0
        self.register_load_state_dict_post_hook(lambda module, _: module._read_step())
        self._log = TrainingLog(config.metrics_file, config.metrics_every)
        # Trunk and head draw their initial weights first: with one seed, all five types start from the same A.
        with torch.random.fork_rng(devices=[]):
            self._build_world()
        self.reset()

    # What a type adds.

    @property
    def needs_latents(self) -> bool:
        """Whether latents of the history are read in training."""
        return self.config.use_vision

    @property
    def needs_future_latents(self) -> bool:
        """Whether latents of the future are read in training."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """Whether world tokens, current and future, are read in training."""
        return False

    def _world_input(self) -> dict[str, int]:
        """Arguments of the trunk for world tokens as an input."""
        return {}

    def _build_world(self) -> None:
        """Build the modules that A does not have."""

    def _read_world(self, states: Tensor, sight: Sight, source: MemorySource | None) -> Tensor:
        """Let the action states (b, h, d) read a world memory."""
        return states

    def _world_objective(
        self, sight: Sight, context: Tensor, is_pad: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Loss per sample (b,) of the world objective, None without one, and what to log."""
        return None, {}

    @property
    def _watched(self) -> dict[str, nn.Module]:
        """Modules whose gradient norm is logged."""
        return {}

    # Training.

    def forward(self, batch: dict[str, Tensor], reduction: str = "mean") -> tuple[Tensor, LoggedValues]:
        """Compute the training loss.

        Args:
            batch: A preprocessed batch with `action` (b, h, a), `action_is_pad` (b, h), `index` (b,), `task`, ....
            reduction: "mean", or "none" for LeRobot's sample weighting.

        Returns:
            Loss, () or (b,), and the values to log (docs/metrics.md).

        Raises:
            ValueError: if `reduction` is unknown, or a task is empty.
        """
        if reduction not in ("mean", "none"):
            raise ValueError(f"reduction={reduction!r}: expected 'mean' or 'none'")
        sight = self._recorded_sight(batch)
        source = getattr(self.config, "memory", None) and self.config.memory.source
        actions, context, is_pad = self._act(sight, source)
        error = actions - batch[ACTION]
        error = error.abs() if self.config.action_loss == "l1" else error.square()
        action_is_pad = batch.get("action_is_pad")
        if action_is_pad is None:
            action_is_pad = torch.zeros(error.shape[:2], dtype=torch.bool, device=error.device)
        loss = masked_mean(error.mean(-1), action_is_pad, dim=-1)  # (b,)
        values = {"loss_action": loss.mean()}
        loss_world, world_values = self._world_objective(sight, context, is_pad)
        if loss_world is not None:
            values["loss_world"] = loss_world.mean()
            if self.config.lambda_world > 0:
                loss = loss + self.config.lambda_world * loss_world
        logged = LoggedValues(values | world_values)
        if self.training:
            self._log.watch(self._watched)
            self._log.take(logged)
        return (loss.mean() if reduction == "mean" else loss), logged

    def update(self) -> None:
        """Count an optimiser step; LeRobot's trainer calls this after each."""
        self._step += 1
        self.train_step += 1
        self._log.write(self._step)

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Parameter groups: matrices with weight decay, the rest without, gates with their own learning rate."""
        gates = gate_parameters(self.modules())
        matrices = {
            id(module.weight) for module in self.modules() if isinstance(module, nn.Linear | nn.MultiheadAttention)
            if isinstance(getattr(module, "weight", None), Tensor)
        } | {id(m.in_proj_weight) for m in self.modules() if isinstance(m, nn.MultiheadAttention)}  # fmt: skip
        groups = {"decay": [], "no_decay": [], "gate": []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                kind = "gate" if id(parameter) in gates else "decay" if id(parameter) in matrices else "no_decay"
                groups[kind].append(parameter)
        options = {"decay": {}, "no_decay": {"weight_decay": 0.0}, "gate": {"weight_decay": 0.0}}
        if groups["gate"]:
            options["gate"]["lr"] = self.config.optimizer_lr * self.config.memory.gate_lr_factor
        return optimizer_groups(groups, options)

    # Rollout.

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        self._queue: deque[Tensor] = deque()
        self._n_plans = 0
        self.eyes.frames.clear()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Return the next action of the plan, planning anew every `n_action_steps`.

        Args:
            batch: The current observation of b environments: images (b, c, h, w), state (b, s), `task`.

        Returns:
            (b, a) normalised action.
        """
        self.eval()
        if not self._queue:
            self._queue.extend(self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        else:
            self._remember(batch)
        return self._queue.popleft()

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Remember the current frame and plan from it.

        Args:
            batch: As for `select_action`.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        self._remember(batch)
        self._n_plans += 1
        source = getattr(self.config, "memory", None) and self.config.memory.rollout_source
        return self._act(self._live_sight(batch), source)[0]

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.train_step.device

    # How the parts go together.

    def _act(self, sight: Sight, source: MemorySource | None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (b, h, a), the trunk's context (b, c, d) and its padding (b, c)."""
        states, context, is_pad = self.trunk(
            sight.batch_size,
            latents=sight.history,
            latents_is_pad=sight.history_is_pad,
            state=sight.state,
            language=sight.language,
            world_tokens=sight.tokens,
        )
        states = self._read_world(states, sight, source)
        return self.action_head(states), context, is_pad

    @property
    def _live_latents(self) -> bool:
        return self.config.use_vision

    @property
    def _live_tokens(self) -> bool:
        return False

    def _remember(self, batch: dict[str, Tensor]) -> None:
        if self._live_latents or self._live_tokens:
            self.eyes.remember(batch)

    def _live_sight(self, batch: dict[str, Tensor]) -> Sight:
        return self.eyes.live(batch, self.device, latents=self._live_latents, tokens=self._live_tokens)

    def _recorded_sight(self, batch: dict[str, Tensor]) -> Sight:
        return self.eyes.recorded(
            batch, self.device, history=self.needs_latents, future=self.needs_future_latents, tokens=self.needs_tokens
        )

    def _take_shapes(self, companion) -> None:
        config = self.config
        names = config.companion.rename_map
        config.encoder = policy_spec(config, companion)
        config.use_cameras({names.get(camera, camera): shape for camera, shape in companion.camera_shapes.items()})
        if config.uses_tokens:
            book = companion.codebook
            shape = TokenizerConfig(
                book.n_codes, book.per, book.n_per_frame(config.encoder.n_tokens), book.centroids.shape[1]
            )
            if config.tokens.n_codes and config.tokens != shape:
                raise ValueError(
                    f"policy.tokens={config.tokens} is not the codebook of companion {companion.root}, {shape}"
                )
            config.tokens = shape

    def _read_step(self) -> None:
        self._step = int(self.train_step)

    def _generator(self) -> torch.Generator:
        return draws(self.config.memory.seed, self._step if self.training else self._n_plans, self.device)


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

    def _world_objective(self, sight, context, is_pad):
        logits = self.future_head(context, is_pad).unflatten(-1, (self.config.tokens.n_per_frame, -1))  # (b, k, n, c)
        loss = future_token_loss(logits, sight.future_tokens, sight.future_is_pad)
        return loss, future_token_metrics(logits, sight.future_tokens, sight.future_is_pad)


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

    def _predict(self, sight: Sight, context: Tensor, is_pad: Tensor) -> Tensor:
        predicted = self.future_head(context, is_pad).unflatten(-1, (self.space.n_tokens, self.space.dim))
        return predicted + sight.current[:, None] if self.config.residual_targets else predicted

    def _world_objective(self, sight, context, is_pad):
        predicted = self._predict(sight, context, is_pad)
        futures = Futures(predicted[:, None], predicted.new_zeros(len(predicted), 1))
        loss = future_latent_loss(futures, sight.future, sight.future_is_pad)
        return loss, future_latent_metrics(predicted, sight.current, sight.future, sight.future_is_pad)

    @torch.no_grad()
    def imagine(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames; see `WorldFPolicy.imagine`."""
        sight = self._recorded_sight(batch)
        _, context, is_pad = self._act(sight, None)
        return self.space.restore(self._predict(sight, context, is_pad))


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
        self.memory_shape = (config.prophet.n_hypotheses, config.n_future_steps, spec.n_tokens, spec.dim)
        config.prophet.d_model = config.prophet_width
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
        self.memory = GatedCrossAttention(config.d_model, d, n * k * p, config.memory.n_heads, config.memory.gate)

    @property
    def _watched(self) -> dict[str, nn.Module]:
        return {"prophet": self.prophet, "memory": self.memory, "gate": self.memory.gate}

    @property
    def _live_latents(self) -> bool:
        return self.config.use_vision or self.config.needs_live_history

    def _read_world(self, states: Tensor, sight: Sight, source: MemorySource) -> Tensor:
        hold_gates(self.memory.modules(), self._step < self.config.memory.gate_warmup_steps)
        memory = fill_memory(
            self.prophet, sight, source, self.config.memory, self.memory_shape, self._generator(), self._step
        )
        return self.memory(states, memory.tokens, memory.is_pad)

    def _world_objective(self, sight, context, is_pad):
        values = reader_values(self.memory, self.memory_shape)
        if not self.config.trains_prophet:
            return None, values
        loss, skill = prophet_objective(self.prophet, sight)
        return loss, values | skill

    @torch.no_grad()
    def imagine(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames.

        Args:
            batch: A preprocessed batch with `index` (b,), and state and task where the Prophet is conditioned.

        Returns:
            (b, k, p, d) latents as the companion stores them, of the hypothesis that the Prophet believes in.
        """
        sight = self._recorded_sight(batch)
        return self.space.restore(foresee(self.prophet, sight).best())
