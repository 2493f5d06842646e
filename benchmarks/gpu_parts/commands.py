"""The real commands on one device: two processes encode what one does, resume, sharded training."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from fixtures_datasets import make_dataset
from safetensors.torch import load_file

from gpu_parts.figures import Run
from wm_tools.doctor.qwen_backbone import make_qwen
from world_modality_core.latents.companion import open_companion

PART = "commands"


class Commands:
    """Runs commands in the part's folder and says how long they took."""

    def __init__(self, run: Run):
        self.run = run
        self.is_cuda = run.device.startswith("cuda")

    def __call__(self, name: str, *command, launcher: tuple[str, ...] = ()) -> bool:
        line = [sys.executable, *launcher, "--module" if launcher else "-m", *map(str, command)]
        log = self.run.folder / "log"
        start = time.perf_counter()
        with log.open("w") as file:
            code = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, env=os.environ).returncode
        if code:
            print(log.read_text()[-4000:], flush=True)
        taken = round(time.perf_counter() - start, 1)
        self.run.figure(f"{name}: exit code", code, equals=0, seconds=taken, part=PART)
        return code == 0

    def launcher(self, n: int, *options: str) -> tuple[str, ...]:
        several = ("--multi_gpu",) if n > 1 and not options else ()
        return ("-m", "accelerate.commands.launch", *several, *options, f"--num_processes={n}", "--num_machines=1",
                "--main_process_port=0", "--dynamo_backend=no")  # fmt: skip


def measure(run: Run) -> None:
    commands = Commands(run)
    source, one = run.folder / "source", run.folder / "one"
    make_dataset(source, lengths=[24, 30, 20, 28], cameras=["observation.image"], size=64)
    encode(run, commands, source, one)
    resume(run, commands, source, one)
    sharded(run, commands, source, one)


def encode(run: Run, commands: Commands, source: Path, one: Path) -> None:
    """One process, and two that share the device."""
    options = [f"--dataset.root={source}", "--dataset.repo_id=bench/source", "--encoder.family=efficientnet_lite0",
               "--encoder.height_px=64", "--encoder.width_px=64", "--batch_size=8"]  # fmt: skip
    module = "world_modality_core.precompute.cli"
    if not commands("wm-precompute, one process", module, *options, f"--output.root={one}", f"--device={run.device}"):
        return
    if not run.is_real:
        return
    two = run.folder / "two"
    fine = commands(
        "wm-precompute, two processes on one device", module, *options, f"--output.root={two}",
        f"--device={run.device}", launcher=commands.launcher(2),
    )  # fmt: skip
    if fine:
        tables = [open_companion("x", str(root)).table for root in (one, two)]
        index = np.arange(102)
        rows = [np.asarray(table.gather(torch.as_tensor(index), [0])[0]) for table in tables]
        run.figure("latents of two processes equal those of one", bool(np.array_equal(*rows)), equals=True, part=PART)


def train(
    run: Run, commands: Commands, name: str, source: Path, output: Path, *options, launcher=(), steps: int = 20
) -> bool:
    return commands(
        name, "lerobot.scripts.lerobot_train", f"--dataset.root={source}", "--dataset.repo_id=bench/source",
        f"--output_dir={output}", f"--steps={steps}", "--batch_size=8", "--num_workers=0", f"--save_freq={steps // 2}",
        "--env_eval_freq=0", "--wandb.enable=false", "--seed=7", "--policy.push_to_hub=false", *options,
        f"--policy.device={run.device}", launcher=launcher,
    )  # fmt: skip


def weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"{step:06d}" / "pretrained_model" / "model.safetensors")


def difference(a: dict, b: dict, start: dict) -> float:
    """Norm of the difference over the norm of what training changed."""
    norm = [sum((x[k].float() - y[k].float()).square().sum().item() for k in a) ** 0.5 for x, y in ((a, b), (b, start))]
    return norm[0] / norm[1]


def resume(run: Run, commands: Commands, source: Path, companion: Path, name: str = "world_F") -> None:
    """A run of 20 steps, and one that goes on from its 10th."""
    whole, resumed = run.folder / "whole", run.folder / "resumed"
    options = [
        "--policy.type=world_F",
        f"--policy.companion.root={companion}",
        "--policy.dropout=0.0",
        "--policy.d_model=64",
    ]
    if not train(run, commands, f"lerobot-train {name}", source, whole, *options):
        return
    go_on(run, commands, f"lerobot-train {name}, resumed", whole, resumed)


def go_on(run: Run, commands: Commands, name: str, whole: Path, resumed: Path, launcher=(), steps: int = 20) -> None:
    """Copy a run up to its half, resume the copy, compare the ends."""
    half = f"{steps // 2:06d}"
    shutil.copytree(whole / "checkpoints" / half, resumed / "checkpoints" / half)
    config = resumed / "checkpoints" / half / "pretrained_model" / "train_config.json"
    config.write_text(config.read_text().replace(str(whole), str(resumed)))
    fine = commands(
        name, "lerobot.scripts.lerobot_train", "--resume=true", f"--config_path={config}", launcher=launcher
    )
    if fine:
        end, start = weights(whole, steps), weights(whole, steps // 2)
        far = difference(weights(resumed, steps), end, start)
        run.figure(f"{name}: distance to the whole run over what the second half changed", far, most=1e-3, part=PART)


def sharded(run: Run, commands: Commands, source: Path, companion: Path) -> None:
    """FSDP with one process, as docs/qwen_world_fplus.md says for full fine-tuning: train, save, go on."""
    if not commands.is_cuda:
        return
    vlm = make_qwen(run.folder / "qwen")
    fsdp = commands.launcher(1, "--use_fsdp", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP")
    options = [
        "--policy.type=qwen_world_fplus", f"--policy.companion.root={companion}", f"--policy.vlm_backbone={vlm}",
        "--policy.train_backbone=full", "--policy.chunk_size=4", "--policy.n_action_steps=2",
        "--policy.max_pixels=1024", "--policy.prophet.d_model=32", "--policy.head.d_model=32",
    ]  # fmt: skip
    whole, resumed = run.folder / "fsdp", run.folder / "fsdp_resumed"
    if train(run, commands, "lerobot-train qwen_world_fplus, FSDP", source, whole, *options, launcher=fsdp, steps=6):
        go_on(run, commands, "lerobot-train qwen_world_fplus, FSDP, resumed", whole, resumed, launcher=fsdp, steps=6)
