"""Every `*_world` type does its host no harm, and reads past, present and future through one declaration."""

import copy
import inspect
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.pi05 import PI05Config
from safetensors.torch import load_file, save_file

from tests.plugin.helpers import batch_of, live_batch, open_gates
from tests.plugin.variant_helpers import HOSTS, NEEDS_DIFFUSERS, Hosts
from world_modality_core.configs import MemoryConfig, PastConfig, ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.gated_attention import Gate

# Frames of three episodes, both tasks.
FRAMES = [3, 5, 14, 16, 31, 33]


@pytest.fixture(scope="module")
def hosts(tiny_companion, tmp_path_factory):
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield Hosts(tmp_path_factory.mktemp("hosts"), tiny_companion, monkeypatch)


def step(policy, batch, seed=1):
    """Loss of the base, loss, and gradients of one training step."""
    policy.train().zero_grad()
    torch.manual_seed(seed)
    loss, logged = policy.forward(dict(batch))
    loss.backward()
    return loss.detach(), logged, {name: p.grad for name, p in policy.named_parameters()}


def act(policy, observation, n=3, seed=2):
    """The first actions of an episode."""
    policy.eval().reset()
    torch.manual_seed(seed)
    return torch.stack([policy.select_action(dict(observation)) for _ in range(n)])


@pytest.mark.parametrize("host", HOSTS)
def test_its_class_is_what_lerobot_s_own_policies_are(host):
    """As LeRobot's tests/policies/test_policies.py looks at its own."""
    policy, config = get_policy_class(f"{host}_world"), PreTrainedConfig.get_choice_class(f"{host}_world")
    assert policy.name == f"{host}_world" and policy.config_class is config
    assert issubclass(config, inspect.signature(policy.__init__).parameters["config"].annotation)


@pytest.mark.parametrize("host", HOSTS)
def test_at_closed_gates_it_is_its_host_bit_for_bit(hosts, host):
    plain, dataset, (preprocessor, _) = hosts.build(host)
    world, _, (world_preprocessor, _) = hosts.build(f"{host}_world")
    weights = world.state_dict()
    for name, value in plain.state_dict().items():
        assert torch.equal(weights[name], value), name
    assert all(name.startswith("world.") or ".world_reader." in name for name in weights.keys() - plain.state_dict())
    batch = batch_of(dataset, preprocessor, FRAMES)
    loss, _, gradients = step(plain, batch)
    _, logged, world_gradients = step(world, batch_of(dataset, world_preprocessor, FRAMES))
    assert logged["loss_action"] == loss and logged["world_gate"] == 0
    for name, gradient in gradients.items():
        mine = world_gradients[name]
        assert (gradient is None and mine is None) or torch.equal(mine, gradient), name
    seen = live_batch(LeRobotDataset(dataset.repo_id, root=dataset.root), preprocessor, [3, 20])
    world_seen = live_batch(LeRobotDataset(dataset.repo_id, root=dataset.root), world_preprocessor, [3, 20])
    expected = act(plain, seen)
    assert torch.equal(act(world, world_seen), expected)

    open_gates(world)  # the control: what the memory holds is seen as soon as a gate lets it through
    assert step(world, batch)[1]["loss_action"] != loss
    assert not torch.equal(act(world, world_seen), expected)


