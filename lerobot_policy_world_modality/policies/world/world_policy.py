"""What world_A to world_F share: world batch, trunk, action head, losses, optimiser groups, rollout.

Training and rollout build the same `WorldBatch` (from the companion, or from live frames) and run
the same `_act` on it.
"""

# Annotations are objects here, not strings: LeRobot reads that of `config`.

from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.shared.host import CountsSteps, gate_parameters, optimizer_groups
from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.planning_policy import (
    PlanningPolicy,
    action_padding,
    check_reduction,
)
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts, start_trunk
from lerobot_policy_world_modality.policies.shared.training_companion import open_world
from lerobot_policy_world_modality.policies.shared.vectors import action_vectors
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from lerobot_policy_world_modality.policies.world.configuration_world_modality import WorldModalityConfig
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.sources import MemorySource
from world_modality_core.memory.trunk import WorldTrunk
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.losses import masked_mean


class WorldModalityPolicy(CountsSteps, PlanningPolicy, PreTrainedPolicy):
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
    _fsdp_wrap_modules = ["TransformerEncoderLayer"]  # LeRobot 0.6.2 and later

    def __init__(
        self,
        config: WorldModalityConfig,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        **kwargs: Any,
    ):
        super().__init__(config)
        companion = open_world(config, dataset_meta)
        if dataset_meta is not None and companion is None:
            config.use_cameras({})
        config.validate_features()
        check_starts(config, companion)
        self.latent_reader = LatentReader(config, companion)
        self.space = LatentNormaliser(config.encoder, getattr(config, "tokens", None)) if config.has_world else None
        self.prophet = None
        self._begin_count()

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
        # Trunk and head draw their initial weights first: with one seed, all five types start from the same A.
        with torch.random.fork_rng(devices=[]):
            self._build_world()
        stats = dataset_stats or (dataset_meta.stats if dataset_meta else None)
        self._connect_world(companion, stats)
        if companion is not None:
            start_trunk(config, self.trunk, self.space, stats)
        if config.freeze_trunk:
            self.trunk.freeze_layers()
        self.reset()

    @property
    def world(self) -> "WorldModalityPolicy":
        """What holds `space`, `prophet` and `train_step`: these types hold them themselves."""
        return self

    # What a type adds.

    def _world_input(self) -> dict[str, int]:
        """Arguments of the trunk for world tokens as an input."""
        return {}

    def _build_world(self) -> None:
        """Build the modules that A does not have."""

    def _append_world(
        self, world_batch: WorldBatch, source: MemorySource | None
    ) -> tuple[Tensor, Tensor | None] | None:
        """Context tokens (b, m, d) that the trunk gets beside the observation's, and their padding (b, m)."""
        return None

    def _read_world(self, states: Tensor, world_batch: WorldBatch, source: MemorySource | None) -> Tensor:
        """Let the action states (b, h, d) read a world memory."""
        return states

    def _objective(
        self, world_batch: WorldBatch, context: Tensor, is_pad: Tensor
    ) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Weighted loss per sample (b,) of the world objective, 0 without one, and what to log."""
        return 0.0, {}

    def _weighted(self, loss_world: Tensor) -> Tensor | float:
        return self.config.lambda_world * loss_world if self.config.lambda_world > 0 else 0.0

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
        check_reduction(reduction)
        world_batch = self.recorded_batch(batch)
        source = self.config.memory.source if self.config.reads_memory else None
        actions, context, is_pad = self._act(world_batch, source)
        error = actions - action_vectors(batch, self.config)
        error = error.abs() if self.config.action_loss == "l1" else error.square()
        loss = masked_mean(error.mean(-1), action_padding(batch, error), dim=-1)  # (b,)
        values = {"loss_action": loss.mean()}
        loss_world, world_values = self._objective(world_batch, context, is_pad)
        loss = loss + loss_world if isinstance(loss_world, Tensor) else loss
        logged = LoggedValues(values | world_values)
        self._take_log(logged, loss, batch)
        return (loss.mean() if reduction == "mean" else loss), logged

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

    def _plan(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        source = self.config.memory.rollout_source if self.config.reads_memory else None
        return self._act(self._live_batch(batch), source)[0]

    def _plan_recorded(
        self, batch: dict[str, Tensor], world_batch: WorldBatch, source: MemorySource | None, noise: Tensor | None
    ) -> Tensor:
        return self._act(world_batch, source)[0]

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
