"""Tiny smolvla_world policies of the real classes, on the tiny companion."""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies import make_policy, make_policy_config, make_pre_post_processors

import lerobot_policy_world_modality  # noqa: F401  registers the types
from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import FusionConfig
from tests.device import DEVICE
from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA

FUSIONS = ["f1", "f2", "f3a", "f3b"]
WORLD = {"n_history_steps": 3, "n_future_steps": 2}


def fusion(*names: str) -> FusionConfig:
    """The named fusions on, the others off."""
    return FusionConfig(**{name: name in names for name in FUSIONS})


def make_config(vlm, policy_type: str = "smolvla_world", companion_root=None, **options):
    """A tiny config; smolvla_world's own options only for that type."""
    world = WORLD if policy_type == "smolvla_world" else {}
    config = make_policy_config(
        policy_type, vlm_model_name=str(vlm), **TINY_SMOLVLA | {"device": DEVICE} | world | options
    )
    if companion_root is not None and policy_type == "smolvla_world":
        config.companion.root = str(companion_root)
    return config


def build(tiny_companion, vlm, policy_type: str = "smolvla_world", seed: int = 0, **options):
    """A policy in training mode, its dataset and its processors, as lerobot-train builds them."""
    config = make_config(vlm, policy_type, tiny_companion.companion_root, **options)
    meta = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root).meta
    delta = {"action": [i / meta.fps for i in config.action_delta_indices]}
    dataset = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root, delta_timestamps=delta)
    torch.manual_seed(seed)
    policy = make_policy(config, ds_meta=dataset.meta)
    processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    return policy.train(), dataset, processors


def make_smolvla_checkpoint(
    folder: Path, vlm_folder: Path, dataset_meta: LeRobotDatasetMetadata, seed: int = 0, **options
) -> Path:
    """Write a checkpoint of LeRobot's own SmolVLA as `lerobot-train` does: config, weights and both processors.

    Args:
        folder: Where to write: what a user gives as `--policy.path` of SmolVLA, or as our `--policy.init_from`.
        vlm_folder: The backbone, of `make_smolvlm`.
        dataset_meta: Dataset whose features and statistics the checkpoint is made for.
        seed: Seed of the weights.
        options: Fields of `SmolVLAConfig`, over `TINY_SMOLVLA`.

    Returns:
        The folder.
    """
    config = make_policy_config("smolvla", vlm_model_name=str(vlm_folder), **TINY_SMOLVLA | options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = make_policy(config, ds_meta=dataset_meta)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=dataset_meta.stats):
        processor.save_pretrained(folder)
    return Path(folder)
