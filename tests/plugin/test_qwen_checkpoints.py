"""qwen_world_fplus: what a checkpoint holds, that it loads alike, and clear errors for what can't work."""

import json
import re
import shutil
import sys

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class
from safetensors.torch import load_file, save_file

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import (
    LoraOptions,
    TextConfig,
)
from tests import fork_server
from tests.plugin.helpers import batch_of, live_batch, open_gates, run_training
from tests.plugin.qwen_helpers import E0, TINY, build, make_config
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.io.errors import ConfigError


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_qwen(tmp_path_factory.mktemp("vlm") / "qwen3_vl")


def reload(folder):
    config = PreTrainedConfig.from_pretrained(folder)
    return get_policy_class("qwen_world_fplus").from_pretrained(folder, config=config)


def moved(policy, batch, n_steps=2):
    """The policy after some optimiser steps, its gates open."""
    open_gates(policy)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    for _ in range(n_steps):
        policy.train().zero_grad()
        policy.forward(batch)[0].backward()
        optimizer.step()
        policy.update()
    return policy


@pytest.mark.parametrize(
    "options",
    [
        {"train_backbone": "full"},
        {"train_backbone": "full", "weights": "random"},
        {"train_backbone": "lora", "lambda_align": 0.1},
        {"train_backbone": "frozen", "weights": "random"},
        {"train_backbone": "frozen"} | E0,
    ],
    ids=["full", "full_random", "lora", "frozen_random", "frozen_E0"],
)
def test_a_checkpoint_acts_as_the_policy_did(tiny_companion, vlm, tmp_path, options):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, **options)
    moved(policy, batch_of(dataset, preprocessor, [0, 13, 30]))
    policy.save_pretrained(tmp_path / "checkpoint")
    again = reload(tmp_path / "checkpoint")
    assert again.config.weights == ("checkpoint" if policy.config.holds_backbone else "pretrained")
    assert int(again.world.train_step) == again._step == 2
    mine, theirs = policy.state_dict(), again.state_dict()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        assert torch.equal(value, theirs[name]), name
    observation = live_batch(dataset, preprocessor, [3, 20])
    for each in (policy, again):
        each.reset()
    assert torch.equal(policy.select_action(observation), again.select_action(observation))


def test_tied_weights_may_be_there_under_both_names_as_fsdp_gathers_them(tiny_companion, vlm, tmp_path):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm, train_backbone="full")
    table = "backbone.model.language_model.embed_tokens.weight"
    gathered = {name: value.detach().clone() for name, value in policy.state_dict().items()}
    assert torch.equal(gathered[table], gathered["backbone.lm_head.weight"])  # they are tied
    policy.save_pretrained(tmp_path)
    save_file(gathered, tmp_path / "model.safetensors")
    observation = live_batch(dataset, preprocessor, [3, 20])
    policy.reset()
    assert torch.equal(reload(tmp_path).select_action(observation), policy.select_action(observation))
    for name in (table, "backbone.lm_head.weight"):
        save_file(gathered | {name: gathered[name] + 1}, tmp_path / "model.safetensors")
        with pytest.raises(ValueError, match="1 are left over"):
            reload(tmp_path)


def test_a_lora_checkpoint_holds_adapters_act_rows_and_world_only(tiny_companion, vlm, tmp_path):
    lora = LoraOptions(rank=2, targets=["q_proj", "down_proj"], layers=[1])
    policy, *_ = build(tiny_companion, vlm, train_backbone="lora", lora=lora)
    policy.save_pretrained(tmp_path)
    held = load_file(tmp_path / "model.safetensors")
    language = "backbone.model.language_model"
    expected = {f"{language}.embed_tokens.act_rows.weight"} | {
        f"{language}.layers.1.{layer}.lora_{side}.default.weight"
        for layer in ("self_attn.q_proj", "mlp.down_proj")
        for side in "AB"
    }
    assert {name for name in held if name.startswith("backbone.")} == expected
    assert {name.split(".")[0] for name in held} == {"backbone", "action_head", "proprioception", "world"}
    full, *_ = build(tiny_companion, vlm)
    full.save_pretrained(tmp_path / "full")
    assert (tmp_path / "model.safetensors").stat().st_size < (tmp_path / "full/model.safetensors").stat().st_size / 2


