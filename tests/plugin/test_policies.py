"""world_A to world_F on real latents: windows, gradients, do-no-harm, save/load, train/rollout sameness."""

import importlib
import inspect
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class

from lerobot_policy_world_modality.policies.world.modeling_world_modality import WorldFPolicy
from tests.device import DEVICE, assert_same
from tests.plugin.helpers import TYPES, batch_of, build, live_batch
from world_modality_core.configs import MemoryConfig, MemorySource, PastConfig, ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError, ObservationError
from world_modality_core.memory.sources import TRAINING_SOURCES
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute


def episodes(dataset):
    """First and last index of each episode."""
    table = dataset.meta.episodes
    return [(ep["dataset_from_index"], ep["dataset_to_index"] - 1) for ep in table]


@pytest.mark.parametrize("policy_type", TYPES)
def test_a_step_gives_a_loss_logs_floats_and_reaches_every_parameter(tiny_companion, policy_type):
    options = {"memory": MemoryConfig(), "prophet": ProphetConfig(n_hypotheses=2)} if policy_type == "world_F" else {}
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type, **options)
    batch = batch_of(dataset, preprocessor, range(8))
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for _ in range(2):  # the first step opens the gate
        optimizer.zero_grad()
        loss, logged = policy.forward(batch)
        loss.backward()
        optimizer.step()
        policy.update()
    assert torch.isfinite(loss)
    values = dict(logged.items())
    assert all(isinstance(value, float) for value in values.values())
    assert values["loss_action"] > 0
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    expected = {
        "world_A": set(),
        "world_B": {"loss_world", "token_top1_2", "token_top5_1"},
        "world_B_cont": {"loss_world", "prophet_skill", "prophet_skill_2"},
        "world_C": {"loss_world", "token_top1_1"},
        "world_F": {"loss_world", "world_gate", "memory_mass_1", "prophet_skill_2", "grad_norm_prophet"},
    }[policy_type]
    assert expected <= set(values)


@pytest.mark.parametrize("policy_type", TYPES)
def test_reduction_none_is_the_mean_before_the_mean(tiny_companion, policy_type):
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    batch = batch_of(dataset, preprocessor, range(6))
    mean, each = policy.forward(batch)[0], policy.forward(batch, reduction="none")[0]
    assert each.shape == (6,)
    torch.testing.assert_close(each.mean(), mean)
    with pytest.raises(ValueError, match="reduction"):
        policy.forward(batch, reduction="sum")


