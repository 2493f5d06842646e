"""smolvla_world through LeRobot's own commands: from a SmolVLA checkpoint, resumed, in two processes, with adapters."""

import json
import re
import shutil
import sys

import draccus
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import get_policy_class, make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_train import train
from safetensors.torch import load_file, save_file

from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import SmolVLAWorldConfig
from tests.plugin.helpers import live_batch, run_training
from tests.plugin.smolvla_helpers import build, fusion, make_smolvla_checkpoint
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.configs import CompanionConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError


@pytest.fixture(scope="module")
def base(tmp_path_factory, tiny_companion):
    """A plain SmolVLA checkpoint that differs from SmolVLA's defaults, and from what the tests ask for."""
    folder = tmp_path_factory.mktemp("base")
    meta = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root).meta
    vlm = make_smolvlm(folder / "vlm")
    return make_smolvla_checkpoint(folder / "smolvla", vlm, meta, n_action_steps=3, optimizer_lr=3e-4)


def arguments(tiny_companion, output, base, **options):
    """Arguments of lerobot-train for a run of a few steps."""
    options = {"type": "smolvla_world", "init_from": base, "companion.root": tiny_companion.companion_root} | options
    run = {key.removeprefix("run."): options.pop(key) for key in list(options) if key.startswith("run.")}
    run = {"steps": 4, "save_freq": 2, "log_freq": 1, "batch_size": 4} | run
    policy = {"n_history_steps": 3, "n_future_steps": 2, "device": "cpu", "push_to_hub": "false"} | options
    return [
        f"--dataset.repo_id={tiny_companion.source_repo_id}", f"--dataset.root={tiny_companion.source_root}",
        f"--output_dir={output}", "--num_workers=0", "--env_eval_freq=0",
        *[f"--policy.{key}={value}" for key, value in policy.items() if value is not None],
        *[f"--{key}={value}" for key, value in run.items()],
    ]  # fmt: skip


def run(tiny_companion, output, base, **options):
    """Train in this process: lerobot-train's own function on the config that its parser makes."""
    train(draccus.parse(TrainPipelineConfig, args=arguments(tiny_companion, output, base, **options)))
    return output / "checkpoints"


def command(*args, n_processes=1):
    return run_training([sys.executable, "-m", "lerobot.scripts.lerobot_train", *map(str, args)], n_processes)


def weights(checkpoints, step):
    return load_file(checkpoints / f"{step:06d}" / "pretrained_model" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_companion, base):
    output = tmp_path_factory.mktemp("run") / "run"
    return run(tiny_companion, output, base, n_action_steps=2, metrics_file=output.parent / "m.jsonl", metrics_every=1)


