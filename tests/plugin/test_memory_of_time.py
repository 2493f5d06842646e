"""What was, what is and what will be, in the memory of every type that reads one; and how it is read."""

import copy

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig

from lerobot_policy_world_modality.evaluation.arms import MemoryArm
from lerobot_policy_world_modality.evaluation.memory_bank import MemoryBank
from tests.plugin import helpers, qwen_helpers, smolvla_helpers
from tests.plugin.helpers import batch_of, live_batch, open_gates
from tests.plugin.variant_helpers import Hosts
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.configs import MemoryConfig, PastConfig, ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.modulation import MemoryModulation
from world_modality_core.memory.sources import PAST_SOURCES

PAST = {"past": PastConfig(n_frames=4, stride=2), "use_current": True}
# Frames of episodes that start at 0, 12, 29 and 43.
START, LATER = 12, 24


@pytest.fixture(scope="module")
def build(tiny_companion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbones")
    smolvlm, qwen = make_smolvlm(folder / "smolvlm"), make_qwen(folder / "qwen", "qwen3_vl")
    with pytest.MonkeyPatch.context() as monkeypatch:
        hosts = Hosts(folder, tiny_companion, monkeypatch)

        def make(family, **options):
            options["memory"] = MemoryConfig(**options.pop("memory", {}))
            match family:
                case "world_F":
                    return helpers.build(tiny_companion, "world_F", use_language=False, **options)
                case "smolvla_world":
                    return smolvla_helpers.build(tiny_companion, smolvlm, **options)
                case "smolvla_world f3a f3b":
                    fusion = smolvla_helpers.fusion("f3a", "f3b")
                    return smolvla_helpers.build(tiny_companion, smolvlm, fusion=fusion, **options)
                case "qwen_world_fplus":
                    return qwen_helpers.build(tiny_companion, qwen, **options)
            return hosts.build(family, **options)

        yield make


FAMILIES = ["world_F", "smolvla_world", "smolvla_world f3a f3b", "qwen_world_fplus", "act_world"]


def loss_of(policy, batch, seed=1):
    torch.manual_seed(seed)
    return policy.train().forward(dict(batch))


def recorded_plan(policy, batch):
    noise = torch.randn(len(batch["index"]), 4, 8, generator=torch.Generator().manual_seed(0))
    width = getattr(policy.config, "max_action_dim", None) or 4
    return policy.plan_recorded(dict(batch), "pred", noise[..., :width], seed=1)


@pytest.mark.parametrize("entry", ["gated", "modulated"])
@pytest.mark.parametrize("family", FAMILIES)
def test_past_and_present_do_no_harm_at_first_and_are_read_later(build, family, entry):
    if entry == "modulated" and "f3a" in family:
        with pytest.raises(ConfigError, match="memory.entry='modulated'"):
            build(family, memory=PAST | {"entry": entry})
        return
    plain, dataset, (preprocessor, _) = build(family, memory={"source": "zero"})
    policy, *_ = build(family, memory=PAST | {"entry": entry})
    batch = batch_of(dataset, preprocessor, [START, LATER, 45, 8])
    expected = loss_of(plain, batch)[1]["loss_action"]
    assert loss_of(policy, batch)[1]["loss_action"] == expected

    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for _ in range(3):
        optimizer.zero_grad()
        loss, logged = loss_of(policy, batch)
        loss.backward()
        optimizer.step()
        policy.update()
    assert logged["loss_action"] != expected
    assert (
        any(0 < value < 1 for name, value in logged.items() if name.startswith("memory_mass_seen")) or "f3a" in family
    )
    for name, reader in policy.readers.items():
        assert isinstance(reader, MemoryModulation) == (entry == "modulated")
        for part, parameter in reader.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, (name, part)
    policy.close_gates(True)  # the arm that closes gates closes a modulation too
    policy.eval()
    own = plain.state_dict()
    both = {k: v for k, v in policy.state_dict().items() if k in own and own[k].shape == v.shape}
    plain.load_state_dict(own | both)
    plain.close_gates(True)
    assert torch.equal(recorded_plan(policy, batch), recorded_plan(plain, batch))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_sample_reads_its_own_past_and_none_before_the_episode(build, family):
    policy, dataset, (preprocessor, _) = build(family, memory=PAST)
    open_gates(policy)
    batch = batch_of(dataset, preprocessor, [START, LATER, 45])
    memory = policy.memory_of(policy.recorded_batch(batch))
    p = policy.config.encoder.n_tokens
    seen = (~memory.is_pad[:, : 4 * p].unflatten(1, (4, p)).any(-1)).sum(1)
    assert seen.tolist() == [0, 4, 1] and not memory.is_pad[:, 4 * p :].any()
    times = memory.time.unflatten(1, (-1, p))[..., 0]
    assert times[1].tolist() == [-8, -6, -4, -2, 0, 1, 2] and times[2].tolist() == [0, 0, 0, -2, 0, 1, 2]

    plans = recorded_plan(policy, batch)
    table = policy.latent_reader.companion.table
    latents = np.array(table.latents)
    latents[LATER - 4] += np.random.default_rng(0).normal(size=latents.shape[1]) * 5
    table.latents, policy.latent_reader._gpu_table = latents, None
    changed = recorded_plan(policy, batch)
    torch.testing.assert_close(changed[[0, 2]], plans[[0, 2]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed[1], plans[1], atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "memory", [{"past": PastConfig(3, select="change")}, {"use_current": True}], ids=["past", "current"]
)
def test_without_a_future_there_is_no_prophet(build, family, memory):
    policy, dataset, (preprocessor, _) = build(family, n_future_steps=0, memory=memory)
    open_gates(policy)
    assert policy.world.prophet is None and not [name for name in policy.state_dict() if "prophet" in name]
    batch = batch_of(dataset, preprocessor, [START, LATER, 45])
    loss, logged = loss_of(policy, batch)
    loss.backward()
    assert torch.isfinite(loss) and "loss_world" not in list(logged)
    policy.update()
    policy.eval().reset()
    observation = live_batch(helpers.LeRobotDataset(dataset.repo_id, root=dataset.root), preprocessor, [3, 20])
    actions = torch.stack([policy.select_action(dict(observation)) for _ in range(5)])
    assert torch.isfinite(actions).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_copy_in_the_midst_of_a_step_is_a_policy_of_its_own(build, family):
    policy, dataset, (preprocessor, _) = build(family, memory=PAST)
    batch = batch_of(dataset, preprocessor, [START, LATER, 45])
    loss, _ = loss_of(policy, batch)
    copied = copy.deepcopy(policy)
    assert loss_of(copied, batch)[0] == loss
    copied.update()
    assert (copied._step, policy._step) == (1, 0)


def test_a_rollout_reads_the_past_that_training_reads(build):
    policy, dataset, (preprocessor, _) = build("act_world", memory=PAST)
    plain = helpers.LeRobotDataset(dataset.repo_id, root=dataset.root)
    policy.eval()
    for start in (12, 29):  # the second time nothing of the first may be left
        policy.reset()
        for t in range(12):
            policy.select_action(live_batch(plain, preprocessor, [start + t]))
        observation = live_batch(plain, preprocessor, [start + 12])
        policy.remember(observation)
        live = policy.latent_reader.live(observation, policy.device)
        recorded = policy.recorded_batch(batch_of(dataset, preprocessor, [start + 12]))
        assert torch.equal(live.past_age, recorded.past_age) and torch.equal(live.past_is_pad, recorded.past_is_pad)
        torch.testing.assert_close(live.past, recorded.past, rtol=2e-2, atol=2e-2)
        assert policy.latent_reader.frames.n_encoded <= 13


def test_an_empty_memory_is_refused_and_so_is_a_past_beside_states():
    with pytest.raises(ConfigError, match="n_future_steps=0 leaves the memory empty.*memory.past.n_frames"):
        helpers.make_config("world_F", n_future_steps=0)
    with pytest.raises(ConfigError, match="memory.content='hidden' beside past"):
        MemoryConfig(content="hidden", use_current=True)
    with pytest.raises(ConfigError, match="memory.past.stride=0"):
        PastConfig(stride=0)


@pytest.mark.parametrize("option", [{"stride": 8}, {"select": "change"}, {"source": "past_zero"}])
def test_options_of_a_past_that_is_not_there_are_refused(option):
    with pytest.raises(ConfigError, match=f"memory.past.{[*option][0]}={[*option.values()][0]} says something of past"):
        PastConfig(**option)


@pytest.mark.parametrize("family", ["world_F", "act_world"])
@pytest.mark.parametrize(
    "option",
    [{"memory": {"source": source}} for source in ("oracle", "zero", "shuffle", "copy_current")]
    + [{"memory": {"eval_source": "random"}}, {"prophet": ProphetConfig(use_language=True)}],
)
def test_options_of_a_forecast_that_is_not_there_are_refused(family, option):
    option = {"memory": {}} | option
    option["memory"] = MemoryConfig(**option["memory"], use_current=True)
    config = PreTrainedConfig.get_choice_class(family)
    with pytest.raises(ConfigError, match=r"(memory|prophet)\.\w+=\w+ says something of predicted futures"):
        config(n_future_steps=0, **option)


@pytest.mark.parametrize("memory", [{"source": "shuffle"}, {"past": PastConfig(4, 2, source="past_shuffle")}])
def test_what_an_epoch_leaves_over_may_be_one_sample_and_batches_of_one_may_not_be(build, memory):
    policy, dataset, (preprocessor, _) = build("act_world", memory=memory)
    one = batch_of(dataset, preprocessor, [LATER])
    with pytest.raises(ValueError, match="batch has one sample"):
        loss_of(policy, one)
    loss_of(policy, batch_of(dataset, preprocessor, [LATER, 45]))
    loss, _ = loss_of(policy, one)
    p, n_past = policy.config.encoder.n_tokens, policy.config.n_past
    is_pad = policy.memory_of(policy.recorded_batch(one)).is_pad
    assert torch.isfinite(loss) and (is_pad[:, : n_past * p] if n_past else is_pad).all()  # nothing to exchange: unread
    with pytest.raises(ValueError, match="batch has one sample"):
        recorded_plan(policy, one) if n_past else policy.plan_recorded(dict(one), "shuffle", torch.zeros(1, 4, 4))


@pytest.mark.parametrize("family", ["world_F", "act_world"])
def test_what_changes_the_past_changes_plans_and_nothing_where_there_is_no_past(build, family):
    policy, dataset, (preprocessor, _) = build(family, memory=PAST | {"use_current": False})
    open_gates(policy, 2.0)
    batch = batch_of(dataset, preprocessor, [START, LATER, 40, 60])
    noise = torch.zeros(4, 4, 4)
    own = policy.plan_recorded(dict(batch), "pred", noise, seed=1)
    for source in PAST_SOURCES:
        plan = policy.plan_recorded(dict(batch), source, noise, seed=1)
        assert not torch.allclose(plan[1:], own[1:], atol=1e-5), source
        assert torch.equal(plan[0], own[0]), source  # the first frame of an episode
        trained, *_ = build(family, memory={"past": PastConfig(4, 2, source=source)})
        trained.load_state_dict(policy.state_dict())
        assert torch.equal(trained.plan_recorded(dict(batch), "pred", noise, seed=1), plan), source


def test_arms_change_the_past_of_a_rollout(build, tmp_path):
    policy, dataset, (preprocessor, _) = build("act_world", memory=PAST | {"use_current": False})
    open_gates(policy, 2.0)
    plain = helpers.LeRobotDataset(dataset.repo_id, root=dataset.root)
    scenes = [("push", seed) for seed in (0, 1, 2)]
    bank, starts = MemoryBank(tmp_path, scenes), {0: 12, 1: 29, 2: 43}

    def roll(name, seeds):
        arm, read = MemoryArm(name, bank, config=policy.config.memory), []
        arm.start("push", seeds)
        policy.eval().reset()
        keep = policy.memory_of
        policy.memory_of = lambda *args: read.append(keep(*args)) or read[-1]
        with arm.applied_to(policy):
            for t in range(9):
                policy.select_action(live_batch(plain, preprocessor, [starts[seed] + t for seed in seeds]))
        del policy.memory_of
        return arm, read

    p = policy.config.encoder.n_tokens
    arm, own = roll("intact", [0, 1])
    for i, seed in enumerate((0, 1)):
        bank.save("push", seed, torch.stack([memory[i] for memory in arm.for_bank]))
    arm, other = roll("intact", [2])
    bank.save("push", 2, torch.stack([memory[0] for memory in arm.for_bank]))
    _, alone = roll("intact", [1])
    torch.testing.assert_close(alone[-1].tokens[0], own[-1].tokens[1])  # environments of a batch have their own pasts
    for source in PAST_SOURCES:
        _, read = roll(source.value, [0])
        for plan, (mine, memory) in enumerate(zip(own, read, strict=True)):
            past, expected = memory.tokens[0, : 4 * p], mine.tokens[0, : 4 * p]
            torch.testing.assert_close(memory.tokens[0, 4 * p :], mine.tokens[0, 4 * p :])  # the forecast is its own
            assert torch.equal(memory.is_pad[0], mine.is_pad[0]) and torch.equal(memory.time[0], mine.time[0])
            seen = ~mine.is_pad[0, : 4 * p]
            assert plan == 0 or seen.sum() == min(plan, 4) * p
            if plan > 1:
                assert not torch.allclose(past[seen], expected[seen]), source
            if source == "past_shuffle":
                whose = bank.draw_scene(source.value, "push", 0, 0)[1]
                held = {1: own[plan].tokens[1], 2: other[plan].tokens[0]}[whose][: 4 * p]
                torch.testing.assert_close(past[seen], held[seen], rtol=1e-2, atol=1e-2)