def test_windows_are_the_table_s_rows_and_never_leave_the_episode(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", n_future_steps=3)
    table = policy.latent_reader.companion.table
    (first, last), (second, _) = episodes(dataset)[:2]
    indices = [first, first + 1, first + 5, last - 1, last, second]
    world_batch = policy.recorded_batch(batch_of(dataset, preprocessor, indices))
    assert world_batch.history_is_pad.tolist() == [
        [True, True, False], [True, False, False], [False] * 3, [False] * 3, [False] * 3, [True, True, False]
    ]  # fmt: skip
    assert world_batch.future_is_pad.tolist() == [
        [False] * 3, [False] * 3, [False] * 3, [False, True, True], [True] * 3, [False] * 3
    ]  # fmt: skip
    space = policy.space
    for i, index in enumerate(indices):
        for j, offset in enumerate([-2, -1, 0]):
            if not world_batch.history_is_pad[i, j]:
                row = space.standardise_rows(torch.tensor(table.latents[index + offset], device=DEVICE))
                torch.testing.assert_close(world_batch.history[i, j], row)
        for j, offset in enumerate([1, 2, 3]):
            if not world_batch.future_is_pad[i, j]:
                row = space.standardise_rows(torch.tensor(table.latents[index + offset], device=DEVICE))
                torch.testing.assert_close(world_batch.future[i, j], row)


@pytest.mark.parametrize("policy_type", TYPES)
def test_no_action_depends_on_the_future(tiny_companion, policy_type):
    """Causality of the whole policy: other future latents and tokens change the targets, never the actions."""
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    if policy_type == "world_F":
        torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    world_batch = policy.recorded_batch(batch_of(dataset, preprocessor, range(4, 8)))
    source = MemorySource.pred
    # All types are given a future, also those whose training has none: none may look at it.
    future = torch.randn(4, 2, *world_batch.current.shape[1:])
    others = [
        replace(world_batch, future=future * scale, future_tokens=tokens, future_is_pad=tokens.bool().all(-1))
        for scale, tokens in ((1.0, torch.zeros(4, 2, 1).long()), (-1.0, torch.ones(4, 2, 1).long()))
    ]
    expected = policy._act(others[0], source)[0]
    assert torch.equal(policy._act(others[1], source)[0], expected)
    # The control: the past matters.
    past = replace(world_batch, history=world_batch.history.roll(1, 0))
    assert not torch.allclose(policy._act(past, source)[0], expected, atol=1e-5)


def test_every_frame_of_every_episode_is_a_training_sample(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", n_obs_steps=5, n_future_steps=6)
    loss = policy.forward(batch_of(dataset, preprocessor, range(len(dataset))), reduction="none")[0]
    assert loss.shape == (len(dataset),) and torch.isfinite(loss).all()


@pytest.mark.parametrize("policy_type", TYPES)
def test_saved_and_loaded_without_dataset_it_acts_the_same(tiny_companion, policy_type, tmp_path):
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    if policy_type == "world_F":
        torch.nn.init.constant_(policy.memory.gate.value, 0.5)
    policy.save_pretrained(tmp_path)
    keys = set(policy.state_dict())
    assert not [key for key in keys if "encoder.network" in key or "sentence" in key]
    assert (tmp_path / "model.safetensors").stat().st_size < 2e6  # no encoder inside
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["encoder"]["n_tokens"] == policy.config.encoder.n_tokens
    saved["companion"]["root"] = "/nowhere"  # not needed any more
    (tmp_path / "config.json").write_text(json.dumps(saved))
    loaded = get_policy_class(policy_type).from_pretrained(tmp_path, strict=True)
    for name, value in policy.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    batch = live_batch(dataset, preprocessor, [3, 20])
    policy.reset()
    mine, theirs = policy.select_action(batch), loaded.select_action(batch)
    assert_same(theirs, mine)
    assert (
        loaded.config.image_features.keys()
        == (
            {}
            if not policy.config.needs_live_history and not policy.config.needs_live_tokens
            else dict.fromkeys(policy.config.encoder.cameras)
        ).keys()
    )


@pytest.mark.parametrize("policy_type", TYPES)
def test_live_frames_give_the_actions_of_the_recorded_latents(tiny_companion, policy_type):
    """Train/eval sameness: playing an episode's frames live plans what the companion's rows plan."""
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    if policy_type == "world_F":
        torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    policy.eval()
    (first, _), (second, _) = episodes(dataset)[:2]
    for step in range(5):  # two environments play two episodes side by side
        live = policy.predict_action_chunk(live_batch(dataset, preprocessor, [first + step, second + step]))
    recorded = policy.recorded_batch(batch_of(dataset, preprocessor, [first + 4, second + 4]))
    torch.testing.assert_close(live, policy._act(recorded, MemorySource.pred)[0], rtol=2e-2, atol=2e-2)
    other = policy.recorded_batch(batch_of(dataset, preprocessor, [second + 4, first + 4]))
    gap = (policy._act(other, MemorySource.pred)[0] - live).abs().max()
    assert gap > 5 * (live - policy._act(recorded, MemorySource.pred)[0]).abs().max()  # far above the tolerance


@pytest.fixture(scope="module")
def sparse_companion(tiny_companion, tmp_path_factory):
    """The tiny dataset's companion of every 4th frame."""
    root = tmp_path_factory.mktemp("sparse") / "companion"
    spec = EncoderSpec(family="efficientnet_lite0", height_px=32, width_px=32, pca_dim=8, every=4)
    precompute(
        PrecomputeConfig(
            dataset=SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root)),
            output=OutputConfig("tests/sparse", str(root)), encoder=spec, device="cpu", num_workers=0,
        )
    )  # fmt: skip
    return tiny_companion._replace(companion_root=root)


