"""Policies that start from a Prophet: the same predictions, frozen or tuned, or as their trunk; appended memory."""

import json
import shutil

import draccus
import pytest
import torch
from draccus.utils import DecodingError
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies import get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.constants import OBS_STATE
from safetensors.torch import load_file, save_file

import lerobot_policy_world_modality  # noqa: F401 - registers the types
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts
from tests.plugin import qwen_helpers, smolvla_helpers
from tests.plugin.helpers import TYPES, batch_of, build, live_batch, make_config, open_dataset, open_gates
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.configs import MemoryConfig, MemorySource, ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import open_companion
from world_modality_core.prophet.network import Prophet
from world_modality_core.prophet.saved_prophet import ProphetCheckpoint
from world_modality_core.prophet.train_prophet import train_prophet
from world_modality_core.prophet.training_options import ProphetTrainingConfig

FRAMES = [3, 9, 14, 20, 30, 41, 50, 60]
KEPT = ("time", "cell")


def train(tiny, out, **more):
    """A tiny Prophet, trained enough to differ from copying."""
    short = {"n_future_steps": 2, "future_stride": 2, "history_stride": 2, "steps": 30, "batch_size": 16, "lr": 1e-2}
    train_prophet(
        ProphetTrainingConfig(
            companions=str(tiny.companion_root), sources=str(tiny.source_root), output_dir=str(out), warmup_steps=1,
            device="cpu", eval_split=0.0, **short | more,
        )
    )  # fmt: skip
    return str(out)


@pytest.fixture(scope="module")
def folder(tiny_companion, tmp_path_factory):
    """A Prophet that reads latents, state and task; of the tiny policies' sizes."""
    prophet = ProphetConfig(d_model=32, n_layers=1, n_heads=2, per_cell=True, use_state=True, use_language=True)
    return train(tiny_companion, tmp_path_factory.mktemp("prophets") / "conditioned", prophet=prophet)


@pytest.fixture(scope="module")
def bare(tiny_companion, tmp_path_factory):
    """A Prophet that reads latents only."""
    prophet = ProphetConfig(d_model=32, n_layers=1, n_heads=2)
    return train(tiny_companion, tmp_path_factory.mktemp("prophets") / "bare", prophet=prophet)


def build_from(tiny_companion, folder, freeze=False, **options):
    """A world_F whose Prophet starts from a folder, which also says its strides."""
    return build(tiny_companion, "world_F", prophet=ProphetConfig(init_from=folder, freeze=freeze), **options)


def own_prediction(folder, policy, raw_state, tasks, index):
    """What the folder's Prophet predicts at frames, computed without the policy: (b, k, p, d) as stored."""
    made = ProphetCheckpoint.read(folder, "prophet.init_from")
    weights = made.weights()
    prophet = Prophet(
        made.encoder.n_tokens, made.encoder.dim, made.n_obs_steps, made.n_future_steps, made.prophet,
        state_dim=0 if weights.state_scale is None else len(weights.state_scale), language_dim=made.language.dim,
    ).eval()  # fmt: skip
    prophet.load_state_dict(weights.prophet)
    offsets = [-i * made.history_stride for i in reversed(range(made.n_obs_steps))]
    latents, is_pad = policy.latent_reader.companion.table.gather(torch.tensor(index), offsets)
    history = (latents.float().unflatten(-1, weights.mean.shape) - weights.mean) / weights.std
    state = language = None
    if made.prophet.use_state:
        state = (raw_state - weights.state_shift) / weights.state_scale
    if made.prophet.use_language:
        language = policy.latent_reader.sentences(torch.device("cpu")).encode(tasks)
    with torch.no_grad():
        return prophet(history, is_pad, state, language).best() * weights.std + weights.mean


def raw(dataset, index):
    """States and tasks of frames as recorded."""
    items = [dataset[i] for i in index]
    return torch.stack([item[OBS_STATE] for item in items]), [item["task"] for item in items]