def test_a_checkpoint_that_does_not_fit_is_refused(tiny_companion, vlm, tmp_path):
    policy, *_ = build(tiny_companion, vlm, train_backbone="lora")
    policy.save_pretrained(tmp_path)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.lora.targets = ["q_proj"]
    with pytest.raises(ValueError, match="0 weights are missing .* are left over"):
        type(policy).from_pretrained(tmp_path, config=config)
    config = PreTrainedConfig.from_pretrained(tmp_path)
    config.train_backbone = "full"
    with pytest.raises(ValueError, match="are left over"):
        type(policy).from_pretrained(tmp_path, config=config)


def test_weights_that_were_never_loaded_are_not_used(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm)
    config = policy.config
    assert config.weights == "checkpoint"
    unloaded, dataset, (preprocessor, _) = build(tiny_companion, vlm, config=config)
    with pytest.raises(RuntimeError, match="none was loaded"):
        unloaded.forward(batch_of(dataset, preprocessor, [0]))


def test_an_old_config_keeps_loading(tiny_companion, vlm, tmp_path):
    policy, *_ = build(tiny_companion, vlm)
    policy.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["type"] == "qwen_world_fplus" and saved["weights"] == "checkpoint"
    for name in ("padding_side", "lambda_align", "micro_batch_size"):  # as if the field had come later
        del saved[name]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert reload(tmp_path).config.padding_side == "right"


# What can't work.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vlm_backbone": "qwen3_vl_3b_instruct"}, "there are qwen3_vl_2b_instruct, .*qwen2_5_vl_3b_instruct"),
        ({"n_action_steps": 5}, "n_action_steps=5 is more than chunk_size=4"),
        ({"train_backbone": "adapters"}, "expected one of 'full', 'lora', 'frozen'"),
        ({"weights": "hub"}, "expected one of 'pretrained', 'random', 'checkpoint'"),
        ({"padding_side": "both"}, "expected one of 'right', 'left'"),
        ({"lambda_text": -1.0}, "lambda_text=-1.0"),
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"freeze_vision": True, "train_backbone": "lora"}, "freeze_vision=true has no effect"),
        ({"use_amp": True}, "use --policy.dtype=bfloat16"),
    ],
)
def test_options_that_cannot_work(options, message):
    with pytest.raises(ConfigError, match=message):
        make_config(options.pop("vlm_backbone", "folder"), **options)


def test_nicknames_resolve():
    assert make_config("qwen3_vl_2b_instruct").vlm_backbone == "Qwen/Qwen3-VL-2B-Instruct"
    assert make_config("qwen2_5_vl_7b_instruct").vlm_backbone == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert make_config("Qwen/Qwen3-VL-8B-Thinking").vlm_backbone == "Qwen/Qwen3-VL-8B-Thinking"


def test_another_family_is_refused(tiny_companion, tmp_path):
    with pytest.raises(ValueError, match="is a 'smolvlm'; qwen_world_fplus runs on .*qwen3_vl, qwen2_5_vl"):
        build(tiny_companion, make_smolvlm(tmp_path / "smolvlm"))
    with pytest.raises(ConfigError, match="vlm_backbone='.*nothing': there is no such folder"):
        build(tiny_companion, tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="vlm_backbone='.*empty' cannot be loaded"):
        build(tiny_companion, tmp_path / "empty")


