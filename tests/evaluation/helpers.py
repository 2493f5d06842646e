"""Tiny checkpoints that act in Meta-World, and options of `wm-eval`, shared by its tests."""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.configs.default import EvalConfig
from lerobot.policies import get_policy_class, make_pre_post_processors

from lerobot_policy_world_modality.envs.configuration_metaworld_light import MetaworldLightEnvConfig
from lerobot_policy_world_modality.evaluation.arms import ARMS, BANK_ARMS
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from tests.plugin.helpers import make_config, open_gates
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec

# Arms of a memory that holds no past; the others are tested in tests/plugin/test_memory_of_time.py.
FORECAST_ARMS = tuple(arm for arm in ARMS if not arm.startswith("past_"))
FORECAST_BANK_ARMS = tuple(arm for arm in BANK_ARMS if arm in FORECAST_ARMS)
CAMERA, SIZE = "observation.image", 32
# Forward and down: this closes the drawer of drawer-close-v3 in 20 to 30 steps, whatever the scene.
PUSH = [0.0, 0.3, -1.0, 0.0]


def make_policy_of(policy_type: str, gate: float = 1.0, **options):
    """A small policy with random weights (the Prophet's output included), open gates, and actions about `PUSH`."""
    config = make_config(
        policy_type,
        use_language=False,
        input_features={
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        **options,
    )
    spec = EncoderSpec(family="efficientnet_lite0", cameras=[CAMERA], height_px=SIZE, width_px=SIZE)
    config.encoder = make_world_encoder(spec).spec
    torch.manual_seed(0)
    policy = get_policy_class(policy_type)(config)
    open_gates(policy, gate)
    with torch.no_grad():
        for parameter in policy.prophet.parameters() if policy_type == "world_F" else ():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        policy.action_head[-1].bias.copy_(torch.tensor(PUSH))
    return policy.eval()


def make_checkpoint(folder: Path, policy_type: str = "world_F", **options) -> Path:
    """A checkpoint of such a policy, as LeRobot's trainer lays it out."""
    policy = make_policy_of(policy_type, **options)
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config):
        processor.save_pretrained(folder)
    return folder


def options(checkpoint: Path, output_dir: Path, **changed) -> WorldEvalConfig:
    """Options as the command line gives them: three scenes (by default of drawer-close-v3), two at a time."""
    policy = PreTrainedConfig.from_pretrained(checkpoint)
    policy.pretrained_path = checkpoint
    env = {"task": "drawer-close-v3", "episode_length": 40, "observation_height": SIZE, "observation_width": SIZE}
    evaluation = {"n_episodes": 3, "batch_size": 2, "use_async_envs": False}
    for name in list(changed):
        if name in env or name in ("camera_name", "max_parallel_tasks"):
            env[name] = changed.pop(name)
        elif name in evaluation or name == "recording":
            evaluation[name] = changed.pop(name)
    return WorldEvalConfig(
        env=changed.pop("env", None) or MetaworldLightEnvConfig(**env),
        eval=EvalConfig(**evaluation),
        policy=policy,
        output_dir=output_dir,
        seed=changed.pop("seed", 100),
        train_seed=changed.pop("train_seed", 0),
        **changed,
    )
