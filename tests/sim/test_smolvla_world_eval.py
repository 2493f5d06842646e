"""`lerobot-eval` runs a smolvla_world checkpoint in Meta-World, live encoder, Prophet and memory included."""

import json
import sys

import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config, make_pre_post_processors

import lerobot_policy_world_modality  # noqa: F401  registers the types
from tests import fork_server
from tests.plugin.helpers import open_gates
from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA, make_smolvlm
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec

pytestmark = pytest.mark.sim


def test_lerobot_eval_runs_a_checkpoint(tmp_path):
    config = make_policy_config(
        "smolvla_world",
        vlm_model_name=str(make_smolvlm(tmp_path / "vlm")),
        input_features={
            "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
        **TINY_SMOLVLA,
    )
    spec = EncoderSpec(family="efficientnet_lite0", cameras=["observation.image"], height_px=64, width_px=64)
    config.encoder = make_world_encoder(spec).spec
    policy = get_policy_class("smolvla_world")(config)
    open_gates(policy)
    checkpoint = tmp_path / "checkpoint"
    policy.save_pretrained(checkpoint)
    for processor in make_pre_post_processors(config):
        processor.save_pretrained(checkpoint)
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_eval", f"--policy.path={checkpoint}", "--policy.device=cpu",
        "--env.type=metaworld_light", "--env.task=push-v3", "--env.episode_length=12", "--env.observation_height=64",
        "--env.observation_width=64", "--eval.n_episodes=2", "--eval.batch_size=2", "--seed=1",
        f"--output_dir={tmp_path / 'eval'}",
    ]  # fmt: skip
    done = fork_server.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    info = json.loads((tmp_path / "eval" / "eval_info.json").read_text())
    assert info["overall"]["n_episodes"] == 2
