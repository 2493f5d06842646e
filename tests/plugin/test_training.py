"""The plain LeRobot commands, as a user types them: train, resume, fine-tune, several processes."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lerobot.configs.default import DatasetConfig
from safetensors.torch import load_file

from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint
from tests import fork_server
from tests.fixtures_datasets import make_dataset
from tests.plugin.helpers import SMALL, TYPES, run_training
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute
from world_modality_core.studies.evidence.checkpoint import label_of, training_facts


def train(tiny_companion, output: Path, *extra: str, launcher: tuple[str, ...] = (), steps: int = 6, **policy) -> str:
    """Run lerobot-train for a few steps and return what it printed."""
    options = {"type": "world_F", "companion.root": tiny_companion.companion_root, **SMALL, **policy}
    command = [
        sys.executable, *launcher, "-m" if not launcher else "--module", "lerobot.scripts.lerobot_train",
        f"--dataset.repo_id={tiny_companion.source_repo_id}", f"--dataset.root={tiny_companion.source_root}",
        f"--output_dir={output}", f"--steps={steps}", "--batch_size=8", "--num_workers=0", "--log_freq=1",
        "--save_freq=3", "--env_eval_freq=0", "--seed=7",
        *(f"--policy.{name}={value}" for name, value in options.items()), *extra,
    ]  # fmt: skip
    return run_training(command)


def weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"{step:06d}" / "pretrained_model" / "model.safetensors")


@pytest.fixture(scope="module")
def trained(tiny_companion, tmp_path_factory):
    output = tmp_path_factory.mktemp("train") / "run"
    return output, train(
        tiny_companion, output, **{"memory.source": "random", "metrics_file": output.parent / "m.jsonl"}
    )


def test_it_logs_through_lerobot_s_trainer(trained):
    output, printed = trained
    for name in (
        "loss_action:",
        "loss_world:",
        "world_gate:",
        "memory_mass_2:",
        "prophet_skill:",
        "grad_norm_prophet:",
    ):
        assert name in printed, name
    assert "prophet_skill:0.000 " not in printed.split("step:6 ")[-1]  # read every step, so never an empty average
    assert "embeddings.position_ids" not in printed


@pytest.mark.skipif(not hasattr(DatasetConfig, "exclude_episodes"), reason="LeRobot after 0.6.1")
def test_excluded_episodes_and_averaged_weights_of_later_lerobots(tiny_companion, tmp_path):
    train(tiny_companion, tmp_path / "F", "--dataset.exclude_episodes=[3]", "--ema.enable=true", "--ema.decay=0.5")
    last = tmp_path / "F/checkpoints/last"
    averaged, live = (load_file(last / f"pretrained_model{kind}/model.safetensors") for kind in ("_ema", ""))
    assert averaged.keys() == live.keys() and any(not torch.equal(averaged[name], live[name]) for name in live)
    folder = last / "pretrained_model_ema"
    assert label_of(folder) == "F_ema" and training_facts(folder)["episodes"] == "all but 3"
    dataset = SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root))
    assert Checkpoint.open(str(folder)).training_episodes(dataset, 4)[0] == {0, 1, 2}


def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(trained, tiny_companion, tmp_path):
    output, _ = trained
    config = output / "checkpoints" / "000003" / "pretrained_model" / "train_config.json"
    saved = json.loads(config.read_text())
    saved["output_dir"] = str(tmp_path / "resumed")
    copied = tmp_path / "resumed" / "checkpoints" / "000003"
    copied.parent.mkdir(parents=True)
    subprocess.run(["cp", "-r", str(config.parent.parent), str(copied)], check=True)
    (copied / "pretrained_model" / "train_config.json").write_text(json.dumps(saved))
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_train", "--resume=true",
        f"--config_path={copied / 'pretrained_model' / 'train_config.json'}",
    ]  # fmt: skip
    done = fork_server.run(command, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, resumed = weights(output, 6), weights(tmp_path / "resumed", 6)
    assert expected["train_step"] == resumed["train_step"] == 6
    changed = weights(output, 3)
    for name, value in expected.items():
        torch.testing.assert_close(resumed[name], value, rtol=1e-5, atol=1e-7, msg=name)
    assert any(not torch.equal(changed[name], value) for name, value in expected.items())


def test_two_processes_end_with_the_weights_of_one_at_the_same_global_batch(tiny_companion, port, tmp_path):
    # "--multi_gpu" makes accelerate start the processes; --policy.device=cpu keeps them on the CPU (gloo).
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1",
                f"--main_process_port={port}", "--mixed_precision=no", "--dynamo_backend=no")  # fmt: skip
    printed = train(tiny_companion, tmp_path / "two", "--batch_size=4", launcher=launcher, steps=3)
    assert re.search("Effective batch size: 4 x 2 .*= 8", printed)
    train(tiny_companion, tmp_path / "one", steps=3)
    train(tiny_companion, tmp_path / "half", "--batch_size=4", steps=3)  # what would come out if one's share were lost
    two, one, half = (weights(tmp_path / name, 3) for name in ("two", "one", "half"))
    assert two["train_step"] == one["train_step"] == 3
    # Over all weights: attention does not depend on the bias of its keys, whose gradients are rounding errors that Adam
    # scales up to steps.
    error, control = (sum((a[k].float() - one[k].float()).square().sum() for k in one) ** 0.5 for a in (two, half))
    assert error < 0.01 * control


def test_processes_average_to_the_gradients_of_the_whole_batch_for_every_type(tiny_companion, tmp_path):
    script = Path(__file__).parent / "gradients_on_processes.py"
    launcher = (
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv-backend=c10d",
        "--rdzv-endpoint=localhost:0",
    )
    command = [sys.executable, *launcher, script, tiny_companion.source_root, tiny_companion.companion_root, tmp_path]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = {line["type"]: line for line in map(json.loads, filter(lambda s: s[:1] == "{", done.stdout.splitlines()))}
    assert set(lines) == {*TYPES, "smolvla_world", "qwen_world_fplus"}
    for line in lines.values():
        assert line["far"] < 1e-3 < 0.1 < line["half"], line


def test_fine_tuning_on_another_dataset_keeps_the_world_space_of_the_checkpoint(trained, tiny_companion, tmp_path):
    output, _ = trained
    other, companion = tmp_path / "other", tmp_path / "companion"
    make_dataset(other, "tests/other", lengths=(13, 11), seed=5)
    precompute(
        PrecomputeConfig(
            dataset=SourceConfig("tests/other", str(other)),
            output=OutputConfig("tests/other_world", str(companion)),
            reuse_from=str(tiny_companion.companion_root),
            device="cpu",
            num_workers=0,
        )
    )
    path = output / "checkpoints" / "000006" / "pretrained_model"

    def fine_tune(companion_root):
        command = [
            sys.executable, "-m", "lerobot.scripts.lerobot_train", f"--policy.path={path}",
            "--dataset.repo_id=tests/other", f"--dataset.root={other}", f"--policy.companion.root={companion_root}",
            f"--output_dir={tmp_path / 'run'}", "--steps=2", "--batch_size=4", "--num_workers=0", "--save_freq=2",
            "--env_eval_freq=0", "--policy.memory.source=pred", "--policy.push_to_hub=false",
        ]  # fmt: skip
        return fork_server.run(command, capture_output=True, timeout=300)

    refused = fine_tune(tiny_companion.companion_root)
    assert refused.returncode != 0 and "CompanionMismatchError" in refused.stderr
    done = fine_tune(companion)
    assert done.returncode == 0, done.stderr[-3000:]
    before, after = weights(output, 6), weights(tmp_path / "run", 2)
    assert torch.equal(before["space.mean"], after["space.mean"])
    assert after["train_step"] == 8
    assert not torch.equal(before["action_head.1.weight"], after["action_head.1.weight"])
    config = json.loads((tmp_path / "run/checkpoints/000002/pretrained_model/config.json").read_text())
    assert config["memory"]["source"] == "pred"
