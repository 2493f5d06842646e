"""Tiny qwen_world_fplus policies of the real classes, on the tiny companion."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_policy_config, make_pre_post_processors

import lerobot_policy_world_modality  # noqa: F401  registers the types
from tests.device import DEVICE

TINY: dict[str, Any] = {
    "chunk_size": 4,
    "n_action_steps": 2,
    "n_history_steps": 3,
    "n_future_steps": 2,
    "max_pixels": 1024,
    "train_backbone": "full",
    "device": DEVICE,
    "push_to_hub": False,
}
# The seed's experiments, as far as they need no labels.
E0 = {"use_memory": False, "lambda_world": 0.0}


def make_config(vlm, companion_root=None, **options):
    """A tiny config."""
    config = make_policy_config("qwen_world_fplus", vlm_backbone=str(vlm), **TINY | options)
    if companion_root is not None:
        config.companion.root = str(companion_root)
    config.prophet.d_model = config.prophet.d_model or 32
    config.head.d_model = 32
    return config


def build(tiny_companion, vlm, seed: int = 0, config=None, **options):
    """A policy in training mode, its dataset and its processors, as lerobot-train builds them."""
    config = config or make_config(vlm, tiny_companion.companion_root, **options)
    meta = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root).meta
    delta = {"action": [i / meta.fps for i in config.action_delta_indices]}
    dataset = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root, delta_timestamps=delta)
    torch.manual_seed(seed)
    policy = make_policy(config, ds_meta=dataset.meta)
    processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    return policy.train(), dataset, processors


def step(policy, batch, seed: int = 1, **arguments):
    """Loss, logged values and gradients of one training step."""
    policy.train().zero_grad()
    torch.manual_seed(seed)
    loss, logged = policy.forward(dict(batch), **arguments)
    loss.sum().backward()
    return loss.detach(), dict(logged.items()), {name: p.grad for name, p in policy.named_parameters()}
