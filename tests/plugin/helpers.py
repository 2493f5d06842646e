"""Tiny policies on the tiny companion, shared by the policy tests."""

from __future__ import annotations

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from torch.utils.data import default_collate

from world_modality_core.memory.gated_attention import Gate

TYPES = ["world_A", "world_B", "world_B_cont", "world_C", "world_F"]
SMALL = {
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "chunk_size": 4,
    "n_action_steps": 2,
    "n_obs_steps": 3,
    "n_future_steps": 2,
    "dropout": 0.0,
    "device": "cpu",
    "push_to_hub": False,
}


def make_config(policy_type: str, companion_root=None, **options):
    """A small config of a type; `companion__root`-like names set nested fields."""
    config = PreTrainedConfig.get_choice_class(policy_type)(**SMALL | options)
    if companion_root is not None:
        config.companion.root = str(companion_root)
    return config


def open_dataset(tiny_companion, config) -> LeRobotDataset:
    """The tiny source dataset with the action windows of a config."""
    repo_id, root, _ = tiny_companion
    meta = LeRobotDataset(repo_id, root=root).meta
    delta = {"action": [i / meta.fps for i in config.action_delta_indices]}
    return LeRobotDataset(repo_id, root=root, delta_timestamps=delta)


def build(tiny_companion, policy_type: str, seed: int = 0, **options):
    """A policy in training mode, its dataset and its processors, as lerobot-train builds them."""
    config = make_config(policy_type, tiny_companion[2], **options)
    dataset = open_dataset(tiny_companion, config)
    torch.manual_seed(seed)
    policy = make_policy(config, ds_meta=dataset.meta)
    processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    return policy.train(), dataset, processors


def batch_of(dataset, preprocessor, indices) -> dict:
    """A preprocessed batch of some frames."""
    return preprocessor(default_collate([dataset[i] for i in indices]))


def live_batch(dataset, preprocessor, indices) -> dict:
    """What an environment would show at some frames: images, state and task, no index."""
    items = [dataset[i] for i in indices]
    keys = [key for key in items[0] if key.startswith("observation.") and not key.endswith("_is_pad")]
    batch = {key: torch.stack([item[key] for item in items]) for key in keys}
    return preprocessor(batch | {"task": [item["task"] for item in items]})


def open_gates(policy, value: float = 0.5) -> None:
    """Open all gates, so that what they let through can be seen."""
    for module in policy.modules():
        if isinstance(module, Gate):
            torch.nn.init.constant_(module.value, value)