def test_it_starts_from_smolvla_and_keeps_what_was_typed(trained, base):
    config = json.loads((trained / "000002/pretrained_model/config.json").read_text())
    assert config["chunk_size"] == 4 and config["max_state_dim"] == 8 and config["optimizer_lr"] == 3e-4  # the base's
    assert config["n_action_steps"] == 2  # typed; the base has 3
    assert config["init_from"] is None and config["initialised_from"] == str(base) and config["fps"] == 10
    before, after = load_file(base / "model.safetensors"), weights(trained, 2)
    frozen = [name for name in before if "vlm_with_expert.vlm." in name]
    assert frozen and all(torch.equal(after[name], before[name]) for name in frozen)
    moved = [name for name in before if not torch.equal(after[name], before[name])]
    assert "model.action_out_proj.weight" in moved
    lines = [json.loads(line) for line in (trained.parents[1] / "m.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert {"loss_action", "loss_world", "world_gate_f1", "memory_entropy_f1", "grad_norm_f1"} <= set(lines[0])
    assert lines[0]["world_gate_f1"] == 0 != lines[1]["world_gate_f1"]


def test_a_checkpoint_needs_neither_base_nor_companion(trained, tiny_companion, base, tmp_path):
    path = shutil.copytree(trained / "000004/pretrained_model", tmp_path / "alone")
    config = json.loads((path / "config.json").read_text())
    config["companion"]["root"], config["initialised_from"] = "/nowhere", "/nowhere"
    (path / "config.json").write_text(json.dumps(config))
    policy = get_policy_class("smolvla_world").from_pretrained(path, strict=True)
    preprocessor, postprocessor = make_pre_post_processors(policy.config, pretrained_path=str(path))
    dataset = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root)
    policy.reset()
    action = postprocessor(policy.select_action(live_batch(dataset, preprocessor, [3, 20])))
    assert action.shape == (2, 4) and torch.isfinite(action).all()
    # the processors are the dataset's, not the base's
    saved = load_file(path / "policy_preprocessor_step_5_normalizer_processor.safetensors")
    mean = torch.tensor(dataset.meta.stats["observation.state"]["mean"], dtype=torch.float32)
    assert torch.allclose(saved["observation.state.mean"], mean)


def test_a_resumed_run_goes_on_where_it_stopped(trained, tmp_path):
    """Not bit for bit: SmolVLA's noise comes from the global generator, which a new data loader moves on."""
    copied = shutil.copytree(trained / "000002", tmp_path / "resumed/checkpoints/000002")
    config = copied / "pretrained_model/train_config.json"
    saved = json.loads(config.read_text())
    config.write_text(json.dumps(saved | {"output_dir": str(tmp_path / "resumed")}))
    command("--resume=true", f"--config_path={config}")
    before, resumed, whole = weights(trained, 2), weights(tmp_path / "resumed/checkpoints", 4), weights(trained, 4)
    assert resumed["world.train_step"] == 4
    gate = "model.action_out_proj.world_reader.attention.gate.value"
    assert before[gate] != resumed[gate] != 0
    for name in ("model.action_in_proj.weight", "world.prophet.embed.weight"):
        moved = (resumed[name] - before[name]).abs().mean()
        assert 0 < moved < 2 * (whole[name] - before[name]).abs().mean(), name


def test_with_closed_gates_a_run_logs_the_losses_of_the_baseline(tiny_companion, base, tmp_path):
    """E1 (zero memory) in gate warm-up, E2 in gate warm-up, and E0."""
    arms = {
        "e0": {"fusion.f1": "false", "lambda_world": 0, "companion.root": None},
        "e1": {"memory.source": "zero", "memory.gate_warmup_steps": 2, "lambda_world": 0},
    }
    losses = {}
    for name, options in arms.items():
        file = tmp_path / f"{name}.jsonl"
        options |= {"metrics_file": file, "metrics_every": 1, "run.save_checkpoint": "false"}
        run(tiny_companion, tmp_path / name, base, **options)
        losses[name] = [json.loads(line)["loss_action"] for line in file.read_text().splitlines()]
    assert len(losses["e0"]) == 4 and len(set(losses["e0"])) == 4
    # two steps shut; the third is the first to move the gate, and acts on the fourth
    assert losses["e1"][:3] == losses["e0"][:3] and losses["e1"][3] != losses["e0"][3]


def test_two_processes_train_together(tiny_companion, base, tmp_path):
    options = {"run.steps": 2, "fusion.f3b": "true"}
    printed = command(*arguments(tiny_companion, tmp_path / "run", base, **options), n_processes=2)
    assert re.search("Effective batch size: 4 x 2 .*= 8", printed)
    assert weights(tmp_path / "run/checkpoints", 2)["world.train_step"] == 2


def test_adapters_are_saved_with_the_world_and_load_again(tiny_companion, base, tmp_path):
    options = {"run.peft.method_type": "LORA", "run.peft.r": 4, "fusion.f2": "true", "fusion.f3a": "true"}
    options |= {"fusion.f3b": "true", "run.steps": 2}
    path = run(tiny_companion, tmp_path / "run", base, **options) / "000002/pretrained_model"
    adapter = load_file(path / "adapter_model.safetensors")
    assert json.loads((path / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    lora = {name for name in adapter if ".lora_" in name}
    assert lora and not [name for name in lora if ".vlm." in name or "action_out_proj" in name]
    world = {name for name in adapter if ".world." in name or ".world_" in name or "action_out_proj" in name}
    for part in (
        "prophet.head.weight",
        "space.mean",
        "train_step",
        "action_out_proj.weight",
        "world_tokens.gate.value",
    ):
        assert [name for name in world if name.endswith(part)], part
    assert sum(v.numel() for v in adapter.values()) < 2e6 and set(adapter) - lora - world <= {
        name for name in adapter if "action_time_mlp_out" in name
    }
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    meta = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root).meta
    policy = make_policy(config, ds_meta=meta)
    inner = policy.get_base_model()
    assert inner._step == 2 and inner.world.train_step == 2
    trained = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    assert [name for name in trained if "prophet" in name] and [name for name in trained if "lora" in name]
    for name, parameter in trained.items():
        saved = adapter[name.replace("modules_to_save.default.", "").replace(".default", "")]
        assert torch.equal(parameter, saved), name
    dataset = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root)
    preprocessor, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    policy.reset()
    assert torch.isfinite(policy.select_action(live_batch(dataset, preprocessor, [3]))).all()


# What is refused, before any work starts.


def refused(arguments, capsys):
    with pytest.raises((SystemExit, Exception)) as caught:
        draccus.parse(TrainPipelineConfig, args=arguments)
    return capsys.readouterr().err + str(caught.value)


def test_refusals_reach_the_user_of_the_command_line(tiny_companion, base, tmp_path, capsys, trained):
    for options, message in [
        ({"n_action_steps": 5}, "5 for `n_action_steps` and 4 for `chunk_size`"),
        ({"n_future_steps": 0}, "n_future_steps=0 leaves the memory empty"),
        ({"memory.eval_source": "oracle"}, "eval_source='oracle' needs the recorded future"),
        ({"memory.gate": "per_layer"}, "memory.gate: invalid choice: 'per_layer'"),
        ({"dtype": "float8"}, "dtype.*'float8'.*float32, bfloat16"),
        ({"use_amp": "true"}, "--policy.dtype=bfloat16"),
        (
            {"init_from": tmp_path / "nothing"},
            "nothing.*Give the Hub id or the folder of a checkpoint of type 'smolvla'",
        ),
        ({"init_from": trained / "000002/pretrained_model"}, "is of type 'smolvla_world'.*--policy.path"),
    ]:
        said = refused(arguments(tiny_companion, tmp_path, base, **options), capsys)
        assert re.search(message, said, re.DOTALL), (message, said)


def test_rename_map_with_init_from_is_refused(base, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lerobot-train", '--rename_map={"a": "b"}'])
    with pytest.raises(ConfigError, match="rename_map has no effect"):
        SmolVLAWorldConfig(init_from=str(base))


def test_fields_given_in_python_stay_even_where_they_equal_the_default(base):
    assert SmolVLAWorldConfig(init_from=str(base)).n_action_steps == 3
    default = SmolVLAWorldConfig.__dataclass_fields__["num_steps"].default
    assert SmolVLAWorldConfig(init_from=str(base)).num_steps != default
    assert SmolVLAWorldConfig(init_from=str(base), num_steps=default).num_steps == default


def test_weights_that_do_not_fit_are_refused(tiny_companion, base, tmp_path):
    vlm = json.loads((base / "config.json").read_text())["vlm_model_name"]

    def attempt(change, **options):
        path = shutil.copytree(base, tmp_path / str(len(list(tmp_path.iterdir()))))
        tensors = load_file(path / "model.safetensors")
        change(tensors)
        save_file(tensors, path / "model.safetensors")
        return lambda: build(tiny_companion, vlm, init_from=str(path), fusion=fusion("f1"), **options)

    attempt(lambda tensors: None)()  # positive control
    for change, message, options in [
        (lambda t: t.pop("model.state_proj.bias"), "missing model.state_proj.bias, unexpected nothing", {}),
        (lambda t: t.update(extra=torch.zeros(1)), "missing nothing, unexpected extra", {}),
        (lambda t: t.update({"normalize_inputs.x": torch.zeros(1)}), "migrate_policy_normalization", {}),
        (lambda t: None, "other shapes", {"max_action_dim": 9}),
    ]:
        with pytest.raises(ValueError, match=message):
            attempt(change, **options)()


def test_companions_and_datasets_that_do_not_fit_are_refused(tiny_companion, base):
    vlm = json.loads((base / "config.json").read_text())["vlm_model_name"]
    for options, message in [
        ({"companion": CompanionConfig(root="")}, "needs the world latents"),
        ({"n_future_steps": 20}, "looks 20 frames ahead.*longest episode.*has 20"),
        ({"encoder": EncoderSpec(family="dinov2")}, "family"),
        ({"encoder": EncoderSpec(family="efficientnet_lite0", dim=9)}, "dim: 9 != 8"),
        ({"encoder": EncoderSpec(family="efficientnet_lite0", n_tokens=4)}, "n_tokens: 4 != 2"),
        ({"pretrained_path": "/somewhere", "init_from": str(base)}, "give one of them"),
    ]:
        config = SmolVLAWorldConfig(vlm_model_name=vlm, device="cpu", push_to_hub=False, **options)
        if "companion" not in options:
            config.companion.root = str(tiny_companion.companion_root)
        meta = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root).meta
        with pytest.raises(ValueError, match=message):
            get_policy_class("smolvla_world")(config, dataset_meta=meta)


def test_a_task_without_text_is_refused(tiny_companion, base):
    meta = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root).meta
    meta.tasks = meta.tasks.rename(index={meta.tasks.index[1]: " "})
    with pytest.raises(ConfigError, match=r"task_index \[1\] of 'tests/source' has no text"):
        get_policy_class("smolvla_world")(SmolVLAWorldConfig(device="cpu"), dataset_meta=meta)