@pytest.mark.parametrize("which", ["folder", "bare"])
def test_the_policy_s_prophet_predicts_what_the_folder_s_does(tiny_companion, which, request):
    folder = request.getfixturevalue(which)
    policy, dataset, (preprocessor, _) = build_from(tiny_companion, folder)
    assert policy.config.history_stride == policy.config.future_stride == 2  # taken over
    assert policy.config.prophet.d_model == 32 and policy.config.prophet.n_layers == 1
    assert policy.config.prophet.initialised_from == folder and policy.config.prophet.init_from is None
    got = policy.eval().predict_latents(batch_of(dataset, preprocessor, FRAMES))
    expected = own_prediction(folder, policy, *raw(dataset, FRAMES), FRAMES)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    current = policy.latent_reader.companion.table.gather(torch.tensor(FRAMES), [0])[0].float().view_as(got[:, :1])
    assert (got - current).abs().max() > 0.05  # it is no copy of the present


def test_other_statistics_of_the_dataset_change_nothing_but_the_units(tiny_companion, folder):
    config = make_config("world_F", tiny_companion.companion_root, prophet=ProphetConfig(init_from=folder))
    dataset = open_dataset(tiny_companion, config)
    stats = dataset.meta.stats[OBS_STATE]
    dataset.meta.stats[OBS_STATE] = stats | {"mean": stats["mean"] + 3.0, "std": stats["std"] * 0.25}
    policy = make_policy(config, ds_meta=dataset.meta).eval()
    batch = batch_of(dataset, make_pre_post_processors(config, dataset_stats=dataset.meta.stats)[0], FRAMES)
    states, tasks = raw(dataset, FRAMES)
    expected = own_prediction(folder, policy, states, tasks, FRAMES)
    torch.testing.assert_close(policy.predict_latents(batch), expected, rtol=1e-4, atol=1e-4)
    batch[OBS_STATE] = batch[OBS_STATE] + 1  # positive control: the state matters
    assert not torch.allclose(policy.predict_latents(batch), expected, rtol=1e-4, atol=1e-4)


def test_a_checkpoint_needs_the_folder_no_more_and_can_be_started_from(tiny_companion, folder, tmp_path):
    gone = shutil.copytree(folder, tmp_path / "prophet")
    policy, dataset, (preprocessor, _) = build_from(tiny_companion, str(gone), freeze=True)
    with torch.no_grad():
        policy.prophet.head.weight.add_(0.01)  # as if trained on: what is saved counts, not the folder
    batch = batch_of(dataset, preprocessor, FRAMES)
    expected = policy.eval().predict_latents(batch)
    policy.save_pretrained(tmp_path / "policy")
    preprocessor.save_pretrained(tmp_path / "policy")
    shutil.rmtree(gone)
    loaded = get_policy_class("world_F").from_pretrained(tmp_path / "policy", dataset_meta=dataset.meta)
    assert torch.equal(loaded.eval().predict_latents(batch), expected) and loaded.config.prophet.freeze
    # resuming: with a dataset, from pretrained_path
    config = make_config("world_F").from_pretrained(tmp_path / "policy")
    config.pretrained_path = tmp_path / "policy"
    assert torch.equal(make_policy(config, ds_meta=dataset.meta).eval().predict_latents(batch), expected)
    # another policy starts from this policy's Prophet
    other, *_ = build_from(tiny_companion, str(tmp_path / "policy"))
    torch.testing.assert_close(other.eval().predict_latents(batch), expected, rtol=1e-4, atol=1e-4)


def train_steps(policy, batch, n=3):
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-2)
    for _ in range(n):
        optimizer.zero_grad()
        loss, logged = policy.train().forward(batch)
        loss.backward()
        optimizer.step()
        policy.update()
    return loss, dict(logged.items()), optimizer


