"""Each arm changes what it says and nothing else; and every arm's change reaches the actions."""

from dataclasses import replace

import pytest
import torch

from lerobot_policy_world_modality.evaluation.arms import MemoryArm
from lerobot_policy_world_modality.evaluation.memory_bank import MemoryBank
from lerobot_policy_world_modality.evaluation.plan_log import PlanLog
from lerobot_policy_world_modality.policies.shared.host import host_of
from tests.evaluation.helpers import CAMERA, FORECAST_ARMS, FORECAST_BANK_ARMS, SIZE, make_policy_of
from tests.plugin import qwen_helpers, smolvla_helpers
from tests.plugin.helpers import live_batch, open_gates
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.configs import MemoryConfig, ProphetConfig
from world_modality_core.memory.gated_attention import GatedCrossAttention

SCENES = [(task, seed) for task in ("push", "reach") for seed in (1, 2, 3)]
N_PLANS = 4


@pytest.fixture(scope="module")
def policy():
    return make_policy_of("world_F")


@pytest.fixture(scope="module")
def bank(tmp_path_factory):
    """Six scenes with two plans each; the memory of scene i at plan j is 10 i + j throughout."""
    bank = MemoryBank(tmp_path_factory.mktemp("run"), SCENES)
    for i, scene in enumerate(SCENES):
        bank.save(*scene, torch.stack([torch.full((2, 1280), 10.0 * i + j) for j in range(2)]))
    bank.check_holds(SCENES)
    return bank


def act(policy, arm, seeds=(1, 2)):
    """Plan `N_PLANS` times from the same frames: what the reader was shown, its queries, and the actions."""
    shown, queries = [], []
    hook = policy.memory.register_forward_pre_hook(
        lambda module, args: (queries.append(args[0].clone()), shown.append(args[1].clone()))[0] and None
    )
    actions = plan(policy, arm, seeds)
    hook.remove()
    return torch.stack(shown), torch.stack(queries), actions


def plan(policy, arm, seeds=(1, 2)):
    """(n_plans, b, h, a) actions planned from the same frames."""
    policy.latent_reader.intervention = arm
    arm.start("push", list(seeds))
    host_of(policy).close_gates(arm.name == "gate_closed")
    policy.reset()
    generator, actions = torch.Generator().manual_seed(0), []
    for _ in range(N_PLANS):
        images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
        actions.append(policy.predict_action_chunk({CAMERA: images, "observation.state": torch.ones(2, 4)}))
    return torch.stack(actions)


@pytest.fixture(scope="module")
def runs(policy, bank):
    return {arm: act(policy, MemoryArm(arm, bank, draw_seed=3, stale_plans=2)) for arm in FORECAST_ARMS}


def test_without_an_arm_a_policy_acts_as_intact(policy, runs):
    policy.latent_reader.intervention = None
    host_of(policy).close_gates(False)
    policy.reset()
    generator = torch.Generator().manual_seed(0)
    for plan in range(N_PLANS):
        images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
        actions = policy.predict_action_chunk({CAMERA: images, "observation.state": torch.ones(2, 4)})
        assert torch.equal(actions, runs["intact"][2][plan])


@pytest.mark.parametrize("arm", [arm for arm in FORECAST_ARMS if arm != "intact"])
def test_an_arm_changes_the_actions_and_nothing_before_the_memory(runs, arm):
    shown, queries, actions = runs[arm]
    assert torch.equal(queries, runs["intact"][1])
    assert not torch.equal(actions, runs["intact"][2])
    assert torch.equal(shown, runs["intact"][0]) == (arm == "gate_closed")


def test_what_each_arm_shows(policy, runs):
    intact = runs["intact"][0]  # (plans, b, m, d)
    assert intact.flatten(2).std(-1).min() > 0.1 and not torch.equal(intact[0], intact[1])
    assert not runs["zero"][0].any()
    # Norm-matched, and no copy of what it replaces.
    random = runs["random"][0]
    torch.testing.assert_close(random.norm(dim=-1), intact.norm(dim=-1))
    assert torch.cosine_similarity(random, intact, dim=-1).abs().max() < 0.2
    # Two plans old; the first plans take the oldest there is.
    assert torch.equal(runs["stale"][0], intact[[0, 0, 0, 1]])
    copied = runs["copy_current"][0]
    assert torch.equal(copied[:, :, 0], copied[:, :, 1])  # both future steps are the one current latent
    assert not torch.equal(copied[0], copied[1]) and not torch.equal(copied[0, 0], copied[0, 1])


