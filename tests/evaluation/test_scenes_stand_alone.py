"""What a scene sees and draws depends on the scene alone: not on its batch, the arm before it, or when it was run."""

import json
from collections import defaultdict

import pandas as pd
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config, make_pre_post_processors

from lerobot_policy_world_modality.evaluation import evaluate as module
from lerobot_policy_world_modality.evaluation.evaluate import batches, evaluate
from lerobot_policy_world_modality.policies.shared.host import host_of
from tests.evaluation import helpers
from tests.evaluation.dots import SIZE
from tests.evaluation.test_what_arms_read import Witness, options, sorted_results
from tests.plugin import qwen_helpers
from tests.plugin.helpers import open_gates
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA, make_smolvlm
from world_modality_core.configs import MemoryConfig
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError

FEATURES = {
    "input_features": {
        helpers.CAMERA: PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (4,))},
}
VQBET = {
    "n_obs_steps": 2, "n_action_pred_token": 2, "action_chunk_size": 2, "crop_shape": None, "gpt_n_layer": 1,
    "gpt_n_head": 2, "gpt_hidden_dim": 32, "gpt_output_dim": 32, "gpt_input_dim": 32, "vqvae_enc_hidden_dim": 16,
    "vqvae_embedding_dim": 16, "pretrained_backbone_weights": None, "use_group_norm": True, "device": "cpu",
    "push_to_hub": False,
}  # fmt: skip


def make_checkpoint(folder, policy_type):
    """A small policy with random weights that acts from images of 32 px."""
    if policy_type == "vqbet":
        config = make_policy_config("vqbet", **FEATURES, **VQBET)
    elif policy_type == "qwen_world_fplus":
        config = qwen_helpers.make_config(make_qwen(folder / "vlm", "qwen3_vl"), weights="random", **FEATURES)
        config.head.kind, config.head.n_heads = "flow", 2
    else:
        vlm = make_smolvlm(folder / "vlm")
        config = make_policy_config(policy_type, vlm_model_name=str(vlm), **FEATURES, **TINY_SMOLVLA)
    if hasattr(config, "encoder"):
        spec = EncoderSpec(family="efficientnet_lite0", cameras=[helpers.CAMERA], height_px=SIZE, width_px=SIZE)
        config.encoder = make_world_encoder(spec).spec
    torch.manual_seed(0)
    policy = get_policy_class(policy_type)(config)
    open_gates(policy)
    policy.save_pretrained(folder / "pretrained_model")
    for processor in make_pre_post_processors(config):
        processor.save_pretrained(folder / "pretrained_model")
    return folder / "pretrained_model"


@pytest.fixture
def noises(monkeypatch):
    """{(task, seed): [noise of each step]} of what policies are given; of one arm after the other, a scene's alike."""
    given: dict = defaultdict(list)
    start, make_policy = module.PinnedPolicy.start, module.make_policy

    def note_start(pinned, task, seeds):
        given["running"] = [(task, seed) for seed in seeds]
        for key in given["running"]:
            given[key] = []
        start(pinned, task, seeds)

    def make_watched(**kwargs):
        policy = make_policy(**kwargs)
        select = policy.select_action

        def select_action(batch, noise=None):
            for i, key in enumerate(given["running"]):
                given[key].append(noise[i])
            return select(batch, noise=noise)

        policy.select_action = select_action
        return policy

    monkeypatch.setattr(module.PinnedPolicy, "start", note_start)
    monkeypatch.setattr(module, "make_policy", make_watched)
    return given