@pytest.mark.parametrize("freeze", [True, False])
def test_frozen_means_frozen(tiny_companion, folder, freeze):
    policy, dataset, (preprocessor, _) = build_from(tiny_companion, folder, freeze=freeze)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    policy.prophet.requires_grad_(not freeze)
    loss, values, optimizer = train_steps(policy, batch_of(dataset, preprocessor, FRAMES))
    changed = {name for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    prophets = {name for name in before if name.startswith("prophet.")}
    assert (changed & prophets == set()) if freeze else (prophets <= changed)
    assert policy.prophet.training is not freeze and policy.memory.training
    optimised = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all((id(p) in optimised) is not freeze for p in policy.prophet.parameters())
    for name, parameter in policy.named_parameters():
        if name not in prophets:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
            assert name in changed, name
    # lambda_world weighs nothing, but the skill is logged all the same
    assert {"loss_world", "prophet_skill_2"} <= set(values)
    assert (abs(float(loss.detach()) - values["loss_action"]) < 1e-6) is freeze


def test_a_frozen_trunk_keeps_the_prophet_s_layers_and_learns_to_act_from_them(tiny_companion, folder):
    options = {"trunk_init_from": folder, "history_stride": 2, "freeze_trunk": True}
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_A", **options)
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    train_steps(policy, batch_of(dataset, preprocessor, FRAMES))
    kept = {name for name, value in policy.trunk.state_dict().items() if torch.equal(value, before[f"trunk.{name}"])}
    layers = {name for name in policy.trunk.state_dict() if name.startswith(("encoder.", "latent.")) or name in KEPT}
    assert kept == layers
    with pytest.raises(ConfigError, match="freeze_trunk=true without trunk_init_from"):
        build(tiny_companion, "world_A", freeze_trunk=True)


def test_adapters_that_let_parameters_train_again_don_t_thaw_it(tiny_companion, folder):
    policy, dataset, (preprocessor, _) = build_from(tiny_companion, folder, freeze=True)
    policy.requires_grad_(True)  # what PEFT does to its copies of whole modules
    open_gates(policy)
    policy.forward(batch_of(dataset, preprocessor, FRAMES))[0].backward()
    assert all(p.grad is None for p in policy.prophet.parameters())
    assert policy.memory.to_out.weight.grad.abs().max() > 0


def test_options_that_are_another_prophet_s_are_refused(tiny_companion, folder):
    with pytest.raises(ConfigError, match=r"n_future_steps=5 was given, it has 2.*n_layers=4 was given, it has 1"):
        make_config("world_F", n_future_steps=5, prophet=ProphetConfig(init_from=folder, n_layers=4))
    make_config("world_F", prophet=ProphetConfig(init_from=folder, n_layers=1, dropout=0.3))  # agrees
    with pytest.raises(ConfigError, match="--policy.use_state=true"):
        make_config("world_F", use_state=False, prophet=ProphetConfig(init_from=folder))
    with pytest.raises(ConfigError, match="has learned nothing"):
        build(tiny_companion, "world_F", prophet=ProphetConfig(freeze=True))
    config = make_config("world_F", prophet=ProphetConfig(init_from=folder), pretrained_path="a_checkpoint")
    with pytest.raises(ConfigError, match="give one of them"):
        check_starts(config, open_companion(root=tiny_companion.companion_root))
    config.pretrained_path = None
    with pytest.raises(ConfigError, match="needs a dataset and its companion"):
        check_starts(config, None)


def test_what_is_typed_on_the_command_line_counts_as_given(folder):
    def parse(*more):
        typed = ["--policy.type=world_F", "--dataset.repo_id=any/thing", f"--policy.prophet.init_from={folder}"]
        return draccus.parse(TrainPipelineConfig, args=[*typed, "--policy.push_to_hub=false", *more]).policy

    policy = parse("--policy.prophet.freeze=true", "--policy.d_model=64", "--policy.future_stride=2")
    assert (policy.n_future_steps, policy.future_stride, policy.d_model, policy.prophet.d_model) == (2, 2, 64, 32)
    assert policy.prophet.freeze and policy.prophet.use_state and policy.language.dim == 384
    for option in ("prophet.use_language=false", "future_stride=1"):
        with pytest.raises(DecodingError, match=option.replace("false", "False") + " was given"):
            parse(f"--policy.{option}")


def test_a_prophet_of_other_latents_is_refused(tiny_companion, folder, tmp_path):
    other = shutil.copytree(folder, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    config["encoder"]["pca_sha256"] = "0" * 64
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="pca_sha256: '0000"):
        build_from(tiny_companion, str(other))
    with pytest.raises(ConfigError, match=r"trunk_init_from=.*pca_sha256: '0000"):
        build(tiny_companion, "world_A", trunk_init_from=str(other), history_stride=2)


# The Prophet's layers as a policy's trunk.


@pytest.mark.parametrize("policy_type", TYPES)
def test_a_trunk_starts_from_the_prophet_s_layers(tiny_companion, folder, policy_type):
    options = {"memory": MemoryConfig(n_heads=2)} if policy_type == "world_F" else {}
    plain, dataset, (preprocessor, _) = build(tiny_companion, policy_type, history_stride=2, **options)
    policy, *_ = build(tiny_companion, policy_type, history_stride=2, trunk_init_from=folder, **options)
    made = ProphetCheckpoint.read(folder, "trunk_init_from")
    weights = made.weights()
    assert torch.equal(policy.trunk.latent.weight, weights.prophet["embed.weight"])
    assert torch.equal(policy.trunk.time, weights.prophet["time"][:3])
    assert torch.equal(policy.trunk.cell, weights.prophet["slot"])
    assert torch.equal(policy.trunk.language.weight, weights.prophet["language.weight"])
    for name, value in policy.trunk.encoder.state_dict().items():
        assert torch.equal(value, weights.prophet[f"encoder.{name}"]), name
    states, _ = raw(dataset, FRAMES)
    batch = batch_of(dataset, preprocessor, FRAMES)
    expected = torch.nn.functional.linear(
        (states - weights.state_shift) / weights.state_scale,
        weights.prophet["state.weight"],
        weights.prophet["state.bias"],
    )
    torch.testing.assert_close(policy.trunk.state(batch[OBS_STATE]), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(policy.space.std, weights.std)
    # positive control: a plain policy has other weights there, and the same ones elsewhere
    assert not torch.equal(plain.trunk.latent.weight, policy.trunk.latent.weight)
    assert torch.equal(plain.trunk.queries, policy.trunk.queries)
    assert torch.equal(plain.action_head[1].weight, policy.action_head[1].weight)
    assert policy.config.trunk_initialised_from == folder and policy.config.trunk_init_from is None
    assert torch.isfinite(policy.forward(batch)[0])


def test_trunk_and_prophet_can_start_from_the_same_folder(tiny_companion, folder, tmp_path):
    policy, *_ = build_from(tiny_companion, folder, trunk_init_from=folder, history_stride=2)
    assert torch.equal(policy.trunk.latent.weight, policy.prophet.embed.weight)
    other = shutil.copytree(folder, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["space.mean"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ConfigError, match="name the same folder for both"):
        build_from(tiny_companion, folder, trunk_init_from=str(other), history_stride=2)


def test_a_prophet_without_conditioning_leaves_those_inputs_as_they_are(tiny_companion, bare):
    plain, *_ = build(tiny_companion, "world_A", history_stride=2, per_cell=False)
    policy, *_ = build(tiny_companion, "world_A", history_stride=2, per_cell=False, trunk_init_from=bare)
    assert torch.equal(plain.trunk.state.weight, policy.trunk.state.weight)
    assert not torch.equal(plain.trunk.latent.weight, policy.trunk.latent.weight)


def test_a_trunk_of_other_sizes_is_refused_with_what_to_type(folder):
    with pytest.raises(ConfigError) as error:
        make_config("world_A", trunk_init_from=folder, d_model=64, use_state=False, per_cell=False)
    message = str(error.value)
    for flag in (
        "--policy.d_model=32",
        "--policy.use_state=true",
        "--policy.per_cell=true",
        "--policy.history_stride=2",
    ):
        assert flag in message
    assert "n_layers" not in message


# Where the memory enters, and what of it.


VARIANTS = [("gated", "latents"), ("gated", "hidden"), ("appended", "latents"), ("appended", "hidden")]


@pytest.mark.parametrize("per_cell", [True, False])
@pytest.mark.parametrize("entry, content", VARIANTS)
def test_every_entry_and_content_trains_and_is_read(tiny_companion, entry, content, per_cell):
    memory = MemoryConfig(entry=entry, content=content)
    prophet = ProphetConfig(n_hypotheses=2, n_heads=2, per_cell=per_cell)
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", memory=memory, prophet=prophet)
    batch = batch_of(dataset, preprocessor, FRAMES)
    _, values, _ = train_steps(policy, batch, 2)
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
    assert ("world_gate" in values) is (entry == "gated")
    open_gates(policy)
    planned = policy.plan_recorded(batch, "pred")
    zero = policy.plan_recorded(batch, "zero")
    assert not torch.allclose(planned, zero, atol=1e-4)  # the memory changes the actions
    # ... of its own sample only
    world_batch = policy.recorded_batch(batch)
    changed = policy.recorded_batch(batch)
    changed.history = changed.history.clone()
    changed.history[0] += 1
    with torch.no_grad():
        one, other = policy._act(world_batch, MemorySource.pred)[0], policy._act(changed, MemorySource.pred)[0]
    assert torch.allclose(one[1:], other[1:], atol=1e-6) and not torch.allclose(one[0], other[0], atol=1e-4)
    shown = live_batch(dataset, preprocessor, [3, 20])
    policy.reset()
    assert policy.select_action(shown).shape == (2, 4)


@pytest.mark.parametrize("content", ["latents", "hidden"])
def test_an_appended_memory_without_a_partner_is_not_read(tiny_companion, content):
    memory = MemoryConfig(entry="appended", content=content)
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", memory=memory)
    batch = batch_of(dataset, preprocessor, [3, 5, 20])  # 3 and 5 are of one episode, 20 alone in its task
    before = policy.plan_recorded(batch, "shuffle_within_task")
    with torch.no_grad():
        policy.memory.position.normal_()
    after = policy.plan_recorded(batch, "shuffle_within_task")
    assert torch.equal(before, after)
    open_dataset_batch = batch_of(dataset, preprocessor, [3, 35, 20])  # 3 and 35 are episodes of one task
    read = policy.plan_recorded(open_dataset_batch, "shuffle_within_task")
    with torch.no_grad():
        policy.memory.position.normal_()
    again = policy.plan_recorded(open_dataset_batch, "shuffle_within_task")
    assert torch.equal(read[2], again[2]) and not torch.allclose(read[0], again[0], atol=1e-5)


@pytest.fixture(scope="module")
def telling(tiny_companion, tmp_path_factory):
    """A Prophet that forecasts the robot's future states."""
    prophet = ProphetConfig(d_model=32, n_layers=1, n_heads=2, use_state=True, use_language=True, tells_state=True)
    out = tmp_path_factory.mktemp("prophets") / "telling"
    return train(tiny_companion, out, prophet=prophet, state_loss_weight=1.0)


STATES = MemoryConfig(entry="appended", content="states")


@pytest.mark.parametrize("sees", [True, False])
def test_future_states_are_a_memory(tiny_companion, telling, sees, tmp_path):
    policy, dataset, processors = build_from(
        tiny_companion, telling, freeze=True, memory=STATES, use_vision=sees, see_through_memory=not sees
    )
    batch = batch_of(dataset, processors[0], FRAMES)
    train_steps(policy, batch, 2)
    policy.eval()
    with torch.no_grad():
        world_batch = policy.recorded_batch(batch)
        told = policy.memory_of(world_batch, MemorySource.pred).tokens
        ours = policy.prophet(
            world_batch.history, world_batch.history_is_pad, world_batch.state, world_batch.language
        ).displacement
    assert told.shape == (len(FRAMES), 2, dataset.meta.features[OBS_STATE]["shape"][0])
    assert torch.equal(told, ours) and told.std() > 1e-3
    planned = {name: policy.plan_recorded(batch, name) for name in ("pred", "zero", "shuffle", "copy_current")}
    assert torch.equal(planned["copy_current"], planned["zero"])  # a robot that stays where it is
    assert not torch.allclose(planned["pred"], planned["zero"], atol=1e-5)
    assert not torch.allclose(planned["pred"], planned["shuffle"], atol=1e-5)
    policy.save_pretrained(tmp_path)
    again = type(policy).from_pretrained(tmp_path)
    again.eval()
    shown = live_batch(dataset, processors[0], [3, 20])
    assert torch.equal(policy.select_action(shown), again.select_action(shown))


def test_how_far_a_state_moves_is_not_normalised_away(tiny_companion, telling):
    policy, *_ = build_from(tiny_companion, telling, freeze=True, memory=STATES)
    step = torch.ones(1, 2, policy.state_dim)
    assert torch.allclose(policy.memory(2 * step) - policy.memory(step), policy.memory(step) - policy.memory(0 * step))


def test_future_states_that_nobody_tells_are_refused(tiny_companion, telling, folder):
    with pytest.raises(ConfigError, match="forecasts no states.*tells_state=true"):
        build_from(tiny_companion, folder, memory=STATES)
    with pytest.raises(ConfigError, match="entry='gated'.*entry=appended"):
        MemoryConfig(content="states")
    with pytest.raises(ConfigError, match="no policy teaches"):
        build(tiny_companion, "world_F", prophet=ProphetConfig(tells_state=True, use_state=True))
    with pytest.raises(ConfigError, match="'oracle' has latents only"):
        MemoryConfig(entry="appended", content="states", source=MemorySource.oracle)


@pytest.mark.parametrize("entry, content", VARIANTS)
def test_with_one_seed_every_entry_starts_from_the_same_a(tiny_companion, entry, content):
    plain, *_ = build(tiny_companion, "world_A")
    policy, *_ = build(tiny_companion, "world_F", memory=MemoryConfig(entry=entry, content=content))
    state = policy.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(state[name], value), name


def test_detached_hidden_states_don_t_bend_the_prophet(tiny_companion):
    for detach in (True, False):
        memory = MemoryConfig(entry="appended", content="hidden", detach=detach)
        policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", memory=memory, lambda_world=0.0)
        policy.forward(batch_of(dataset, preprocessor, FRAMES))[0].backward()
        grad = policy.prophet.embed.weight.grad
        assert (grad is None) is detach


def test_sources_without_hidden_states_are_refused(tiny_companion):
    with pytest.raises(ConfigError, match="'copy_current' has latents only.*memory.content=latents"):
        MemoryConfig(content="hidden", source=MemorySource.copy_current)
    with pytest.raises(ConfigError, match="gate_warmup_steps=5"):
        MemoryConfig(entry="appended", gate_warmup_steps=5)
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_F", memory=MemoryConfig(content="hidden"))
    with pytest.raises(ConfigError, match="'oracle' has latents only"):
        policy.plan_recorded(batch_of(dataset, preprocessor, FRAMES), "oracle")


@pytest.mark.parametrize("policy_type", ["smolvla_world", "qwen_world_fplus"])
def test_only_our_trunk_takes_appended_memory(policy_type):
    with pytest.raises(ConfigError, match="memory.entry='appended'"):
        PreTrainedConfig.get_choice_class(policy_type)(memory=MemoryConfig(entry="appended"), device="cpu")


@pytest.mark.parametrize("policy_type", ["smolvla_world", "qwen_world_fplus"])
def test_the_vlas_start_from_it_too(tiny_companion, folder, policy_type, tmp_path):
    prophet = ProphetConfig(init_from=folder, freeze=True)
    if policy_type == "smolvla_world":
        vlm = make_smolvlm(tmp_path / "vlm", save_weights=True)
        policy, dataset, (preprocessor, _) = smolvla_helpers.build(tiny_companion, vlm, prophet=prophet)
    else:
        vlm = make_qwen(tmp_path / "vlm", "qwen3_vl")
        policy, dataset, (preprocessor, _) = qwen_helpers.build(tiny_companion, vlm, prophet=prophet)
    assert policy.config.future_stride == 2 and policy.config.prophet.initialised_from == folder
    batch = batch_of(dataset, preprocessor, FRAMES[:4])
    expected = own_prediction(folder, policy, *raw(dataset, FRAMES[:4]), FRAMES[:4])
    torch.testing.assert_close(policy.predict_latents(batch), expected, rtol=1e-4, atol=1e-4)
    loss, logged = policy.train().forward(batch)
    loss.backward()
    assert all(p.grad is None for p in policy.world.prophet.parameters()) and not policy.world.prophet.training
    assert dict(logged.items())["prophet_skill"] and float(loss.detach()) == pytest.approx(
        logged["loss_action"], abs=1e-5
    )


# Offline planning.


@pytest.mark.parametrize("policy_type", TYPES)
def test_plans_from_recorded_frames_are_the_training_forward_s(tiny_companion, policy_type):
    policy, dataset, (preprocessor, _) = build(tiny_companion, policy_type)
    batch = batch_of(dataset, preprocessor, FRAMES)
    open_gates(policy)
    planned = policy.plan_recorded(batch)
    loss = (planned - batch["action"]).abs().mean(-1)
    kept = ~batch["action_is_pad"]
    expected = policy.forward(batch, reduction="none")[1]["loss_action"]
    per_sample = (loss * kept).sum(1) / kept.sum(1).clamp(min=1)
    assert float(per_sample.mean()) == pytest.approx(float(expected), abs=1e-5)
    other = policy.plan_recorded(batch, "oracle", noise=torch.zeros(1))
    assert torch.equal(other, planned) is (policy_type != "world_F")