def test_a_tokenizer_without_the_action_tokens_of_the_checkpoint(tiny_companion, vlm, tmp_path):
    policy, *_ = build(tiny_companion, vlm, train_backbone="lora")
    policy.save_pretrained(tmp_path / "checkpoint")
    # Another tokenizer: one token shorter.
    other = shutil.copytree(vlm, tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    last = tokenizer["model"]["merges"].pop()
    del tokenizer["model"]["vocab"]["".join(last) if isinstance(last, list) else last.replace(" ", "")]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = PreTrainedConfig.from_pretrained(tmp_path / "checkpoint")
    config.vlm_backbone = str(other)
    with pytest.raises(ValueError, match="first_act_id=320 in the checkpoint, but the tokenizer .* the id 319"):
        type(policy).from_pretrained(tmp_path / "checkpoint", config=config)


def test_a_tokenizer_with_other_action_tokens(tiny_companion, vlm, tmp_path):
    from transformers import AutoTokenizer

    other = shutil.copytree(vlm, tmp_path / "other")
    tokenizer = AutoTokenizer.from_pretrained(other)
    tokenizer.add_tokens(["<ACT_2>", "<ACT_0>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="does not hold <ACT_0> ... <ACT_3> as consecutive tokens"):
        build(tiny_companion, other)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_pixels": 255}, "max_pixels=255 yields no token: one takes 16x16 = 256 pixels"),
        ({"min_pixels": 2048, "max_pixels": 1024}, "min_pixels=2048 is more than max_pixels=1024"),
        ({"train_backbone": "lora", "lora": LoraOptions(targets=["qkv"])}, r"lora.targets names \['qkv'\]; .*q_proj"),
        ({"train_backbone": "lora", "lora": LoraOptions(layers=[2])}, r"lora.layers=\[2\]: .* layers 0 to 1"),
        ({"lambda_text": 0.1}, "labels no frame; make labels with `coc-label`"),
    ],
)
def test_what_the_backbone_or_dataset_cannot_do(tiny_companion, vlm, options, message):
    with pytest.raises(ValueError, match=message):
        build(tiny_companion, vlm, **options)


def test_more_text_than_the_context(tiny_companion, tmp_path):
    small = make_qwen(tmp_path / "vlm", context=48)
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"episode_index": 1, "coc_text": "the puck " * 8}) + "\n")
    text = TextConfig(jsonl=str(path))
    policy, dataset, (preprocessor, _) = build(tiny_companion, small, lambda_text=0.1, text=text)
    policy.forward(batch_of(dataset, preprocessor, [0]))
    with pytest.raises(ValueError, match=r"sample 1 of the batch takes \d+ tokens, \d+ of them its label"):
        policy.forward(batch_of(dataset, preprocessor, [0, 12]))
    with pytest.raises(ValueError, match="more than the backbone's context of 48"):
        policy.forward(batch_of(dataset, preprocessor, [0]) | {"task": ["push the puck " * 9]})


def test_batches_that_lack_something(tiny_companion, vlm):
    policy, dataset, (preprocessor, _) = build(tiny_companion, vlm)
    batch = batch_of(dataset, preprocessor, [0])
    for change, message in (
        ({"task": [" "]}, "empty task"),
        ({"task": ["push <|image_pad|>"]}, "holds '<|image_pad|>', a special token"),
        ({"task": None}, "no `task`"),
    ):
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            policy.forward(batch | change)
    del batch["observation.images.wrist"]
    with pytest.raises(ValueError, match="lacks the images"):
        policy.forward(batch)
    with pytest.raises(ValueError, match="reduction='sum'"):
        policy.forward(batch, reduction="sum")


# The plain LeRobot commands.