@pytest.mark.parametrize("arm", FORECAST_BANK_ARMS)
def test_exchanged_memories_are_another_episodes_at_the_same_plan(runs, bank, arm):
    for i, seed in enumerate((1, 2)):
        values = runs[arm][0][:, i]
        assert (values == values[:, :1, :1]).all()
        scene, plan = SCENES[int(values[0, 0, 0]) // 10], values[:, 0, 0] % 10
        assert plan.tolist() == [0, 1, 1, 1]  # the other scene had two plans
        assert scene == bank.draw_scene(arm, "push", seed, 3) != ("push", seed)
        assert {"shuffle_within_task": scene[0] == "push", "wrong_task": scene[0] == "reach"}.get(arm, True)


def test_memories_are_kept_once(bank):
    before = bank.load("push", 1)
    with pytest.raises(FileExistsError, match="the memories of a scene are kept once"):
        bank.save("push", 1, before + 1)
    assert torch.equal(bank.load("push", 1), before)


def test_only_intact_has_something_for_the_bank(policy, bank):
    for name in FORECAST_ARMS:
        plan(policy, arm := MemoryArm(name, bank))
        assert len(arm.for_bank) == (N_PLANS if name == "intact" else 0), name
        plan(policy, arm := MemoryArm(name, None if name not in FORECAST_BANK_ARMS else bank))
        assert not arm.for_bank, name


def test_draws_depend_on_the_scene_alone(policy, runs, bank):
    swapped = act(policy, MemoryArm("random", bank, draw_seed=3), seeds=(2, 1))[0]
    assert not torch.equal(swapped[0], runs["random"][0][0])
    direction = torch.nn.functional.normalize
    torch.testing.assert_close(direction(swapped[0, 1], dim=-1), direction(runs["random"][0][0, 0], dim=-1))
    # Over many scenes every scene is drawn, and another draw seed draws others.
    scenes = [bank.draw_scene("shuffle", "push", seed, 0) for seed in range(100, 160)]
    assert set(scenes) == set(SCENES)
    assert scenes != [bank.draw_scene("shuffle", "push", seed, 1) for seed in range(100, 160)]


def test_closed_gates_change_nothing_for_good(policy, runs, bank):
    again = act(policy, MemoryArm("intact", bank))
    assert torch.equal(again[2], runs["intact"][2])


def test_the_log_holds_each_sample_of_each_plan(policy, bank):
    arm = MemoryArm("intact", bank)
    log = PlanLog(policy, arm, n_action_steps=2)
    noted, predict = [], policy.predict_action_chunk

    def spy(batch):
        out = predict(batch)
        reader = policy.memory
        noted.append([reader.last_sample_mass, reader.last_sample_entropy, reader.last_sample_gate])
        torch.testing.assert_close(reader.last_sample_mass.mean(0), reader.last_attention_mass)
        return out

    policy.latent_reader.intervention = arm
    arm.start("push", [1, 2])
    host_of(policy).close_gates(False)
    policy.reset()
    policy.predict_action_chunk = spy
    for _ in range(6):
        images = torch.rand(2, 3, SIZE, SIZE)
        images[1] *= 0.1
        policy.select_action({CAMERA: images, "observation.state": torch.ones(2, 4)})
        log(policy)
    del policy.predict_action_chunk
    first, second = log.summaries([3, 1])
    masses = torch.stack([mass for mass, _, _ in noted]).double()  # (plans, b, k)
    torch.testing.assert_close(torch.tensor(first["attention_mass"]).double(), masses[:, 0].mean(0))
    torch.testing.assert_close(torch.tensor(second["attention_mass"]).double(), masses[0, 1])
    assert first["attention_mass"] != second["attention_mass"]
    assert sum(first["attention_mass"]) == pytest.approx(1, abs=1e-6)
    assert first["gate"] == pytest.approx(0.7616, abs=1e-3)
    assert 0 < second["attention_entropy"] <= 1.0001


def test_a_policy_without_memory_has_no_readers_and_no_summaries():
    policy = make_policy_of("world_A")
    assert host_of(policy).readers == {}
    log = PlanLog(policy, MemoryArm("intact"), n_action_steps=1)
    log(policy)
    assert log.summaries([1]) == [{"gate": None, "attention_entropy": None, "attention_mass": None}]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["smolvla_world", "qwen_world_fplus"])
