"""Configurations of world_A, world_B, world_B_cont, world_C and world_F: one trunk, five types (docs/policies.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature, PreTrainedConfig
from lerobot.utils.constants import OBS_STATE

from lerobot_policy_world_modality.policies.shared.planning_config import PlanningConfig
from lerobot_policy_world_modality.policies.shared.prophet_options import check_trunk_start, take_over_prophet
from lerobot_policy_world_modality.policies.shared.world_options import MemoryOptions, WorldOptions
from world_modality_core.configs import MemoryConfig, ProphetConfig, TokenizerConfig, check_at_least, check_dropout
from world_modality_core.io.errors import ConfigError

if TYPE_CHECKING:
    from world_modality_core.latents.companion import Companion


# Closed choices have names: the help reads a field's comment only where its type has no quotes.
ActionLoss = Literal["l1", "l2"]


@dataclass
class WorldModalityConfig(WorldOptions, PlanningConfig):
    """What the five types have in common."""

    # History frames t that the trunk (and the Prophet) see.
    n_obs_steps: int = 3
    history_field: ClassVar[str] = "n_obs_steps"
    # Actions predicted at once, h.
    chunk_size: int = 8
    # Actions executed before planning again.
    n_action_steps: int = 4
    # Let the action path see observation latents. False: without images, a control.
    use_vision: bool = True
    # Let the action path see the robot's state.
    use_state: bool = True
    # Let the action path see the task.
    use_language: bool = True
    # One trunk token per latent token (p of them per frame), instead of one per frame that holds them all: sharper, and
    # for a 4x4 grid about five times the work.
    per_cell: bool = True
    # Width of the trunk.
    d_model: int = 256
    # Layers of the trunk.
    n_layers: int = 4
    # Attention heads of the trunk.
    n_heads: int = 4
    # Width of its feed-forward layers; 0 for 4 * d_model.
    d_feedforward: int = 0
    # Dropout in the trunk.
    dropout: float = 0.1
    # Start the trunk from the layers of the Prophet in this folder (wm-prophet's, or a policy's checkpoint), which must
    # have the trunk's sizes: what the same pretraining is worth without a memory. Not needed again later.
    trunk_init_from: str | None = None
    # Where the trunk was started from. Set in training.
    trunk_initialised_from: str | None = None
    # Keep the layers that `trunk_init_from` brought as they are; action queries and head are trained.
    freeze_trunk: bool = False
    # On normalised actions.
    action_loss: ActionLoss = "l1"
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )
    # Peak learning rate (AdamW).
    optimizer_lr: float = 3e-4
    # Weight decay; not on gates, biases, norms and embeddings of position.
    optimizer_weight_decay: float = 1e-2
    # Gradient clipping.
    optimizer_grad_clip_norm: float = 10.0
    # Warm-up steps of the cosine schedule.
    scheduler_warmup_steps: int = 500
    # Its length; shortened to the run's when that is shorter.
    scheduler_decay_steps: int = 100_000
    # Its last learning rate.
    scheduler_decay_lr: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "d_model", "n_layers", "n_heads")
        check_at_least(self, 0, "d_feedforward")
        check_dropout(self)
        self.check_world()
        if self.d_model % self.n_heads:
            raise ConfigError(f"n_heads={self.n_heads} does not divide d_model={self.d_model}")
        check_trunk_start(self)

    def validate_features(self) -> None:
        """Check what only the dataset or environment can tell.

        Raises:
            ConfigError: if there is no action, no state although `use_state`, or nothing to act from.
        """
        if self.action_feature is None:
            raise ConfigError(f"{self.type} needs a feature `action`; there is {list(self.output_features or {})}")
        if self.use_state and self.robot_state_feature is None:
            raise ConfigError(
                f"use_state=true needs a feature `{OBS_STATE}`; the dataset has {list(self.input_features or {})}. "
                "Set --policy.use_state=false to act without proprioception"
            )
        if not (self.use_vision or self.use_state or self.use_language or self.reads_world):
            raise ConfigError("use_vision, use_state and use_language are all false: nothing is left to act from")

    @property
    def reads_world(self) -> bool:
        """Whether a world input beyond the observation latents reaches the action path."""
        return False

    @property
    def world_reads_state(self) -> bool:
        return self.use_state

    @property
    def world_reads_language(self) -> bool:
        return self.use_language

    @property
    def needs_history(self) -> bool:
        return self.use_vision or super().needs_history

    @property
    def needs_live_history(self) -> bool:
        return self.use_vision or super().needs_live_history

    @property
    def encodes_frames(self) -> bool:
        """Whether a rollout needs the world encoder at all."""
        return self.use_vision

    def take_companion(self, companion: Companion) -> None:
        names = self.companion.rename_map
        self.use_cameras({names.get(camera, camera): shape for camera, shape in companion.camera_shapes.items()})
        if not self.needs_tokens:
            return
        book = companion.codebook
        n_per_frame = book.n_per_frame(self.encoder.n_tokens)
        shape = TokenizerConfig(book.n_codes, book.per, n_per_frame, book.centroids.shape[1])
        if self.tokens.n_codes and self.tokens != shape:
            raise ValueError(f"policy.tokens={self.tokens} is not the codebook of companion {companion.root}, {shape}")
        self.tokens = shape

    def use_cameras(self, camera_shapes: dict[str, list[int]]) -> None:
        """Declare as inputs the images that the world encoder reads, and no others.

        Args:
            camera_shapes: (h, w, c) of each camera of the encoder spec.
        """
        inputs = {key: ft for key, ft in (self.input_features or {}).items() if ft.type is not FeatureType.VISUAL}
        if self.encodes_frames:
            for camera, (height, width, channels) in camera_shapes.items():
                inputs[camera] = PolicyFeature(FeatureType.VISUAL, (channels, height, width))
        self.input_features = inputs


@PreTrainedConfig.register_subclass("world_A")
@dataclass
class WorldAConfig(WorldModalityConfig):
    """Behaviour cloning baseline: no world objective, unless co-trained on episodes without actions."""

    # Weight of an auxiliary head that forecasts how far the robot's state will have moved: co-training on frames of
    # `action_free_episodes`, 128 a step beside the batch. 0: no such head.
    lambda_states: float = 0.0
    # Episodes of the companion to co-train on, whether `dataset.episodes` has them or not; their actions are never
    # read. All of the companion's if not given.
    action_free_episodes: list[int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.action_free_episodes and not self.lambda_states:
            raise ConfigError(
                "action_free_episodes without lambda_states: nothing is learnt from them; set --policy.lambda_states=1"
            )
        if self.lambda_states and not (self.use_vision and self.use_state):
            raise ConfigError(
                f"lambda_states={self.lambda_states} forecasts the robot's states from latents and the present one: "
                "set --policy.use_vision=true --policy.use_state=true, or lambda_states=0"
            )


@PreTrainedConfig.register_subclass("world_B")
@dataclass
class WorldBConfig(WorldModalityConfig):
    """A, and an auxiliary head that predicts future world tokens."""

    # Weight of the world objective.
    lambda_world: float = 0.1
    # Shape of the world tokens. Set in training.
    tokens: TokenizerConfig = field(default_factory=TokenizerConfig)

    @property
    def needs_tokens(self) -> bool:
        return True


@PreTrainedConfig.register_subclass("world_B_cont")
@dataclass
class WorldBContConfig(WorldModalityConfig):
    """A, and an auxiliary head that predicts future latents."""

    # Weight of the world objective.
    lambda_world: float = 0.1
    # Predict z_{t+k} - z_t instead of z_{t+k}.
    residual_targets: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual_targets and not self.use_vision:
            raise ConfigError(
                "residual_targets=true predicts the change of the current latent, which use_vision=false hides; set "
                "--policy.residual_targets=false for the control without images"
            )

    @property
    def needs_history(self) -> bool:
        return True  # the current latent is what skill (and a residual target) is measured from

    @property
    def needs_future(self) -> bool:
        return True


@PreTrainedConfig.register_subclass("world_C")
@dataclass
class WorldCConfig(WorldModalityConfig):
    """World tokens as an input modality, and as the auxiliary target."""

    # Let the action path see the current world token(s). False is the ablation.
    use_world_input: bool = True
    # Weight of the world objective.
    lambda_world: float = 0.1
    # Shape of the world tokens. Set in training.
    tokens: TokenizerConfig = field(default_factory=TokenizerConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.use_world_input and not self.use_vision:
            raise ConfigError(
                "use_vision=false is the control without images, but use_world_input=true lets world tokens in; "
                "set --policy.use_world_input=false too"
            )

    @property
    def reads_world(self) -> bool:
        return self.use_world_input

    @property
    def needs_live_tokens(self) -> bool:
        return self.use_world_input

    @property
    def needs_tokens(self) -> bool:
        return True


@PreTrainedConfig.register_subclass("world_F")
@dataclass
class WorldFConfig(WorldModalityConfig, MemoryOptions):
    """A's action queries + gated cross-attention to the futures that a Prophet predicts."""

    # Weight of the Prophet's own objective; without it the Prophet learns through the memory only.
    lambda_world: float = 1.0
    # The predictor.
    prophet: ProphetConfig = field(default_factory=ProphetConfig)
    # What enters the memory, and the gate.
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    # With use_vision=false: the action path sees images through the memory only, so that it infers actions from
    # predicted futures (inverse dynamics). Without it, use_vision=false is the control without images.
    see_through_memory: bool = False

    def __post_init__(self) -> None:
        take_over_prophet(self)
        super().__post_init__()
        for part in ("state", "language"):
            if getattr(self.prophet, f"use_{part}") and not getattr(self, f"use_{part}"):
                other = "true" if self.prophet.init_from else "false"
                raise ConfigError(
                    f"prophet.use_{part}=true, but the policy does not read it (use_{part}=false); set "
                    f"--policy.{'' if self.prophet.init_from else 'prophet.'}use_{part}={other}"
                )
        if self.prophet.tells_state and not self.use_state:
            raise ConfigError(
                "prophet.tells_state=true, but the policy does not read the state (use_state=false); set "
                "--policy.use_state=true"
            )
        if self.memory.content == "states" and not self.prophet.tells_state:
            raise ConfigError(
                "memory.content='states', but the Prophet forecasts no states; start from one that does "
                "(wm-prophet --prophet.tells_state=true --state_loss_weight=1, --policy.prophet.init_from=FOLDER)"
            )
        sources = (self.memory.source, self.memory.rollout_source)
        is_blind = not self.memory.shows_seen and all(source.traits.is_blind for source in sources)
        if self.see_through_memory and (self.use_vision or is_blind):
            wrong = "use_vision=true" if self.use_vision else f"memory.source={self.memory.source.value!r}"
            raise ConfigError(
                f"see_through_memory=true leaves the memory as the only way in for images, but {wrong}; set "
                f"{'--policy.use_vision=false' if self.use_vision else '--policy.memory.source=pred'}"
            )
        if not (self.use_vision or self.see_through_memory or is_blind):
            raise ConfigError(
                f"use_vision=false is the control without images, but memory.source={self.memory.source.value!r} lets "
                "vision in through the memory; use --policy.memory.source=zero, or --policy.type=world_A. To let it "
                "see through the memory only: --policy.see_through_memory=true"
            )

    @property
    def encodes_frames(self) -> bool:
        return self.use_vision or self.see_through_memory

    @property
    def prophet_width(self) -> int:
        """Width of the Prophet: its own, or half the trunk's (a full-width one costs a third of a training step)."""
        return self.prophet.d_model or self.d_model // 2

    @property
    def reads_world(self) -> bool:
        return self.memory.shows_seen or not self.memory.rollout_source.traits.is_blind
