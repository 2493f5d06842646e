"""act_world, diffusion_world, multi_task_dit_world, pi0_world, pi05_world and xvla_world (docs/world_variants.md)."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from lerobot.optim.optimizers import OptimizerConfig, OptimizerParams, XVLAAdamWConfig
from lerobot.policies import (
    ACTConfig,
    DiffusionConfig,
    MultiTaskDiTConfig,
    PI0Config,
    PI05Config,
    XVLAConfig,
)

from lerobot_policy_world_modality.policies.shared.world_variant import (
    WorldVariantConfig,
    variant_member,
    world_variant,
)
from world_modality_core.io.errors import ConfigError

# LeRobot asks this module for the policies and processors of the configs below.
__getattr__ = variant_member


@world_variant(layer="model.action_head")
class ACTWorldConfig(WorldVariantConfig, ACTConfig):
    """LeRobot's ACT, whose action head reads a world memory."""


@world_variant(layer="diffusion.unet.final_conv.1", extra="diffusion")
class DiffusionWorldConfig(WorldVariantConfig, DiffusionConfig):
    """LeRobot's Diffusion Policy, whose U-Net reads a world memory before its last convolution."""


@world_variant(layer="noise_predictor.output_proj", extra="multi_task_dit", reads_task=True)
class MultiTaskDiTWorldConfig(WorldVariantConfig, MultiTaskDiTConfig):
    """LeRobot's multi-task DiT, whose noise predictor reads a world memory before its last layer."""


# PI0 and PI0.5 call the parts of a decoder layer, never the layer itself.
@world_variant(layer="model.action_out_proj", extra="pi", wraps=("SiglipEncoderLayer", "GemmaMLP"), reads_task=True)
class PI0WorldConfig(WorldVariantConfig, PI0Config):
    """LeRobot's PI0, whose action expert's output states read a world memory."""


@world_variant(layer="model.action_out_proj", extra="pi", wraps=("SiglipEncoderLayer", "GemmaMLP"), reads_task=True)
class PI05WorldConfig(WorldVariantConfig, PI05Config):
    """LeRobot's PI0.5, whose action expert's output states read a world memory."""

    def check_world(self) -> None:
        super().check_world()
        if self.prophet.use_language:
            raise ConfigError(
                "prophet.use_language=true: the prompts of pi05_world hold the robot's state, so that no two are "
                "alike; set --policy.prophet.use_language=false"
            )


@world_variant(layer="model.transformer.action_decoder", extra="xvla", wraps=("TransformerBlock",), reads_task=True)
class XVLAWorldConfig(WorldVariantConfig, XVLAConfig):
    """LeRobot's X-VLA, whose transformer's action states read a world memory."""

    def get_optimizer_preset(self) -> XVLAWorldAdamWConfig:
        preset = super().get_optimizer_preset()
        values = {each.name: getattr(preset, each.name) for each in fields(preset)}
        return XVLAWorldAdamWConfig(**values, gate_lr_factor=self.memory.gate_lr_factor)


@OptimizerConfig.register_subclass("xvla-world-adamw")
@dataclass
class XVLAWorldAdamWConfig(XVLAAdamWConfig):
    """X-VLA's optimiser, which tells parameters apart by their names, with a group for the gates."""

    # The gates' learning rate over the policy's.
    gate_lr_factor: float = 10.0

    def build(self, params: OptimizerParams) -> torch.optim.Optimizer:
        gates = {name: p for name, p in params.items() if ".gate." in name}
        optimizer = super().build({name: p for name, p in params.items() if name not in gates})
        lr = self.lr * self.gate_lr_factor
        optimizer.add_param_group({"params": [*gates.values()], "lr": lr, "weight_decay": 0.0, "name": "gate"})
        return optimizer