@pytest.mark.parametrize("host", HOSTS)
def test_everything_of_the_world_learns_at_the_rates_that_it_should(hosts, host):
    policy, dataset, (preprocessor, _) = hosts.build(f"{host}_world")
    batch = batch_of(dataset, preprocessor, FRAMES)
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    gates = {id(p) for module in policy.modules() if isinstance(module, Gate) for p in module.parameters()}
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted({id(p) for p in policy.parameters() if p.requires_grad})
    for group in optimizer.param_groups:
        held = {id(p) for p in group["params"]}
        if held & gates:
            assert held == gates and group["lr"] == 10 * policy.config.optimizer_lr and group["weight_decay"] == 0
    for _ in range(2):
        optimizer.zero_grad()
        loss, logged = policy.forward(dict(batch))
        loss.backward()
        optimizer.step()
        policy.update()
    assert logged["loss_world"] > 0 and logged["world_gate"] != 0
    for name, parameter in policy.named_parameters():
        if name.startswith("world.") or ".world_reader." in name:
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("host", HOSTS)
def test_saved_and_loaded_without_dataset_it_acts_on_raw_frames_as_before(hosts, host, tmp_path):
    policy, dataset, processors = hosts.build(f"{host}_world")
    open_gates(policy)
    for part in (policy, *processors):
        part.save_pretrained(tmp_path)
    loaded = get_policy_class(f"{host}_world").from_pretrained(tmp_path)
    preprocessor, _ = make_pre_post_processors(loaded.config, pretrained_path=str(tmp_path))
    plain = LeRobotDataset(dataset.repo_id, root=dataset.root)
    observation = live_batch(plain, preprocessor, [3])
    assert torch.equal(act(loaded, observation), act(policy, live_batch(plain, processors[0], [3])))
    # The encoder is shown what the camera saw, whatever the policy's preprocessor makes of it.
    frames = next(reversed(loaded.latent_reader.frames._frames.values()))
    for camera, image in frames.items():
        assert torch.equal(image[0], plain[3][camera])
    latents = loaded.latent_reader.live(observation, loaded.device).history[0, -1]
    recorded = policy.recorded_batch(batch_of(dataset, processors[0], [3])).history[0, -1]
    torch.testing.assert_close(latents, recorded, rtol=2e-2, atol=2e-2)  # as live latents are tested elsewhere

    weights = load_file(tmp_path / "model.safetensors")
    save_file({name: weights[name] for name in sorted(weights)[1:]}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit: missing 1|does not fit: missing "):  # a warning, upstream
        get_policy_class(f"{host}_world").from_pretrained(tmp_path)


@pytest.mark.parametrize("host", HOSTS)
def test_init_from_takes_sizes_and_weights_of_the_plain_checkpoint(hosts, host, tmp_path):
    plain, dataset, _ = hosts.build(host, seed=7)
    plain.save_pretrained(tmp_path)
    options = hosts.options[host]
    hosts.options[host] = {}  # all of it comes from the checkpoint
    try:
        world, *_ = hosts.build(f"{host}_world", init_from=str(tmp_path))
    finally:
        hosts.options[host] = options
    for name, value in plain.state_dict().items():
        assert torch.equal(world.state_dict()[name], value), name
    assert world.config.initialised_from == str(tmp_path) and world.config.init_from is None

    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"type": "vqbet"}))
    with pytest.raises(ConfigError, match="init_from"):
        hosts.build(f"{host}_world", init_from=str(tmp_path))


def test_init_from_says_what_does_not_fit(hosts, tmp_path):
    plain, *_ = hosts.build("act")
    plain.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.action_head.weight"] = torch.zeros(7, 32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.action_head.weight \(7, 32\) != \(4, 32\). State and action") as said:
        hosts.build("act_world", init_from=str(tmp_path))
    assert "\n" not in str(said.value)
    (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ConfigError, match="has no model.safetensors; weights in several files"):
        hosts.build("act_world", init_from=str(tmp_path))


@pytest.mark.parametrize("entry", ["gated", "modulated"])
def test_a_copy_is_a_policy_of_its_own_in_the_midst_of_a_step_too(hosts, entry):
    memory = MemoryConfig(past=PastConfig(3, 2), entry=entry)
    policy, dataset, (preprocessor, _) = hosts.build("act_world", memory=memory)
    batch = batch_of(dataset, preprocessor, FRAMES)
    loss, *_ = step(policy, batch)
    for copied in (copy.deepcopy(policy), pickle.loads(pickle.dumps(policy))):
        assert step(copied, batch)[0] == loss
        copied.load_state_dict(copied.state_dict() | {"world.train_step": torch.tensor(7)})
        assert (copied._step, policy._step) == (7, 0)
        copied.update()
        assert (copied._step, policy._step) == (8, 0)


