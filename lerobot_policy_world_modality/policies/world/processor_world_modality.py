"""Processors of world_A to world_F: LeRobot's default pipelines (rename, batch, device, normalise)."""

from __future__ import annotations

from typing import Any

from lerobot.processor import PolicyAction, PolicyProcessorPipeline, make_default_pre_post_processors
from torch import Tensor

from lerobot_policy_world_modality.policies.world.configuration_world_modality import WorldModalityConfig

Pipelines = tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]], PolicyProcessorPipeline[PolicyAction, PolicyAction]
]


def make_world_A_pre_post_processors(  # noqa: N802  LeRobot builds the name from the policy type
    config: WorldModalityConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> Pipelines:
    """Build the pre- and post-processor of a world_A to world_F policy.

    Args:
        config: The policy's config.
        dataset_stats: Statistics of the dataset, for normalisation.

    Returns:
        Preprocessor and postprocessor.
    """
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)


make_world_B_pre_post_processors = make_world_A_pre_post_processors  # noqa: N816
make_world_B_cont_pre_post_processors = make_world_A_pre_post_processors  # noqa: N816
make_world_C_pre_post_processors = make_world_A_pre_post_processors  # noqa: N816
make_world_F_pre_post_processors = make_world_A_pre_post_processors  # noqa: N816