@pytest.mark.parametrize("policy_type", ["smolvla", "smolvla_world", "qwen_world_fplus"])
def test_noise_belongs_to_the_scene(policy_type, tmp_path, noises):
    checkpoint = make_checkpoint(tmp_path, policy_type)
    runs, rows = {}, {}
    arms = ["intact"] if policy_type == "smolvla" else ["intact", "zero"]
    for name, commands in {
        "by two": [{"n_episodes": 4, "batch_size": 2}],
        "one by one": [{"n_episodes": 4, "batch_size": 1}],
        "all at once": [{"n_episodes": 4, "batch_size": 4}],
        "more asked for, by three": [{"n_episodes": 1, "batch_size": 1}, {"n_episodes": 4, "batch_size": 3}],
    }.items():
        runs[name] = {}
        for changed in commands:
            noises.clear()
            folder = tmp_path / name
            rows[name] = evaluate(options(checkpoint, folder, arms, task="dark", **changed))
            runs[name] |= {key: torch.stack(noise) for key, noise in noises.items() if key != "running"}
        info = json.loads((folder / "eval.json").read_text())
        assert info["noise"] == list(runs[name]["dark", 100].shape[1:]) and not info["depends_on_batch"]
    expected = runs["by two"]
    for name, given in runs.items():
        for key in [("dark", seed) for seed in range(100, 104)]:
            n = min(len(given[key]), len(expected[key]))  # an episode's batch may end later
            assert torch.equal(given[key][:n], expected[key][:n]), (name, key)
    # Each scene has its own, and each step of it.
    first = torch.stack([expected["dark", seed][step] for seed in range(100, 104) for step in (0, 2)]).flatten(1)
    assert torch.pdist(first).min() > 1 and abs(first.std() - 1) < 0.2
    # The same up to last bits, which depend on the size of a batch: whether the noise that is given is what is used.
    columns = ["arm", "seed", "steps", "success"]
    for name in rows:
        pd.testing.assert_frame_equal(rows[name][columns], rows["by two"][columns], obj=name)
        pd.testing.assert_series_equal(rows[name]["sum_reward"], rows["by two"]["sum_reward"], rtol=1e-4, obj=name)
    assert rows["by two"]["sum_reward"].nunique() > 4 * len(arms) - 1


def test_batches_hold_the_same_scenes_whatever_is_left_to_run():
    assert list(batches(100, 2, [100, 101, 102])) == [[100, 101], [102, 103]]
    assert list(batches(100, 2, [103, 104])) == [[102, 103], [104, 105]]
    assert list(batches(7, 3, [9, 15])) == [[7, 8, 9], [13, 14, 15]]


def check_grows_as_if_run_at_once(checkpoint, tmp_path, arms=("intact",)):
    """One episode after the other, in a folder that was asked for more: the rows of a run without a stop."""
    whole = evaluate(options(checkpoint, tmp_path / "whole", arms, task="dark", n_episodes=5))
    for n in (2, 3, 5):
        grown = evaluate(options(checkpoint, tmp_path / "grown", arms, task="dark", n_episodes=n))
    pd.testing.assert_frame_equal(sorted_results(grown), sorted_results(whole))
    assert json.loads((tmp_path / "grown/eval.json").read_text())["depends_on_batch"]
    with pytest.raises(ConfigError, match="batch_size: saved 2, asked for 3"):
        evaluate(options(checkpoint, tmp_path / "grown", arms, task="dark", n_episodes=6, batch_size=3))
    return whole


def test_a_policy_that_draws_for_its_whole_batch_keeps_its_batches(tmp_path):
    """LeRobot's VQ-BeT draws from torch's global generator, and `select_action` takes no noise."""
    checkpoint = make_checkpoint(tmp_path, "vqbet")
    rows = check_grows_as_if_run_at_once(checkpoint, tmp_path)
    other = evaluate(options(checkpoint, tmp_path / "other", ["intact"], task="dark", n_episodes=5, batch_size=1))
    assert not rows["sum_reward"].equals(other["sum_reward"])  # else nothing was drawn


def test_memories_exchanged_within_a_batch_keep_their_batches(tmp_path):
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model", memory=MemoryConfig(source="shuffle"))
    check_grows_as_if_run_at_once(checkpoint, tmp_path)
    with pytest.raises(ConfigError, match="eval.batch_size=1: this checkpoint's memory is 'shuffle' in rollouts"):
        evaluate(options(checkpoint, tmp_path / "alone", ["intact"], batch_size=1))


def test_a_policy_that_draws_nothing_may_go_on_in_other_batches(tmp_path):
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model")
    evaluate(options(checkpoint, tmp_path / "out", ["intact"], task="dark", n_episodes=2))
    rows = evaluate(options(checkpoint, tmp_path / "out", ["intact"], task="dark", n_episodes=4, batch_size=3))
    info = json.loads((tmp_path / "out/eval.json").read_text())
    assert len(rows) == 4 and not info["depends_on_batch"] and info["noise"] is None and info["batch_size"] == 3


