"""smolvla_world on tiny models of the real SmolVLM classes: does no harm, can learn, saves, loads, plans."""

import importlib
import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lerobot.policies import get_policy_class
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel

from lerobot_policy_world_modality.policies.smolvla_world.fusion import WorldSmolVLMWithExpert
from tests.device import DEVICE
from tests.plugin.helpers import batch_of, live_batch, open_gates
from tests.plugin.smolvla_helpers import FUSIONS, build, fusion
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.configs import MemoryConfig, MemorySource, ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.gated_attention import Gate, GatedCrossAttention
from world_modality_core.memory.sources import TRAINING_SOURCES

EPISODE = [12, 13, 14, 15, 16, 17]  # frames of the second episode


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_smolvlm(tmp_path_factory.mktemp("vlm") / "tiny", save_weights=True)


class LongTask:
    """The tiny dataset with one of its two tasks in more words: prompts of different length in a batch."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __getitem__(self, index):
        item = self.dataset[index]
        return item | {"task": item["task"].replace("open the", "open the red and the blue")}


def step(policy, batch, seed=1, reduction="mean"):
    """Loss, logged values and gradients of one training step."""
    policy.train().zero_grad()
    torch.manual_seed(seed)
    loss, logged = policy.forward(dict(batch), reduction=reduction)
    loss.sum().backward()
    return loss.detach(), dict(logged.items()), {name: p.grad for name, p in policy.named_parameters()}


def noise_of(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 4, 8, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def plan(policy, batch, seed=2):
    """The chunk that a policy plans from the current observation of a new episode."""
    policy.reset()
    torch.manual_seed(seed)
    return policy.predict_action_chunk(batch)


CLOSED = [
    ((), "scalar", True), (("f1",), "scalar", True), (("f1",), "per_head", False), (("f2",), "per_token", True),
    (("f3a",), "scalar", True), (("f3a",), "per_token", False), (("f3b",), "per_head", True),
    (tuple(FUSIONS), "scalar", True), (tuple(FUSIONS), "per_head", False), (tuple(FUSIONS), "per_token", True),
]  # fmt: skip


@pytest.mark.parametrize("names, gate, train_expert_only", CLOSED)
def test_at_closed_gates_it_is_smolvla_bit_for_bit(tiny_companion, vlm, names, gate, train_expert_only):
    options = {"train_expert_only": train_expert_only}
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlm, "smolvla", **options)
    world, *_ = build(tiny_companion, vlm, fusion=fusion(*names), memory=MemoryConfig(gate=gate), **options)
    for name, value in plain.state_dict().items():
        assert torch.equal(world.state_dict()[name], value), name
    batch = batch_of(LongTask(dataset), preprocessor, [3, 4, 5, 12, 13, 14])
    mask = batch["observation.language.attention_mask"]
    assert mask.sum(1).unique().numel() == 2
    _, expected, gradients = step(plain, batch)
    _, got, world_gradients = step(world, batch)
    assert got["loss_action"] == expected["loss"]
    for name, gradient in gradients.items():
        mine = world_gradients[name]
        assert (gradient is None and mine is None) or torch.equal(mine, gradient), name
    observation = live_batch(dataset, preprocessor, [3, 20])
    assert torch.equal(plan(world, observation), plan(plain, observation))
    if names:  # positive control: open gates do change what is computed
        open_gates(world)
        assert step(world, batch)[1]["loss_action"] != expected["loss"]
        assert not torch.equal(plan(world, observation), plan(plain, observation))


@pytest.mark.parametrize("source", [source for source in TRAINING_SOURCES if source is not MemorySource.scheduled])
def test_no_memory_does_harm_at_closed_gates(tiny_companion, vlm, source):
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlm, "smolvla")
    world, *_ = build(tiny_companion, vlm, fusion=fusion(*FUSIONS), memory=MemoryConfig(source=source))
    batch = batch_of(dataset, preprocessor, range(3, 21, 3))
    assert step(world, batch)[1]["loss_action"] == step(plain, batch)[1]["loss"]


def test_under_autocast_it_is_smolvla_too_and_gates_stay_fp32(tiny_companion, vlm):
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlm, "smolvla", load_vlm_weights=True)
    world, *_ = build(tiny_companion, vlm, load_vlm_weights=True, dtype="bfloat16", fusion=fusion(*FUSIONS))
    assert world.model.vlm_with_expert.vlm.dtype == torch.bfloat16  # as SmolVLA loads it
    batch = batch_of(dataset, preprocessor, range(3, 9))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert step(world, batch)[1]["loss_action"] == step(plain, batch)[1]["loss"]
        observation = live_batch(dataset, preprocessor, [3, 20])
        expected = plan(plain, observation)
    assert torch.equal(plan(world, observation), expected)  # `dtype` is the autocast of a rollout
    world.to(torch.bfloat16)
    gates = [p for module in world.modules() if isinstance(module, Gate) for p in module.parameters()]
    assert len(gates) == 4 and all(p.dtype == torch.float32 for p in gates)
    assert world.world.prophet.head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("names", [*[(name,) for name in FUSIONS], tuple(FUSIONS)], ids="+".join)
def test_gates_open_and_every_world_parameter_learns(tiny_companion, vlm, names):
    prophet = ProphetConfig(n_hypotheses=2, use_state=True, use_language=True)
    memory = MemoryConfig(gate="per_token", n_heads=2)
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, fusion=fusion(*names), prophet=prophet, memory=memory
    )
    batch = batch_of(dataset, preprocessor, range(2, 10))
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        torch.manual_seed(0)
        loss, logged = policy.forward(batch)
        loss.backward()
        optimizer.step()
        policy.update()
    for name, parameter in policy.named_parameters():
        if name.startswith("world.") or ".world_" in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
            assert not torch.equal(parameter, before[name]), name
        elif "vlm_with_expert.vlm." in name:
            assert torch.equal(parameter, before[name]), name
    values = dict(logged.items())
    assert values["loss_world"] > 0 and {"prophet_skill", "prophet_skill_2", "grad_norm_prophet"} <= set(values)
    for fused in names:
        assert values[f"world_gate_{fused}"] != 0 and f"grad_norm_{fused}" in values
        assert fused == "f3a" or 0 < values[f"memory_entropy_{fused}"] <= 1
    if "f1" in names:
        assert values["memory_mass_f1_1"] + values["memory_mass_f1_2"] == pytest.approx(1)
    assert policy.world.train_step == 3


def test_gates_have_their_own_learning_rate_and_frozen_parameters_are_left_out(tiny_companion, vlm):
    policy, *_ = build(tiny_companion, vlm, fusion=fusion(*FUSIONS), optimizer_lr=1e-4)
    base, gate = policy.get_optim_params()
    assert gate["lr"] == pytest.approx(1e-3) and gate["weight_decay"] == 0 and len(gate["params"]) == 4
    assert sum(p.numel() for p in base["params"] + gate["params"]) == sum(
        p.numel() for p in policy.parameters() if p.requires_grad
    )


def test_a_gate_in_warm_up_stays_shut_while_the_prophet_learns(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, fusion=fusion(*FUSIONS), memory=MemoryConfig(gate_warmup_steps=2)
    )
    plain, *_ = build(tiny_companion, vlm, "smolvla")
    batch = batch_of(dataset, preprocessor, range(3, 9))
    optimizers = [torch.optim.AdamW(each.get_optim_params(), lr=1e-3) for each in (policy, plain)]
    head = policy.world.prophet.head.weight.detach().clone()
    for number in range(4):
        got, expected = step(policy, batch, seed=number)[1], step(plain, batch, seed=number)[1]
        assert (got["loss_action"] == expected["loss"]) == (number < 3)  # the third step is the first to move a gate
        for optimizer in optimizers:
            optimizer.step()
        policy.update()
    assert not torch.equal(policy.world.prophet.head.weight, head)


@pytest.mark.parametrize("names", [("f1",), ("f3a",), ("f3b",)], ids="+".join)
def test_no_sample_touches_another(tiny_companion, vlm, names):
    """Prompts of different length in one batch: each sample acts as it does alone, and only its own memory moves it."""
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, fusion=fusion(*names))
    open_gates(policy)
    batch = batch_of(LongTask(dataset), preprocessor, [5, 13, 33])
    noise = noise_of(3)
    together = policy.plan_recorded(batch, "oracle", noise)
    for i, index in enumerate([5, 13, 33]):
        alone = policy.plan_recorded(batch_of(LongTask(dataset), preprocessor, [index]), "oracle", noise[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-4, atol=1e-4)
    world_batch = policy.recorded_batch(batch, everything=True)
    world_batch.future[1] += torch.randn_like(world_batch.future[1])
    with policy.reading(world_batch, MemorySource.oracle), torch.no_grad():
        changed = super(type(policy), policy)._get_action_chunk(batch, noise)
    assert torch.equal(changed[[0, 2]], together[[0, 2]])
    assert not torch.allclose(changed[1], together[1], atol=1e-4)


def test_sampling_reads_the_memory_as_training_does(tiny_companion, vlm):
    """One denoising step with cached keys and values gives the velocity of the training pass, for all fusions."""
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, fusion=fusion(*FUSIONS), num_steps=1)
    open_gates(policy)
    policy.eval()
    batch = batch_of(dataset, preprocessor, [5, 13, 33])
    seen = []
    policy.model.action_out_proj.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    noise, ones = noise_of(3), torch.ones(3, device=DEVICE)
    with torch.no_grad():
        policy.forward(dict(batch), noise=noise, time=ones)  # at time 1 the noisy actions are the noise
    policy.plan_recorded(batch, "pred", noise)
    torch.testing.assert_close(seen[0], seen[1], rtol=1e-4, atol=1e-4)


def test_keys_and_values_are_projected_once_per_chunk(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, fusion=fusion(*FUSIONS), num_steps=5)
    calls = []
    for module in policy.modules():
        if isinstance(module, GatedCrossAttention):
            module.to_key_value.register_forward_hook(lambda *_: calls.append("keys"))
            module.to_query.register_forward_hook(lambda *_: calls.append("queries"))
    plan(policy, live_batch(dataset, preprocessor, [3]))
    assert calls.count("keys") == 3  # f1, f2, f3b
    assert calls.count("queries") == 5 + 5 + 1  # the prefix is read once


@pytest.mark.parametrize("source", ["zero", "random", "shuffle", "shuffle_within_task", "copy_current", "oracle"])
def test_every_source_fills_another_memory(tiny_companion, vlm, source):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm)
    open_gates(policy)
    policy.world.prophet.head.bias.data += torch.randn_like(policy.world.prophet.head.bias)  # predicts more than a copy
    batch = batch_of(dataset, preprocessor, [3, 5, 14, 16, 31, 33])
    noise = noise_of(6)
    plans = {each: policy.plan_recorded(batch, each, noise) for each in ("pred", source)}
    assert not torch.allclose(plans["pred"], plans[source], atol=1e-4)


def test_scheduled_goes_from_oracle_to_pred(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, memory=MemoryConfig(source="scheduled", schedule_steps=4)
    )
    open_gates(policy)
    batch = batch_of(dataset, preprocessor, [3, 5, 14, 16, 31, 33])
    noise = noise_of(6)
    at_start = policy.plan_recorded(batch, "scheduled", noise)
    assert torch.equal(at_start, policy.plan_recorded(batch, "oracle", noise))
    for _ in range(4):
        policy.update()
    assert torch.equal(policy.plan_recorded(batch, "scheduled", noise), policy.plan_recorded(batch, "pred", noise))
    assert not torch.equal(at_start, policy.plan_recorded(batch, "pred", noise))


def test_a_rollout_has_no_oracle_and_a_layer_no_stale_memory(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, memory=MemoryConfig(source="oracle"))
    assert policy.config.memory.rollout_source is MemorySource.pred
    with pytest.raises(ConfigError, match="eval_source='oracle'"):
        MemoryConfig(eval_source=MemorySource.oracle)
    observation = live_batch(dataset, preprocessor, [3])
    policy.remember(observation)
    world_batch = policy.latent_reader.live(observation, policy.device)
    with (
        pytest.raises(ValueError, match="'oracle' needs the recorded future"),
        policy.reading(world_batch, MemorySource.oracle),
    ):
        pass
    plan(policy, live_batch(dataset, preprocessor, [3]))
    with pytest.raises(RuntimeError, match="not filled"):
        policy.model.action_out_proj(torch.zeros(1, 4, policy.model.action_out_proj.in_features, device=DEVICE))


def test_live_frames_give_the_actions_of_the_recorded_latents(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, fusion=fusion(*FUSIONS), prophet=ProphetConfig(use_state=True, use_language=True)
    )
    open_gates(policy)
    policy.reset()
    for index in EPISODE:
        observation = live_batch(dataset, preprocessor, [index])
        noise = noise_of(1, index)
        live = policy.predict_action_chunk(observation, noise=noise)
        recorded = policy.plan_recorded(batch_of(dataset, preprocessor, [index]), "pred", noise)
        # recorded frames went through the video codec of the dataset in both cases
        torch.testing.assert_close(live, recorded, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("n_action_steps, frames_per_step", [(50, 0.08), (10, 0.4)])
def test_frames_encoded_per_environment_step(tiny_companion, vlm, n_action_steps, frames_per_step):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, n_history_steps=4, chunk_size=50, n_action_steps=n_action_steps, num_steps=1
    )
    policy.reset()
    observation = live_batch(dataset, preprocessor, [0])
    for _ in range(200):
        policy.select_action(dict(observation))
    assert 0 < policy.latent_reader.frames.n_encoded / 200 <= frames_per_step


def test_saved_and_loaded_without_dataset_it_acts_the_same(tiny_companion, vlm, tmp_path):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, fusion=fusion(*FUSIONS), prophet=ProphetConfig(use_language=True)
    )
    plain, *_ = build(tiny_companion, vlm, "smolvla")
    open_gates(policy)
    policy.update()
    policy.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["encoder"]["n_tokens"] == 2 and config["init_from"] is None
    config["companion"]["root"] = "/nowhere"
    (tmp_path / "config.json").write_text(json.dumps(config))
    loaded = get_policy_class("smolvla_world").from_pretrained(tmp_path, strict=True)
    added = set(policy.state_dict()) - set(plain.state_dict())
    assert added and all(name.startswith("world.") or ".world_" in name for name in added)
    assert not [name for name in added if "encoder.network" in name or "sentence" in name]
    assert loaded._step == 1
    observation = live_batch(dataset, preprocessor, [3, 20])
    assert torch.equal(plan(loaded, observation), plan(policy, observation))


def test_memory_that_is_not_finite(tiny_companion, vlm):
    """Where it is used, an error that names the companion's row; where it is padding, nothing changes."""
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, fusion=fusion(*FUSIONS), history_stride=2, memory=MemoryConfig(source="oracle")
    )
    open_gates(policy)
    table = policy.latent_reader.companion.table
    batch = batch_of(dataset, preprocessor, [13, 15])  # frames 1 and 3 of an episode that starts at 12
    expected, _, gradients = step(policy, batch)
    latents = np.array(table.latents)
    latents[12] = np.nan  # of sample 0 only the padding (frames -1 and -3), of sample 1 nothing (frames 3, 1, -1) ...
    table.latents = latents
    world_batch = policy.recorded_batch(batch)
    assert world_batch.history_is_pad[:, 0].all() and torch.isfinite(world_batch.history).all()
    got, _, world_gradients = step(policy, batch)
    assert torch.equal(got, expected)
    for name, gradient in gradients.items():
        assert gradient is None or torch.equal(world_gradients[name], gradient), name
    latents[16] = np.inf  # ... but frame 4 is the future of frame 3
    policy.latent_reader._gpu_table = None  # a GPU holds what the table held
    with pytest.raises(ValueError, match=r"row 16 of companion .* \(episode 1\) holds NaN or Inf"):
        policy.forward(batch)
    policy.config.companion.on_device = True  # asked for, but refused: the host's gather can name the row
    policy.latent_reader._gpu_table = None
    with pytest.raises(ValueError, match="row 16"):
        policy.forward(batch)


