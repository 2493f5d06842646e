"""Tiny `*_world` policies of LeRobot's real classes, and the plain ones beside them, on the tiny companion."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import make_policy, make_pre_post_processors

import lerobot_policy_world_modality  # noqa: F401  registers the types
from wm_tools.doctor.smolvlm_backbone import make_tokenizer
from wm_tools.doctor.tiny_hosts import tiny_host

NEEDS_DIFFUSERS = pytest.mark.skipif(not importlib.util.find_spec("diffusers"), reason="needs lerobot[diffusion]")
HOSTS = [
    "act",
    pytest.param("diffusion", marks=NEEDS_DIFFUSERS),
    pytest.param("multi_task_dit", marks=NEEDS_DIFFUSERS),
    "pi0",
    "pi05",
    "xvla",
]
WORLD = {"n_history_steps": 3, "n_future_steps": 2}
COMMON = {"device": "cpu", "push_to_hub": False}
_PI = {"image_resolution": (28, 28), "num_inference_steps": 2, "max_state_dim": 8, "max_action_dim": 8}
_PI |= {"chunk_size": 4, "n_action_steps": 2, "tokenizer_max_length": 48}


class Hosts:
    """Builds plain and world policies; backbones and tokenizers are written once.

    Args:
        folder: For backbones.
        tiny_companion: The shared dataset and companion.
        monkeypatch: PI0's sizes are constants of its module, and its tokenizer is in a gated repository.
    """

    def __init__(self, folder: Path, tiny_companion, monkeypatch: pytest.MonkeyPatch):
        self.folder, self.data, self.options = folder, tiny_companion, {}
        tokenizer = make_tokenizer()
        for name in ("pi0", "pi05"):
            module = importlib.import_module(f"lerobot.policies.{name}.modeling_{name}")
            sizes = module.GemmaConfig(width=32, depth=1, mlp_dim=32, num_heads=8, num_kv_heads=1, head_dim=4)
            monkeypatch.setattr(module, "get_gemma_config", lambda variant, sizes=sizes: sizes)
            monkeypatch.setattr(module, "PaliGemmaForConditionalGenerationWithPiGemma", _thin(module))
        monkeypatch.setattr(
            "transformers.AutoTokenizer.from_pretrained",
            lambda name, **kwargs: tokenizer if "paligemma" in name else _from_pretrained(name, **kwargs),
        )

    def build(self, policy_type: str, seed: int = 0, **options):
        """A policy in training mode, its dataset and its processors, as lerobot-train builds them."""
        plain = policy_type.removesuffix("_world")
        if plain not in self.options:
            self.options[plain] = _PI if plain.startswith("pi0") else tiny_host(plain, self.folder / plain)
        world = WORLD if policy_type.endswith("_world") else {}
        config_class = PreTrainedConfig.get_choice_class(policy_type)
        config = config_class(**COMMON | self.options[plain] | world | options)
        if world:
            config.companion.root = str(self.data.companion_root)
        meta = LeRobotDataset(self.data.source_repo_id, root=self.data.source_root).meta
        delta = resolve_delta_timestamps(config, meta)
        dataset = LeRobotDataset(self.data.source_repo_id, root=self.data.source_root, delta_timestamps=delta)
        torch.manual_seed(seed)
        policy = make_policy(config, ds_meta=meta)
        processors = make_pre_post_processors(config, dataset_stats=meta.stats, dataset_meta=meta)
        return policy.train(), dataset, processors


def _thin(module):
    real = module.PaliGemmaForConditionalGenerationWithPiGemma

    def make(config):
        config.text_config.vocab_size = 512
        config.image_token_index = 511
        vision = config.vision_config
        vision.hidden_size = vision.intermediate_size = vision.projection_dim = 32
        vision.num_hidden_layers, vision.num_attention_heads = 1, 2
        config.projection_dim = 32
        return real(config=config)

    return make


def _from_pretrained(name, **kwargs):
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(name, **kwargs)