def test_arms_reach_every_reader_of_a_vla(family, tiny_companion, tmp_path):
    if family == "smolvla_world":
        vlm = make_smolvlm(tmp_path / "vlm", save_weights=True)
        fusions = smolvla_helpers.fusion("f1", "f3a", "f3b")
        policy, dataset, processors = smolvla_helpers.build(tiny_companion, vlm, fusion=fusions)
    else:
        vlm = make_qwen(tmp_path / "vlm", "qwen3_vl")
        policy, dataset, processors = qwen_helpers.build(tiny_companion, vlm)
    open_gates(policy, 1.0)
    batch = live_batch(dataset, processors[0], [3, 20])
    actions, gates = {}, {}
    for name in (None, "intact", "zero", "gate_closed"):
        arm = MemoryArm(name or "intact")
        policy.latent_reader.intervention = arm if name else None
        host_of(policy).close_gates(name == "gate_closed")
        policy.eval()
        policy.reset()
        torch.manual_seed(0)
        actions[name] = policy.predict_action_chunk(batch)
        if name:
            log = PlanLog(policy, arm, n_action_steps=1)
            log(policy)
            gates[name] = [summary["gate"] for summary in log.summaries([1, 1])]
    assert len(host_of(policy).readers) == (3 if family == "smolvla_world" else 1)
    assert torch.equal(actions["intact"], actions[None])
    assert not torch.equal(actions["zero"], actions["intact"])
    assert not torch.equal(actions["gate_closed"], actions["intact"])
    assert gates["gate_closed"] == [0, 0] and gates["intact"] == pytest.approx([0.7616, 0.7616], abs=1e-3)


def test_gates_of_both_signs_do_not_cancel_in_the_log():
    reader = GatedCrossAttention(8, 4, 3, n_heads=2, gate="per_head")
    with torch.no_grad():
        reader.gate.value.copy_(torch.tensor([1.0, -1.0]))
    reader(torch.randn(2, 5, 8), torch.randn(2, 3, 4))
    assert reader.last_gate == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(reader.last_sample_gate, torch.full((2,), 0.7616), atol=1e-4, rtol=0)


def tell(policy, displacement):
    """Let a policy's Prophet foresee that its robot moves by `displacement` (k, s)."""
    told = displacement.expand(2, *displacement.shape)
    policy.prophet.register_forward_hook(lambda module, args, futures: replace(futures, displacement=told))


def test_an_appended_memory_of_states_has_all_arms(bank):
    memory = MemoryConfig(entry="appended", content="states")
    policy = make_policy_of("world_F", memory=memory, prophet=ProphetConfig(use_state=True, tells_state=True))
    k = policy.config.n_future_steps
    tell(policy, torch.linspace(0.1, 2.0, 4 * k).view(k, 4))
    runs = {}
    for name in ("intact", "gate_closed", "zero", "copy_current", "random", "stale"):
        runs[name] = plan(policy, MemoryArm(name, bank, config=policy.config.memory))
    assert torch.equal(runs["zero"], runs["copy_current"])  # a robot that stays
    assert torch.equal(runs["intact"], runs["stale"])  # this Prophet always says the same
    for name in ("gate_closed", "zero", "random"):
        assert not torch.allclose(runs["intact"], runs[name], atol=1e-5), name
    assert not torch.allclose(runs["gate_closed"], runs["zero"], atol=1e-5)
    with torch.no_grad():  # masked tokens are not read, whatever they hold
        policy.memory.position.normal_()
    again = plan(policy, MemoryArm("gate_closed", bank, config=policy.config.memory))
    assert torch.equal(again, runs["gate_closed"])
