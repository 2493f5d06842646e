"""What a policy's training needs of a dataset, held against the dataset before anything is built."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
from lerobot.configs import FeatureType, NormalizationMode, PreTrainedConfig, parser
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION, OBS_STATE

from lerobot_policy_world_modality.policies.shared.vectors import check_vectors, constant_entries, entry_names
from world_modality_core.io.dataset_files import first_bad_frame
from world_modality_core.io.errors import ConfigError


def check_training_data(config: PreTrainedConfig, dataset_meta: LeRobotDatasetMetadata, reads_task: bool) -> None:
    """Refuse what would stop a training in its midst, or let it learn from something else than was recorded.

    Args:
        config: The policy's config; entries of the state that never move are noted in it.
        dataset_meta: Metadata of the dataset.
        reads_task: Whether the policy is told the task in words.

    Raises:
        ConfigError: naming the feature, the task or the frame.
    """
    check_vectors(config)
    for key, kind, feature in (
        (OBS_STATE, "STATE", config.robot_state_feature),
        (ACTION, "ACTION", config.action_feature),
    ):
        if feature is not None and config.normalization_mapping.get(kind) is not NormalizationMode.IDENTITY:
            _check_statistics(dataset_meta, key)
    if reads_task:
        check_tasks(dataset_meta)
    config.constant_state = _constant_state(config, dataset_meta)
    # ACT's and diffusion's own networks read an environment's state; ours don't.
    read = {FeatureType.VISUAL} | ({FeatureType.ENV} if hasattr(config, "world_base") else set())
    other = {key for key, feature in (config.input_features or {}).items() if feature.type not in read}
    if other := sorted(other - {OBS_STATE}):
        logging.warning(f"{config.type} reads {OBS_STATE} and images; the dataset's {', '.join(other)} enter nothing")
    if parser.parse_arg("dataset.image_transforms.enable") == "true":
        logging.warning(
            "dataset.image_transforms.enable=true changes images that LeRobot decodes, not the world's latents: those "
            "were made of the recorded images"
        )


def _constant_state(config: PreTrainedConfig, dataset_meta: LeRobotDatasetMetadata) -> list[int]:
    stats = (dataset_meta.stats or {}).get(OBS_STATE)
    if config.robot_state_feature is None or not stats or not config.clamp_constant_state:
        return []
    constant, feature = constant_entries(stats), dataset_meta.features[OBS_STATE]
    if constant:
        names = entry_names(feature.get("names"), feature["shape"][0])
        logging.warning(
            f"{len(constant)} of {feature['shape'][0]} entries of {OBS_STATE} never move in {dataset_meta.repo_id!r}: "
            f"{', '.join(names[i] for i in constant)}. They enter as 0, in rollouts too "
            "(--policy.clamp_constant_state=false lets them in)"
        )
    return constant


def _check_statistics(dataset_meta: LeRobotDatasetMetadata, key: str) -> None:
    stats = (dataset_meta.stats or {}).get(key)
    if not stats:
        raise ConfigError(
            f"{dataset_meta.repo_id!r} ({dataset_meta.root}) has no statistics of {key} in meta/stats.json, by which "
            "it would be normalised; write them with lerobot-edit-dataset --operation.type=recompute_stats"
        )
    if all(np.isfinite(stats[name]).all() for name in ("mean", "std", "min", "max") if name in stats):
        return
    bad = first_bad_frame(Path(dataset_meta.root), key, dataset_meta.features[key]["shape"])
    raise ConfigError(
        f"{dataset_meta.repo_id!r} ({dataset_meta.root}): {bad or f'the statistics of {key} are not finite'}; mend the "
        "values, or delete the episode with lerobot-edit-dataset, and recompute the statistics (recompute_stats)"
    )


def check_tasks(dataset_meta: LeRobotDatasetMetadata) -> None:
    """Refuse a dataset with a task that has no text.

    Raises:
        ConfigError: naming the episodes, or the task where no episode names it.
    """
    remedy = (
        "and the policy is told what to do in words. Give it one with lerobot-edit-dataset "
        "(--operation.type=modify_tasks); world_A to world_F can also train with --policy.use_language=false"
    )
    lists = dataset_meta.episodes["tasks"]
    blank = [e for e, tasks in enumerate(lists) if not all(str(task).strip() for task in tasks or [""])]
    if blank:
        raise ConfigError(
            f"{dataset_meta.repo_id!r}: {len(blank)} of {dataset_meta.total_episodes} episodes have an empty task, the "
            f"first is episode {blank[0]}, {remedy}"
        )
    numbers = [int(row.task_index) for task, row in dataset_meta.tasks.iterrows() if not str(task).strip()]
    if numbers:
        raise ConfigError(f"task_index {numbers} of {dataset_meta.repo_id!r} has no text, {remedy}")