def test_a_policy_that_has_moved_looks_through_an_encoder_that_is_where_it_is(hosts, monkeypatch):
    made, devices = [], [torch.device(name) for name in ("cpu", "cpu", "meta")]
    make = lambda spec, pca, device: made.append(device) or SimpleNamespace(device=device)  # noqa: E731
    monkeypatch.setattr("lerobot_policy_world_modality.policies.shared.latent_reader.make_world_encoder", make)
    policy, *_ = hosts.build("act_world")
    assert [policy.latent_reader.encoder(device).device for device in devices] == devices and made == devices[1:]


@NEEDS_DIFFUSERS
@pytest.mark.parametrize("host", ["diffusion", "multi_task_dit"])
def test_a_host_that_sees_several_frames_sees_them_where_plans_alone_are_asked_for(hosts, host):
    """As a policy server asks: `predict_action_chunk`, and before it what the robot saw."""
    policy, dataset, (preprocessor, _) = hosts.build(f"{host}_world", memory=MemoryConfig(past=PastConfig(3, 2)))
    open_gates(policy)
    seen = [live_batch(LeRobotDataset(dataset.repo_id, root=dataset.root), preprocessor, [12 + t]) for t in range(3)]
    assert policy.config.n_obs_steps == policy.config.n_action_steps == 2
    policy.eval().reset()
    for observation in seen:
        torch.manual_seed(1)
        expected = policy.select_action(dict(observation))
    policy.reset()
    for observation in seen[:2]:
        policy.remember(dict(observation))
    torch.manual_seed(1)
    plan = policy.predict_action_chunk(dict(seen[2]))
    assert torch.equal(plan[:, 0], expected)
    policy.reset()
    torch.manual_seed(1)
    assert not torch.equal(policy.predict_action_chunk(dict(seen[2])), plan)  # the control


@pytest.mark.parametrize("host", HOSTS)
def test_after_a_new_instruction_no_action_of_the_old_plan_is_played(hosts, host):
    policy, dataset, (preprocessor, _) = hosts.build(f"{host}_world")
    plain, config = LeRobotDataset(dataset.repo_id, root=dataset.root), policy.config
    assert config.n_action_steps == 2
    for instruction, plans in (("push", 1), ("open the drawer", 2 if config.reads_task else 1)):
        policy.eval().reset()
        for frame, task in ((3, "push"), (20, instruction)):  # of other states, which PI0.5 writes into its prompt
            items = {key: value[None] for key, value in plain[frame].items() if key.startswith("observation.")}
            policy.select_action(preprocessor(items | {"task": [task]}))
        assert policy._n_plans == plans