def test_real_time_chunking_uses_fresh_memory(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, fusion=fusion(*FUSIONS), rtc_config=RTCConfig(enabled=True, execution_horizon=2)
    )
    open_gates(policy)
    assert policy.supports_rtc()
    policy.init_rtc_processor()
    policy.reset()
    first = policy.predict_action_chunk(live_batch(dataset, preprocessor, [12]))
    chunks = []
    for index in (13, 16):
        policy.reset()
        policy.predict_action_chunk(live_batch(dataset, preprocessor, [12]))
        torch.manual_seed(0)
        observation = live_batch(dataset, preprocessor, [index])
        kept = live_batch(dataset, preprocessor, [13])
        observation |= {key: value for key, value in kept.items() if key not in policy.latent_reader.frames.cameras}
        images = {key: kept[key] for key in policy.latent_reader.frames.cameras}
        policy.remember(observation)  # the world sees another frame; SmolVLA sees the same
        policy.remember = lambda batch: None
        chunks.append(
            policy.predict_action_chunk(
                observation | images, inference_delay=1, prev_chunk_left_over=first[:, 1:], execution_horizon=2
            )
        )
        del policy.remember
    assert chunks[0].shape == first.shape and torch.isfinite(chunks[0]).all()
    assert not torch.allclose(chunks[0], chunks[1], atol=1e-5)


