"""Tiny checkpoints as lerobot-train leaves them, and runs of `wm-intervene` on them."""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig

from lerobot_policy_world_modality.intervention.cli import InterveneConfig, intervene
from tests.plugin.helpers import build, open_gates
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.prophet.network import Prophet

# Episodes of the tiny dataset, which alternate between its two tasks: 12, 17, 14 and 20 frames.
TRAINED, HELD_OUT = [0], [1, 2, 3]


def save_checkpoint(folder: Path, tiny, policy, processors, episodes=TRAINED, eval_split: float = 0.0) -> Path:
    """Write what lerobot-train writes: policy, processors, and the config of the run."""
    policy.save_pretrained(folder)
    for processor in processors:
        processor.save_pretrained(folder)
    dataset = DatasetConfig(tiny.source_repo_id, root=str(tiny.source_root), episodes=episodes, eval_split=eval_split)
    TrainPipelineConfig(dataset=dataset, policy=policy.config, seed=7)._save_pretrained(folder)
    return folder


def stir(policy, gate: float) -> None:
    """Set all gates, give the Prophet something else to say than "as now", and let the order of its steps count."""
    open_gates(policy, gate)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        for module in policy.modules():
            if isinstance(module, Prophet):
                module.head.weight.normal_(std=0.3)
            if isinstance(module, GatedCrossAttention):
                module.position.normal_()


def make_checkpoint(folder: Path, tiny, policy_type: str = "world_F", gate: float = 0.5, **options) -> Path:
    """A checkpoint of a world_* type."""
    options = {"use_language": False} | options
    policy, _, processors = build(tiny, policy_type, **options)
    stir(policy, gate)
    return save_checkpoint(folder, tiny, policy, processors)


def options_for(checkpoint: Path, output: Path, **options) -> InterveneConfig:
    """The options of a run, with few resamples."""
    cfg = InterveneConfig(output_dir=str(output), **{"n_bootstrap": 200, "batch_size": 16} | options)
    cfg.policy = PreTrainedConfig.from_pretrained(checkpoint)
    cfg.policy.pretrained_path = checkpoint
    return cfg


def run(checkpoint: Path, output: Path, **options) -> dict:
    """Run `wm-intervene` in this process."""
    return intervene(options_for(checkpoint, output, **options))