def test_a_random_memory_is_drawn_by_the_scene(tmp_path, monkeypatch):
    """A checkpoint that was trained with random memories: of the policy's own draws each would go by its place."""
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model", memory=MemoryConfig(source="random"))
    read = {}
    for size in (1, 2, 3):
        witness = Witness(monkeypatch)
        evaluate(options(checkpoint, tmp_path / str(size), ["intact"], task="dark", batch_size=size))
        read[size] = {seed: witness.read["intact", "dark", seed][:3] for seed in (100, 101, 102)}
        monkeypatch.undo()
    memories = torch.stack([memory for plans in read[1].values() for memory in plans])  # (9, m, d)
    assert torch.pdist(memories.flatten(1)).min() > 1
    torch.testing.assert_close(memories.norm(dim=-1), torch.full(memories.shape[:2], memories.shape[-1] ** 0.5))
    for size in (2, 3):
        torch.testing.assert_close(read[size], read[1])


def test_the_bank_stays_as_it_was_when_more_episodes_are_asked_for(tmp_path, monkeypatch):
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model")
    arms = ["intact", "shuffle", "wrong_task"]
    witness = Witness(monkeypatch)
    witness.evaluate(options(checkpoint, tmp_path / "out", arms))
    rows = witness.evaluate(options(checkpoint, tmp_path / "out", arms, n_episodes=6))
    assert len(rows) == 36 and len(list((tmp_path / "out").glob("memory_bank/*/*"))) == 6
    witness.check(rows, tmp_path / "out")  # the scenes are those of three scenes, of the later ones too


def test_a_bank_that_is_not_full_lends_nothing(tmp_path, monkeypatch):
    """A run of five scenes was stopped after the first batch of intact; then three are asked for."""
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model")
    stop_after_one_batch(monkeypatch, options(checkpoint, tmp_path / "out", ["intact", "shuffle"], n_episodes=5))
    for arms in (["intact", "shuffle"], ["shuffle"]):
        with pytest.raises(ConfigError, match="in the first 5 scenes of each task, .* --eval.n_episodes=5 or more"):
            evaluate(options(checkpoint, tmp_path / "out", arms, n_episodes=3))
    assert len(evaluate(options(checkpoint, tmp_path / "out", ["intact", "shuffle"], n_episodes=5))) == 20


def stop_after_one_batch(monkeypatch, cfg):
    keep, blocks = module.Evaluation._keep, []

    def stop(*args, **kwargs):
        if blocks:
            raise KeyboardInterrupt
        blocks.append(keep(*args, **kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(module.Evaluation, "_keep", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(cfg)


def test_intact_keeps_its_memories_also_where_this_command_reads_none(tmp_path, monkeypatch):
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model")
    stop_after_one_batch(monkeypatch, options(checkpoint, tmp_path / "out", ["intact", "shuffle"]))
    evaluate(options(checkpoint, tmp_path / "out", ["intact"]))
    witness = Witness(monkeypatch)
    witness.evaluate(options(checkpoint, tmp_path / "out", ["shuffle"]))
    assert len(list((tmp_path / "out").glob("memory_bank/*/*"))) == 6


@pytest.mark.parametrize("is_stopped", [False, True])
def test_nothing_of_an_arm_stays_on_the_policy(tmp_path, monkeypatch, is_stopped):
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model")
    policies, make_policy, rollout = [], module.make_policy, module.rollout

    def make_noted(**kwargs):
        policies.append(make_policy(**kwargs))
        return policies[-1]

    def act(env, policy, **kwargs):
        is_closed = [reader.gate.is_closed for reader in host_of(policies[0]).readers.values()]
        assert is_closed == [True] and policies[0].latent_reader.intervention.name == "gate_closed"
        if is_stopped:
            raise KeyboardInterrupt
        return rollout(env, policy, **kwargs)

    monkeypatch.setattr(module, "make_policy", make_noted)
    monkeypatch.setattr(module, "rollout", act)
    try:
        evaluate(options(checkpoint, tmp_path / "out", ["gate_closed"]))
    except KeyboardInterrupt:
        assert is_stopped
    assert policies[0].latent_reader.intervention is None
    assert [reader.gate.is_closed for reader in host_of(policies[0]).readers.values()] == [False]


def test_no_clock_decides_what_a_policy_sees(tmp_path):
    cfg = options(make_checkpoint(tmp_path, "smolvla_world"), tmp_path / "out", ["intact"])
    cfg.policy.frame_clock = "wall"
    with pytest.raises(ConfigError, match="policy.frame_clock='wall'.*--policy.frame_clock=calls"):
        evaluate(cfg)


def test_cudnn_may_not_choose_another_kernel_each_time(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    checkpoint = helpers.make_checkpoint(tmp_path / "F/pretrained_model")
    evaluate(options(checkpoint, tmp_path / "out", ["intact"], n_episodes=1, task="dark"))
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
