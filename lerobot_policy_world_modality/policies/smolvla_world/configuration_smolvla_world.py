"""Configuration of smolvla_world: LeRobot's SmolVLA, and a world memory that its action path reads."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar

from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_policy_world_modality.policies.shared.world_options import Arithmetic, check_amp
from lerobot_policy_world_modality.policies.shared.world_variant import WorldVariantConfig, world_variant
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import as_folder
from world_modality_core.io.first_look import check_weights


@dataclass
class FusionConfig:
    """Where the action path reads the memory. Any combination; none at all is the baseline E0."""

    # F1: at the expert's output states, before `action_out_proj`.
    f1: bool = True
    # F2: at the expert's input embeddings.
    f2: bool = False
    # F3a: memory tokens in the prefix. Runs the language model and the expert a second time.
    f3a: bool = False
    # F3b: the prefix (images, prompt, state) cross-attends to the memory.
    f3b: bool = False

    @property
    def names(self) -> list[str]:
        """The fusions that are on."""
        return [f.name for f in fields(self) if getattr(self, f.name)]


# SmolVLA calls the parts of a decoder layer, never the layer itself.
@world_variant(
    layer="model.action_out_proj", extra="smolvla", wraps=("SmolVLMEncoderLayer", "LlamaMLP"), reads_task=True
)
class SmolVLAWorldConfig(WorldVariantConfig, SmolVLAConfig):
    """SmolVLA's config, and the world memory's."""

    keeps_frames: ClassVar[bool] = False  # SmolVLA's processors leave images as they are

    # Where the memory is read.
    fusion: FusionConfig = field(default_factory=FusionConfig)
    # Arithmetic of training and rollouts: "float32", "bfloat16" (autocast; trained weights stay fp32), or None for what
    # the launcher says.
    dtype: Arithmetic | None = None

    def check_world(self) -> None:
        self.vlm_model_name = as_folder(self.vlm_model_name)
        super().check_world()
        check_amp(self)
        if self.fusion.f3a and self.memory.entry == "modulated":
            raise ConfigError(
                "fusion.f3a=true puts memory tokens into the prefix, and memory.entry='modulated' reads them by "
                "queries; use --policy.memory.entry=gated, or --policy.fusion.f3a=false"
            )

    def validate_features(self) -> None:
        check_weights("vlm_model_name", self.vlm_model_name)  # SmolVLA loads it next
        super().validate_features()

    @property
    def rollout_dtype(self) -> str | None:
        return self.dtype

    @property
    def reads_memory(self) -> bool:
        return bool(self.fusion.names)