def test_live_frames_of_every_nth_step_give_the_actions_of_the_recorded_latents(sparse_companion):
    options = {"n_obs_steps": 2, "history_stride": 4, "future_stride": 4, "n_future_steps": 2}
    memory = MemoryConfig(past=PastConfig(n_frames=2, stride=4, select="change"))
    policy, dataset, (preprocessor, _) = build(sparse_companion, "world_F", memory=memory, **options)
    torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    policy.eval()
    first = episodes(dataset)[0][0]
    for step in range(11):
        live = policy.predict_action_chunk(live_batch(dataset, preprocessor, [first + step]))
        recorded = policy.recorded_batch(batch_of(dataset, preprocessor, [first + step]))
        torch.testing.assert_close(live, policy._act(recorded, MemorySource.pred)[0], rtol=2e-2, atol=2e-2)
    assert policy.latent_reader.frames.n_encoded == 3


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"n_obs_steps": 2, "history_stride": 6, "future_stride": 4}, "history_stride=6"),
        ({"n_obs_steps": 1, "history_stride": 1, "future_stride": 2}, "future_stride=2"),
        ({"future_stride": 4, "memory": MemoryConfig(past=PastConfig(2, 1))}, "memory.past.stride=1"),
    ],
)
def test_strides_between_the_frames_that_are_encoded_are_refused(sparse_companion, options, named):
    options = {"n_obs_steps": 1, "n_future_steps": 1} | options
    with pytest.raises(ConfigError, match=f"{named}: .*encoder.every=4.*a multiple of 4"):
        build(sparse_companion, "world_F", **options)


def test_the_queue_replans_every_n_action_steps_and_reset_clears(tiny_companion):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, "world_F", n_obs_steps=4, chunk_size=12, n_action_steps=10
    )
    policy.eval()
    (first, _), _ = episodes(dataset)[:2]
    batches = [live_batch(dataset, preprocessor, [first + i]) for i in range(12)]
    plan = None
    for i in range(40):
        action = policy.select_action(batches[min(i, 11)])
        assert action.shape == (1, 4)
        plan = action if plan is None else plan
    assert policy._n_plans == 4
    assert policy.latent_reader.frames.n_encoded / 40 <= 0.4
    policy.reset()
    assert policy._n_plans == 0
    torch.testing.assert_close(policy.select_action(batches[0]), plan)


@pytest.mark.parametrize(
    ("policy_type", "options", "encodes"),
    [
        ("world_A", {}, True),
        ("world_A", {"use_vision": False}, False),
        ("world_B", {"use_vision": False}, False),
        ("world_B_cont", {"use_vision": False, "residual_targets": False}, False),
        ("world_C", {"use_vision": False, "use_world_input": False}, False),
        ("world_C", {}, True),
        ("world_F", {"use_vision": False, "memory": MemoryConfig(source=MemorySource.zero)}, False),
        ("world_F", {"use_vision": False, "memory": MemoryConfig(source=MemorySource.random)}, False),
        ("world_F", {"memory": MemoryConfig(source=MemorySource.copy_current)}, True),
        ("world_F", {"use_vision": False, "see_through_memory": True}, True),
    ],
)
def test_what_is_not_used_is_not_encoded(tiny_companion, policy_type, options, encodes):
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type, **options)
    batch = live_batch(dataset, preprocessor, [3, 20])
    policy.select_action(batch)
    assert (policy.latent_reader._encoder is not None) == encodes
    visual = [ft for ft in policy.config.input_features.values() if ft.type is FeatureType.VISUAL]
    assert bool(visual) == encodes  # the checkpoint asks for images only if it looks at them
    blind = {key: value for key, value in batch.items() if "image" not in key}
    policy.reset()
    if encodes:
        with pytest.raises(ValueError, match="rename_map"):
            policy.select_action(blind)
    else:
        assert policy.select_action(blind).shape == (2, 4)


@pytest.mark.parametrize("entry", ["gated", "appended"])
@pytest.mark.parametrize(("at_test", "sees"), [("pred", True), ("zero", False)])
def test_images_come_in_through_the_memory_only(tiny_companion, entry, at_test, sees):
    memory = MemoryConfig(entry=entry, eval_source=at_test)
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, "world_F", use_vision=False, see_through_memory=True, memory=memory
    )
    if entry == "gated":
        torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    batch, plans = live_batch(dataset, preprocessor, [3, 20]), []
    for scale in (1.0, 0.3):
        policy.reset()
        plans.append(policy.select_action({k: v * scale if "image" in k else v for k, v in batch.items()}))
    assert torch.equal(*plans) != sees


