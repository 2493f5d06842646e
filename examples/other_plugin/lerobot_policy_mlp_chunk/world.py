"""mlp_chunk_world: all that a world memory takes."""

from lerobot_policy_mlp_chunk.configuration_mlp_chunk import MLPChunkConfig
from lerobot_policy_world_modality.policies.shared.world_variant import (
    WorldVariantConfig,
    variant_member,
    world_variant,
)

__getattr__ = variant_member  # LeRobot asks this module for MLPChunkWorldPolicy and its processors


@world_variant(layer="head")
class MLPChunkWorldConfig(WorldVariantConfig, MLPChunkConfig):
    """The MLP, whose head reads a world memory."""