def test_frames_that_come_irregularly_take_their_place_by_the_clock(tiny_companion, vlm, monkeypatch):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, vlm, frame_clock="wall", n_history_steps=3, history_stride=2
    )
    assert policy.config.fps == 10
    clock = iter([100.0, 100.2, 100.4, 103.0])
    own = SimpleNamespace(monotonic=lambda: next(clock))  # time's own is everybody's, threads that wait included
    monkeypatch.setattr("lerobot_policy_world_modality.policies.shared.latent_reader.time", own)
    policy.reset()
    pads = []
    for index in (12, 14, 16, 18):
        observation = live_batch(dataset, preprocessor, [index])
        policy.predict_action_chunk(observation)
        world_batch = policy.latent_reader.live(observation, policy.device)
        pads.append(world_batch.history_is_pad[0].tolist())
    assert pads == [[True, True, False], [True, False, False], [False] * 3, [True, True, False]]


def test_sharded_training_finds_its_modules(tiny_companion, vlm):
    from accelerate.utils.dataclasses import get_module_class_from_name

    policy, *_ = build(tiny_companion, vlm)
    assert policy._no_split_modules
    for name in policy._no_split_modules:
        assert get_module_class_from_name(policy, name) is not None, name


def test_compiled_it_sees_each_new_memory_and_compiles_once(tiny_companion, vlm, monkeypatch):
    # Dynamo's tracing decides what is compiled anew; what a backend makes of a graph takes minutes, and isn't ours.
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode: compiled(function, backend="eager"))
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, compile_model=True, num_steps=1)
    plain, *_ = build(tiny_companion, vlm, num_steps=1)
    batches = [batch_of(dataset, preprocessor, indices) for indices in ([3, 5], [14, 16], [31, 33])]
    noise, time = noise_of(2), torch.full((2,), 0.5, device=DEVICE)
    counts, losses = [], []
    torch._dynamo.utils.counters.clear()
    for gate in (0.5, -1.0):
        for each in (policy, plain):
            open_gates(each, gate)
        for batch in batches:
            got, expected = (each.forward(dict(batch), noise, time)[0] for each in (policy, plain))
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
            losses.append(float(got.detach()))
            counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert len(set(losses)) == 6
    assert counts[0] > 0 and counts[-1] == counts[0]  # a new memory or gate compiles nothing anew
    for batch in batches:
        chunk = policy.plan_recorded(batch, "pred", noise)
        torch.testing.assert_close(chunk, plain.plan_recorded(batch, "pred", noise), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(DEVICE != "cpu", reason="counts on a CPU what an accelerator would wait for")
@pytest.mark.parametrize("names", [*[(name,) for name in FUSIONS], tuple(FUSIONS)], ids="+".join)
def test_a_training_step_adds_no_wait_for_the_device(tiny_companion, vlm, names, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    host_syncs = importlib.import_module("host_syncs")
    host_syncs.check()
    plain, dataset, (preprocessor, _) = build(tiny_companion, vlm, "smolvla")
    world, *_ = build(tiny_companion, vlm, fusion=fusion(*names), memory=MemoryConfig(source="scheduled"))
    batch = batch_of(dataset, preprocessor, range(3, 9))
    noise, time = torch.randn(6, 4, 8), torch.rand(6)

    def waits(policy):
        with host_syncs.HostSyncs() as syncs:
            policy.forward(dict(batch), noise, time)[0].backward()
        return syncs.waits

    expected = waits(plain)
    assert expected  # SmolVLA reads its losses itself
    world.config.companion.on_device = True
    waits(world)  # the first step puts the latents on the device
    assert sum(waits(world).values()) == sum(expected.values()), waits(world) - expected
    world.config.companion.on_device, world.latent_reader._gpu_table = False, None
    waits(world)
    assert sum(waits(world).values()) == sum(expected.values()) + 1  # positive control: the index, to the host


def test_the_wrapped_call_is_upstreams():
    """F3a and F3b turn upstream's instance into `WorldSmolVLMWithExpert`: its call must be the one that they wrap."""
    ours, theirs = (inspect.signature(cls.forward) for cls in (WorldSmolVLMWithExpert, SmolVLMWithExpertModel))
    assert [(p.name, p.kind) for p in ours.parameters.values()] == [
        (p.name, p.kind) for p in theirs.parameters.values()
    ]
    assert WorldSmolVLMWithExpert.__bases__ == (SmolVLMWithExpertModel,)
    own = set(vars(WorldSmolVLMWithExpert)) - {"__module__", "__doc__", "__static_attributes__", "__firstlineno__"}
    assert own == {"forward"}  # no state that upstream's constructor would have to make