def test_zero_memory_runs_no_prophet(tiny_companion, monkeypatch):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", memory=MemoryConfig(eval_source="zero"))
    monkeypatch.setattr(policy.prophet, "forward", lambda *_: pytest.fail("the Prophet ran"))
    policy.select_action(live_batch(dataset, preprocessor, [3, 20]))


def test_at_gate_zero_world_f_is_world_a(tiny_companion):
    """Do no harm: same initial weights, same actions, same gradients on everything that A has."""
    plain, dataset, (preprocessor, _) = build(tiny_companion, "world_A", dropout=0.1)
    world, *_ = build(tiny_companion, "world_F", dropout=0.1)
    batch = batch_of(dataset, preprocessor, range(8))
    losses = []
    for policy in (plain, world):
        torch.manual_seed(1)
        logged = policy.forward(batch)[1]
        losses.append(logged["loss_action"])
        torch.manual_seed(1)
        policy.latent_reader.common(batch, policy.device)
        world_batch = policy.recorded_batch(batch)
        policy._act(world_batch, MemorySource.pred)[0].sum().backward()
    assert losses[0] == losses[1]
    for name, parameter in plain.named_parameters():
        other = dict(world.named_parameters())[name]
        assert torch.equal(parameter, other), name
        assert torch.equal(parameter.grad, other.grad), name


def test_the_gate_opens_and_the_memory_learns(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", lambda_world=0.0)
    batch = batch_of(dataset, preprocessor, range(16))
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    gates, through_memory = [], []
    for _ in range(4):
        optimizer.zero_grad()
        loss, _ = policy.forward(batch)
        loss.backward()
        gates.append(policy.memory.gate.value.item())
        through_memory.append(policy.prophet.head.weight.grad.norm().item())
        optimizer.step()
        policy.update()
    assert gates[0] == 0 and len(set(gates)) == 4
    assert through_memory[0] == 0 and all(norm > 0 for norm in through_memory[1:])
    assert abs(gates[1]) == pytest.approx(3e-4 * 10, rel=0.1)  # its own learning rate; AdamW moves by it


def test_detach_keeps_the_action_loss_from_the_prophet(tiny_companion):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, "world_F", lambda_world=0.0, memory=MemoryConfig(detach=True)
    )
    torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    policy.forward(batch_of(dataset, preprocessor, range(8)))[0].backward()
    assert all(p.grad is None for p in policy.prophet.parameters())
    assert policy.memory.to_out.weight.grad.abs().max() > 0


def test_readers_are_looked_for_once(tiny_companion, monkeypatch):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F")
    batch, walks, walk = batch_of(dataset, preprocessor, range(8)), [], policy.named_modules
    monkeypatch.setattr(policy, "named_modules", lambda *args, **kwargs: walks.append(1) or walk(*args, **kwargs))
    for _ in range(3):  # as LeRobot's trainer
        policy.train()
        policy.forward(batch)
        policy.update()
    assert len(walks) == 1


@pytest.mark.parametrize("source", TRAINING_SOURCES)
def test_every_memory_source_trains_and_acts(tiny_companion, source):
    policy, dataset, (preprocessor, _) = build(
        tiny_companion, "world_F", memory=MemoryConfig(source=source, schedule_steps=2)
    )
    torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    (first, _), (second, _) = episodes(dataset)[:2]
    batch = batch_of(dataset, preprocessor, [first + 2, first + 3, second + 2, second + 3])
    for _ in range(3):
        loss, _ = policy.forward(batch)
        loss.backward()
        policy.update()
        assert torch.isfinite(loss)
    assert policy.select_action(live_batch(dataset, preprocessor, [first, second])).shape == (2, 4)


