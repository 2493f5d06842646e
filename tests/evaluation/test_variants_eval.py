"""`wm-eval` runs a world variant closed loop in a memory task, its past changed by arms."""

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors

from lerobot_policy_world_modality.evaluation.evaluate import evaluate
from tests.evaluation.helpers import CAMERA, SIZE, options
from tests.plugin.helpers import open_gates
from wm_tools.doctor.tiny_hosts import tiny_host
from world_modality_core.configs import MemoryConfig, PastConfig
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policies") / "act_world" / "pretrained_model"
    config = PreTrainedConfig.get_choice_class("act_world")(
        **tiny_host("act", folder), device="cpu", push_to_hub=False, n_future_steps=0,
        memory=MemoryConfig(past=PastConfig(n_frames=6, stride=4)),
    )  # fmt: skip
    config.input_features = {
        CAMERA: PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (4,))}
    spec = EncoderSpec(family="efficientnet_lite0", cameras=[CAMERA], height_px=SIZE, width_px=SIZE)
    config.encoder = make_world_encoder(spec).spec
    torch.manual_seed(0)
    policy = get_policy_class("act_world")(config).eval()
    open_gates(policy, 2.0)
    stats = {CAMERA: {"mean": torch.full((3, 1, 1), 0.4), "std": torch.full((3, 1, 1), 0.2)}}
    for part in (policy, *make_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(folder)
    return folder


def test_arms_of_the_past_act_otherwise_in_the_same_scenes(checkpoint, tmp_path):
    arms = "intact,gate_closed,past_shuffle,past_reversed"
    rows = evaluate(options(checkpoint, tmp_path, arms=arms, task="recall-highlight", episode_length=45))
    assert len(rows) == 4 * 3 and set(rows["task"]) == {"recall-highlight"} and set(rows["tier"]) == {"memory"}
    hashes = rows.pivot(index="seed", columns="arm", values="init_hash")
    assert (hashes.nunique(axis=1) == 1).all() and hashes["intact"].nunique() == 3
    gates = rows.groupby("arm")["gate"].mean()
    assert gates["gate_closed"] == 0 and gates["intact"] == pytest.approx(gates["past_shuffle"])
    entropy = rows.pivot(index="seed", columns="arm", values="attention_entropy")
    for arm in ("past_shuffle", "past_reversed"):
        assert (entropy[arm] != entropy["intact"]).all(), arm


def test_arms_on_a_forecast_that_is_not_there_are_refused(checkpoint, tmp_path):
    with pytest.raises(
        ConfigError, match="no forecast that zero could change; its arms are intact, gate_closed, past_"
    ):
        evaluate(options(checkpoint, tmp_path, arms="intact,zero"))