@pytest.mark.parametrize("host", HOSTS)
def test_recorded_plans_are_moved_by_their_own_memory_alone(hosts, host):
    policy, dataset, (preprocessor, _) = hosts.build(f"{host}_world", prophet=ProphetConfig(use_state=True))
    open_gates(policy)
    batch = batch_of(dataset, preprocessor, [5, 13, 33])
    config = policy.config
    steps = getattr(config, "chunk_size", None) or config.horizon
    width = getattr(config, "max_action_dim", None) or config.action_feature.shape[0]
    noise = torch.randn(3, steps, width, generator=torch.Generator().manual_seed(0))
    plans = {source: policy.plan_recorded(batch, source, noise, seed=1) for source in ("pred", "zero", "oracle")}
    assert plans["pred"].shape[0] == 3 and plans["pred"].shape[2] == 4
    assert torch.equal(plans["pred"], policy.plan_recorded(batch, "pred", noise, seed=1))
    assert not torch.equal(plans["zero"], plans["oracle"])
    world_batch = policy.recorded_batch(batch, everything=True)
    world_batch.future[1] += torch.randn(world_batch.future[1].shape, generator=torch.Generator().manual_seed(3))
    with policy.reading(world_batch, "oracle"), torch.random.fork_rng():
        torch.manual_seed(1)
        with torch.no_grad():
            changed = policy.eval()._sample_recorded(dict(batch), noise)
    torch.testing.assert_close(changed[[0, 2]], plans["oracle"][[0, 2]], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(changed[1], plans["oracle"][1], atol=1e-5)


@pytest.mark.parametrize("host", ["pi0", "pi05"])
def test_activation_checkpointing_reads_the_memory_again_in_the_backward_pass(hosts, host):
    gradients = []
    for checkpointing in (False, True):
        policy, dataset, (preprocessor, _) = hosts.build(f"{host}_world", gradient_checkpointing=checkpointing)
        open_gates(policy)
        gradients.append(step(policy, batch_of(dataset, preprocessor, FRAMES))[2])
        policy.update()
        with pytest.raises(RuntimeError, match="not filled"):  # and nothing stale is read afterwards
            policy.model.action_out_proj(torch.zeros(1, 4, 32))
    for name, gradient in gradients[0].items():
        assert gradient is None or torch.allclose(gradient, gradients[1][name], atol=1e-6), name


@pytest.mark.skipif(not hasattr(PI05Config, "use_visual_memory"), reason="LeRobot after 0.6.1")
def test_a_host_with_frames_of_its_own_past_reads_the_memory_beside_them(hosts):
    """`image_observation_delta_indices`, `state_observation_delta_indices`: batches have an axis of time."""
    memory = {"use_visual_memory": True, "use_proprioceptive_memory": True, "memory_frames": 3, "memory_stride": 1}
    memory["memory_temporal_attention_every"] = 1
    policy, dataset, (preprocessor, _) = hosts.build("pi05_world", **memory)
    open_gates(policy)
    batch = batch_of(dataset, preprocessor, FRAMES)
    assert batch["observation.state"].ndim == 3
    assert step(policy, batch)[2]["model.action_out_proj.world_reader.attention.to_key_value.weight"].abs().max() > 0
    seen = live_batch(LeRobotDataset(dataset.repo_id, root=dataset.root), preprocessor, [3, 20])
    assert act(policy, seen).isfinite().all()


@pytest.mark.parametrize("host", ["pi0", "pi05", "xvla"])
def test_sharded_training_finds_its_modules(hosts, host):
    from accelerate.utils.dataclasses import get_module_class_from_name

    policy, *_ = hosts.build(f"{host}_world")
    assert policy._no_split_modules
    for name in policy._no_split_modules:
        assert get_module_class_from_name(policy, name) is not None, name


def test_adapters_leave_out_the_layer_that_reads_and_save_the_world(hosts, tmp_path):
    plain, *_ = hosts.build("pi0", seed=7)
    plain.save_pretrained(tmp_path)
    policy, dataset, (preprocessor, _) = hosts.build("pi0_world", init_from=str(tmp_path))
    wrapped = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 2})
    trained = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert any("gemma_expert" in name and "lora_" in name for name in trained)
    assert any(name.endswith("world_reader.attention.gate.value") for name in trained)
    assert any("world.modules_to_save" in name for name in trained)
    assert not any("action_out_proj" in name and "lora_" in name for name in trained)
    open_gates(policy)
    loss, _ = wrapped.forward(batch_of(dataset, preprocessor, FRAMES))
    loss.backward()
    reader = next(p for name, p in wrapped.named_parameters() if name in trained and "to_key_value.weight" in name)
    assert reader.grad.abs().max() > 0


@NEEDS_DIFFUSERS
def test_an_adapter_trains_the_layer_that_reads_and_what_is_asked_for_in_full_and_no_namesakes(hosts):
    """Diffusion Policy's layer is called "1", as many of its layers are."""
    policy, *_ = hosts.build("diffusion_world")
    policy.config.initialised_from = "somewhere"
    options = {"method_type": "LORA", "r": 2, "target_modules": ["cond_encoder.1"]}
    wrapped = policy.wrap_with_peft(peft_cli_overrides=options | {"full_training_modules": ["rgb_encoder.0.out"]})
    trained = [name.removeprefix("base_model.model.") for name, p in wrapped.named_parameters() if p.requires_grad]
    in_full = {name.partition(".modules_to_save")[0] for name in trained if "modules_to_save" in name}
    assert in_full == {"world", "diffusion.unet.final_conv.1", "diffusion.rgb_encoder.0.out"}
    assert all(".cond_encoder.1.lora_" in name for name in trained if "modules_to_save" not in name)
