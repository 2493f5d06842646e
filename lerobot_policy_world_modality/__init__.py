"""World Modality VLA: LeRobot policies with a world memory.

LeRobot imports this package to discover it (its name starts with `lerobot_policy_`). An import error here would only be
logged, and heavy imports would slow every LeRobot command down: register configurations, and nothing else.
"""

from lerobot_policy_world_modality.envs.configuration_metaworld_light import MetaworldLightEnvConfig
from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import QwenWorldFPlusConfig
from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import SmolVLAWorldConfig
from lerobot_policy_world_modality.policies.variants.built_in import (
    ACTWorldConfig,
    DiffusionWorldConfig,
    MultiTaskDiTWorldConfig,
    PI0WorldConfig,
    PI05WorldConfig,
    XVLAWorldConfig,
)
from lerobot_policy_world_modality.policies.world.configuration_world_modality import (
    WorldAConfig,
    WorldBConfig,
    WorldBContConfig,
    WorldCConfig,
    WorldFConfig,
)

__all__ = [
    "ACTWorldConfig",
    "DiffusionWorldConfig",
    "MetaworldLightEnvConfig",
    "MultiTaskDiTWorldConfig",
    "PI05WorldConfig",
    "PI0WorldConfig",
    "QwenWorldFPlusConfig",
    "SmolVLAWorldConfig",
    "WorldAConfig",
    "WorldBConfig",
    "WorldBContConfig",
    "WorldCConfig",
    "WorldFConfig",
    "XVLAWorldConfig",
]