def test_sources_change_the_action_once_the_gate_is_open(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F")
    torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    torch.nn.init.normal_(policy.prophet.head.weight, std=0.3)
    torch.nn.init.normal_(policy.memory.position)  # by which alone the order of future steps counts
    (first, _), (second, _) = episodes(dataset)[:2]
    policy.eval()
    out = {}
    for source in TRAINING_SOURCES:
        world_batch = policy.recorded_batch(batch_of(dataset, preprocessor, [first + 2, second + 2]))
        out[source] = policy._act(world_batch, source)[0]
    reference = out.pop(MemorySource.pred)
    for source, actions in out.items():
        if source is not MemorySource.scheduled or policy._step < policy.config.memory.schedule_steps:
            assert not torch.allclose(actions, reference, atol=1e-4), source


def test_draws_depend_on_the_step_alone_so_that_a_resumed_run_repeats_them(tiny_companion, tmp_path):
    options = {"memory": MemoryConfig(source=MemorySource.random)}
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", **options)
    torch.nn.init.constant_(policy.memory.gate.value, 1.0)
    batch = batch_of(dataset, preprocessor, range(4))
    for _ in range(3):
        policy.update()
    policy.save_pretrained(tmp_path)
    resumed = WorldFPolicy.from_pretrained(tmp_path, dataset_meta=dataset.meta).train()
    assert resumed._step == 3
    expected = policy.forward(batch)[0]
    assert torch.equal(resumed.forward(batch)[0], expected)
    resumed.update()
    assert not torch.equal(resumed.forward(batch)[0], expected)


def test_tasks_must_be_told(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_A")
    batch = batch_of(dataset, preprocessor, range(2))
    with pytest.raises(ValueError, match="task"):
        policy.forward(batch | {"task": ["lift the cube", " "]})
    with pytest.raises(ValueError, match="use_language"):
        policy.forward({key: value for key, value in batch.items() if key != "task"})


def test_gates_and_matrices_have_their_own_optimiser_groups(tiny_companion):
    policy, *_ = build(tiny_companion, "world_F")
    groups = policy.get_optim_params()
    everything = [id(p) for group in groups for p in group["params"]]
    assert sorted(everything) == sorted(id(p) for p in policy.parameters())
    by_name = {id(p): name for name, p in policy.named_parameters()}
    gate = next(group for group in groups if "lr" in group)
    assert [by_name[id(p)] for p in gate["params"]] == ["memory.gate.value"]
    assert gate["lr"] == pytest.approx(3e-3) and gate["weight_decay"] == 0
    decayed = {by_name[id(p)] for p in groups[0]["params"]}
    assert "trunk.encoder.layers.0.self_attn.in_proj_weight" in decayed
    assert not [name for name in decayed if name.endswith(("bias", "position", "time", "cell", "queries"))]


def test_metrics_file_holds_means_of_windows(tiny_companion, tmp_path):
    path = tmp_path / "outputs" / "metrics.jsonl"  # into a folder that isn't there yet
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", metrics_file=str(path), metrics_every=2)
    seen = []
    for i in range(4):
        loss, logged = policy.forward(batch_of(dataset, preprocessor, range(i, i + 4)))
        loss.backward()
        policy.update()
        seen.append(logged["loss_action"])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["loss_action"] == pytest.approx((seen[0] + seen[1]) / 2, rel=1e-5)
    assert lines[1]["loss_action"] == pytest.approx((seen[2] + seen[3]) / 2, rel=1e-5)
    assert "grad_norm_gate" in lines[0] and "world_gate" in lines[0]


def test_imagine_gives_latents_as_the_companion_stores_them(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F")
    imagined = policy.predict_latents(batch_of(dataset, preprocessor, [3, 20]))
    spec = policy.config.encoder
    assert imagined.shape == (2, 2, spec.n_tokens, spec.dim)
    # an untrained residual Prophet copies the current latent
    current = torch.tensor(policy.latent_reader.companion.table.latents[[3, 20]], device=DEVICE).float()
    torch.testing.assert_close(imagined.flatten(2), current[:, None].expand(-1, 2, -1), rtol=1e-3, atol=1e-2)


def test_latents_on_the_device_give_the_same_windows(tiny_companion):
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F")
    batch = batch_of(dataset, preprocessor, range(len(dataset)))
    mapped = policy.recorded_batch(batch)
    policy.config.companion.on_device = True
    policy.latent_reader._gpu_table = None
    held = policy.recorded_batch(batch)
    assert policy.latent_reader._gpu_table
    for name in ("history", "history_is_pad", "future", "future_is_pad"):
        assert torch.equal(getattr(mapped, name), getattr(held, name)), name


@pytest.mark.skipif(DEVICE != "cpu", reason="counts on a CPU what an accelerator would wait for")
@pytest.mark.parametrize("on_device", [True, False], ids=["on the device", "on the host"])
@pytest.mark.parametrize("policy_type", ["world_B", "world_F"])  # tokens, latents
def test_episodes_without_latents_are_refused_and_cost_no_wait(tiny_companion, policy_type, on_device, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    host_syncs = importlib.import_module("host_syncs")
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    reader, good, bad = policy.latent_reader, batch_of(dataset, preprocessor, [3, 40]), [3, 13]
    expected = policy.forward(dict(good))[0]
    latents = np.array(reader.companion.table.latents)
    latents[12:29] = np.nan  # episode 1
    reader.companion.table.latents = latents
    reader.companion.info = replace(reader.companion.info, excluded=[1])
    policy.config.companion.on_device, reader._gpu_table = on_device, None
    assert torch.equal(policy.forward(dict(good))[0], expected)
    assert bool(reader._gpu_table) == on_device
    with host_syncs.HostSyncs() as syncs:
        policy.forward(dict(good))[0].backward()
    assert syncs.total == (not on_device), syncs.waits  # the host reads the index, once
    policy.update()
    with pytest.raises(ConfigError, match="episode 1 has no latents in companion .*without episodes .1."):
        policy.forward(batch_of(dataset, preprocessor, bad))
        policy.update()  # once the trainer has the loss anyway
    with pytest.raises(ConfigError, match="episode 1 has no latents"):
        policy.eval().recorded_batch(batch_of(dataset, preprocessor, bad))


@pytest.mark.parametrize("policy_type", [*TYPES, "smolvla_world", "qwen_world_fplus"])
def test_every_type_is_what_lerobot_s_own_policies_are(policy_type):
    """As LeRobot's tests/policies/test_policies.py looks at its own."""
    policy = get_policy_class(policy_type)
    config = PreTrainedConfig.get_choice_class(policy_type)
    assert issubclass(policy, PreTrainedPolicy) and policy.name == policy_type and policy.config_class is config
    assert issubclass(config, inspect.signature(policy.__init__).parameters["config"].annotation)


@pytest.mark.skipif(not hasattr(PreTrainedPolicy, "drop_queued_actions"), reason="LeRobot 0.6.1 has no such call")
@pytest.mark.parametrize("policy_type", TYPES)
def test_a_new_instruction_is_planned_for_at_once(tiny_companion, policy_type):
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    policy.eval().reset()
    policy.select_action(live_batch(dataset, preprocessor, [0]))
    policy.drop_queued_actions()
    batch = live_batch(dataset, preprocessor, [0]) | {"task": ["open the drawer"]}
    after = policy.select_action(batch)
    assert policy.latent_reader.frames.now == 1  # the frames stay
    assert torch.isfinite(after).all() and policy._n_plans == 2


@pytest.mark.parametrize("policy_type", TYPES)
def test_after_a_new_instruction_no_action_of_the_old_plan_is_played(tiny_companion, policy_type):
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    policy.eval().reset()
    batch = live_batch(dataset, preprocessor, [0])
    for task, plans in (("push", 1), ("push", 1), ("push", 2), ("open the drawer", 3)):
        policy.select_action(batch | {"task": [task]})
        assert policy.latent_reader.frames.now >= 0 and policy._n_plans == plans


def test_two_tasks_at_once_do_not_share_a_policy_without_a_word(tiny_companion):
    """As `lerobot-eval --env.max_parallel_tasks=2` does: each thread resets, then acts."""
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_A")
    batch = live_batch(dataset, preprocessor, [0])
    meet = threading.Barrier(2)

    def what_is_said():
        policy.reset()
        try:
            meet.wait()
            policy.select_action(batch)
            meet.wait(120)  # until the other one was refused
        except ObservationError as error:
            meet.abort()
            return str(error)
        except threading.BrokenBarrierError:
            return ""

    with ThreadPoolExecutor(2) as pool:
        said = [future.result() for future in [pool.submit(what_is_said) for _ in range(2)]]
    assert "" in said and "env.max_parallel_tasks=1" in max(said)
