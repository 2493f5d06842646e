"""What world_A to world_F share: sight, trunk, action head, losses, optimiser groups, rollout.

Training and rollout build the same `WorldBatch` (from the companion, or from live frames) and run
the same `_act` on it.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor, nn

from lerobot_policy_world_modality.hub.on_hub import OnHub
from lerobot_policy_world_modality.policies.shared.latent_reader import (
    LatentReader,
    WorldBatch,
    open_training_companion,
    policy_spec,
)
from lerobot_policy_world_modality.policies.shared.memory_filling import draws, gate_parameters, optimizer_groups
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts, start_trunk
from lerobot_policy_world_modality.policies.shared.training_log import TrainingLog
from lerobot_policy_world_modality.policies.world.configuration_world_modality import WorldModalityConfig
from world_modality_core.configs import MemorySource, TokenizerConfig
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.trunk import WorldTrunk
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.losses import masked_mean


class WorldModalityPolicy(OnHub, PreTrainedPolicy):
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
        check_starts(config, companion)

        self.space = LatentNormaliser(config.encoder, getattr(config, "tokens", None)) if needs_world else None
        if companion is not None:
            self.space.fill(companion.mean, companion.std, companion.pca, companion.codebook)
        self.latent_reader = LatentReader(
            config,
            self.space,
            companion,
            n_history=config.n_obs_steps,
            use_state=config.use_state,
            use_language=config.use_language,
        )
        if config.use_language and config.language.dim == 0:
            config.language.dim = self.latent_reader.sentences(torch.device("cpu")).dim

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
        if companion is not None:
            self._start(dataset_stats or dataset_meta.stats)
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

    def _start(self, stats: dict[str, dict[str, Tensor]]) -> None:
        """Load what a new run starts from."""
        start_trunk(self.config, self.trunk, self.space, stats)

    def _append_world(
        self, world_batch: WorldBatch, source: MemorySource | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """Context tokens (b, m, d) that the trunk gets beside the observation's, and their padding (b, m)."""
        return None

    def _read_world(self, states: Tensor, world_batch: WorldBatch, source: MemorySource | None) -> Tensor:
        """Let the action states (b, h, d) read a world memory."""
        return states

    def _world_objective(
        self, world_batch: WorldBatch, context: Tensor, is_pad: Tensor
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Loss per sample (b,) of the world objective, None without one, and what to log."""
        return None, {}

    @property
    def _world_weight(self) -> float:
        """Weight of the world objective in the loss."""
        return self.config.lambda_world

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
        world_batch = self._recorded_batch(batch)
        source = getattr(self.config, "memory", None) and self.config.memory.source
        actions, context, is_pad = self._act(world_batch, source)
        error = actions - batch[ACTION]
        error = error.abs() if self.config.action_loss == "l1" else error.square()
        action_is_pad = batch.get("action_is_pad")
        if action_is_pad is None:
            action_is_pad = torch.zeros(error.shape[:2], dtype=torch.bool, device=error.device)
        loss = masked_mean(error.mean(-1), action_is_pad, dim=-1)  # (b,)
        values = {"loss_action": loss.mean()}
        loss_world, world_values = self._world_objective(world_batch, context, is_pad)
        if loss_world is not None:
            values["loss_world"] = loss_world.mean()
            if self._world_weight > 0:
                loss = loss + self._world_weight * loss_world
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
        self.latent_reader.frames.clear()

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
        return self._act(self._live_batch(batch), source)[0]

    @torch.no_grad()
    def plan_recorded(
        self, batch: dict[str, Tensor], source: MemorySource | str | None = None, noise: Tensor | None = None
    ) -> Tensor:
        """Plan from recorded frames, with the memory of any source; for offline interventions.

        Args:
            batch: A preprocessed batch of the dataset, with `index` (b,).
            source: Memory source, `oracle` included; None for the training source. No matter without a memory.
            noise: No matter: these types draw none (SmolVLA's do).

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        memory = getattr(self.config, "memory", None)
        if memory is not None:
            source = memory.source if source is None else MemorySource(source)
        return self._act(self._recorded_batch(batch, everything=True), source)[0]

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.train_step.device

    # How the parts go together.

    def _act(self, world_batch: WorldBatch, source: MemorySource | None) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (b, h, a), the trunk's context (b, c, d) and its padding (b, c)."""
        states, context, is_pad = self.trunk(
            world_batch.batch_size,
            latents=world_batch.history,
            latents_is_pad=world_batch.history_is_pad,
            state=world_batch.state,
            language=world_batch.language,
            world_tokens=world_batch.tokens,
            memory=self._append_world(world_batch, source),
        )
        states = self._read_world(states, world_batch, source)
        return self.action_head(states), context, is_pad

    @property
    def _live_latents(self) -> bool:
        return self.config.use_vision

    @property
    def _live_tokens(self) -> bool:
        return False

    def _remember(self, batch: dict[str, Tensor]) -> None:
        if self._live_latents or self._live_tokens:
            self.latent_reader.remember(batch)

    def _live_batch(self, batch: dict[str, Tensor]) -> WorldBatch:
        return self.latent_reader.live(batch, self.device, latents=self._live_latents, tokens=self._live_tokens)

    def _recorded_batch(self, batch: dict[str, Tensor], everything: bool = False) -> WorldBatch:
        everything = everything and hasattr(self.config, "memory")  # any memory source may be asked for
        return self.latent_reader.recorded(
            batch,
            self.device,
            history=everything or self.needs_latents,
            future=everything or self.needs_future_latents,
            tokens=self.needs_tokens,
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