def train(tiny_companion, vlm, output, *extra, steps=4, n_processes=1):
    options = {**TINY, "type": "qwen_world_fplus", "vlm_backbone": vlm, "prophet.d_model": 32, "head.d_model": 32,
               "companion.root": tiny_companion.companion_root}  # fmt: skip
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_train",
        f"--dataset.repo_id={tiny_companion.source_repo_id}", f"--dataset.root={tiny_companion.source_root}",
        f"--output_dir={output}", f"--steps={steps}", "--num_workers=0", "--log_freq=1", "--save_freq=2",
        "--env_eval_freq=0", "--seed=7",
        *(() if any(e.startswith("--batch_size") for e in extra) else ("--batch_size=4",)),
        *(f"--policy.{name}={str(value).lower() if isinstance(value, bool) else value}"
          for name, value in options.items() if not any(e.startswith(f"--policy.{name}=") for e in extra)), *extra,
    ]  # fmt: skip
    return run_training(command, n_processes)


@pytest.mark.slow
def test_lerobot_train_logs_and_resumes_to_the_same_weights(tiny_companion, vlm, tmp_path):
    printed = train(
        tiny_companion, vlm, tmp_path / "run", "--policy.memory.source=scheduled", "--policy.train_backbone=lora"
    )
    for name in ("what trains:", "adapters", "loss_action:", "loss_world:", "world_gate:", "grad_norm_act_rows:"):
        assert name in printed, name
    checkpoints = tmp_path / "run" / "checkpoints"
    expected = load_file(checkpoints / "000004/pretrained_model/model.safetensors")
    shutil.rmtree(checkpoints / "000004")
    (checkpoints / "last").unlink()
    config = checkpoints / "000002/pretrained_model/train_config.json"
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", "--resume=true", f"--config_path={config}"]
    done = fork_server.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    resumed = load_file(checkpoints / "000004/pretrained_model/model.safetensors")
    assert resumed.keys() == expected.keys() and expected["world.train_step"] == 4
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["joint_after_act", "separate"])
def test_two_processes_train_together_though_one_may_have_no_label(tiny_companion, vlm, tmp_path, mode):
    labels = tmp_path / "labels.jsonl"
    labels.write_text(json.dumps({"episode_index": 0, "coc_text": "the puck"}) + "\n")
    text = (f"--policy.text.jsonl={labels}", f"--policy.text.mode={mode}", "--policy.lambda_text=0.1")
    printed = train(tiny_companion, vlm, tmp_path / "run", *text, "--batch_size=1", n_processes=2)
    assert re.search("Effective batch size: 1 x 2 .*= 2", printed) and "loss_text:" in printed
    held = load_file(tmp_path / "run/checkpoints/000004/pretrained_model/model.safetensors")
    assert held["world.train_step"] == 4 and all(value.isfinite().all() for value in held.values())


@pytest.mark.slow
def test_lerobot_s_own_adapters_fine_tune_a_checkpoint(tiny_companion, vlm, tmp_path):
    policy, dataset, (preprocessor, postprocessor) = build(tiny_companion, vlm)
    base = tmp_path / "base"
    policy.save_pretrained(base)
    preprocessor.save_pretrained(base)
    postprocessor.save_pretrained(base)
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_train", f"--policy.path={base}",
        f"--dataset.repo_id={tiny_companion.source_repo_id}", f"--dataset.root={tiny_companion.source_root}",
        f"--output_dir={tmp_path / 'run'}", "--steps=2", "--batch_size=4", "--num_workers=0", "--save_freq=2",
        "--env_eval_freq=0", "--policy.push_to_hub=false", "--peft.r=4",
    ]  # fmt: skip
    done = fork_server.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "run/checkpoints/000002/pretrained_model"
    held = load_file(folder / "adapter_model.safetensors")
    parts = {"lora_", "act_rows", "action_head", "proprioception", "world."}
    assert all(any(part in name for part in parts) for name in held)
    assert all(any(part in name for name in held) for part in parts)
    assert not any("embed_tokens.weight" in name for name in held)
    assert not torch.equal(
        next(value for name, value in held.items() if "act_rows" in name),
        policy.backbone.get_input_embeddings().act_rows.weight,
    )
