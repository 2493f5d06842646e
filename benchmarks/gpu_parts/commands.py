"""What the parts that run real commands share: how a command is run, a small dataset and its companion."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from fixtures_datasets import make_dataset
from safetensors.torch import load_file

from gpu_parts.figures import Run
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute

LENGTHS = (24, 30, 20, 28)


class Commands:
    """Runs commands in the part's folder and says how long they took."""

    def __init__(self, run: Run, part: str):
        self.run, self.part = run, part

    def __call__(self, name: str, *command, launcher: tuple[str, ...] = ()) -> bool:
        line = [sys.executable, *launcher, "--module" if launcher else "-m", *map(str, command)]
        log = self.run.folder / "log"
        start = time.perf_counter()
        with log.open("w") as file:
            code = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, env=os.environ).returncode
        if code:
            print(log.read_text()[-4000:], flush=True)
        taken = round(time.perf_counter() - start, 1)
        self.run.figure(f"{name}: exit code", code, equals=0, seconds=taken, part=self.part)
        return code == 0

    def launcher(self, n: int, *options: str) -> tuple[str, ...]:
        several = ("--multi_gpu",) if n > 1 and not options else ()
        return ("-m", "accelerate.commands.launch", *several, *options, f"--num_processes={n}", "--num_machines=1",
                "--main_process_port=0", "--dynamo_backend=no")  # fmt: skip


def make_data(run: Run) -> tuple[Path, Path]:
    """A small dataset, and its companion as one process writes it."""
    source, companion = run.folder / "source", run.folder / "one"
    make_dataset(source, lengths=LENGTHS, cameras=["observation.image"], size=64)
    spec = EncoderSpec("efficientnet_lite0", height_px=64, width_px=64)
    precompute(PrecomputeConfig(SourceConfig("bench/source", str(source)), OutputConfig("", str(companion)), spec,
                                batch_size=8, num_workers=0, device=run.device))  # fmt: skip
    return source, companion


def train(commands: Commands, name: str, source: Path, output: Path, *options, launcher=(), steps: int = 20) -> bool:
    return commands(
        name, "lerobot.scripts.lerobot_train", f"--dataset.root={source}", "--dataset.repo_id=bench/source",
        f"--output_dir={output}", f"--steps={steps}", "--batch_size=8", "--num_workers=0", f"--save_freq={steps // 2}",
        "--env_eval_freq=0", "--wandb.enable=false", "--seed=7", "--policy.push_to_hub=false", *options,
        f"--policy.device={commands.run.device}", launcher=launcher,
    )  # fmt: skip


def go_on(commands: Commands, name: str, whole: Path, resumed: Path, launcher=(), steps: int = 20) -> None:
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
        title = f"{name}: distance to the whole run over what the second half changed"
        commands.run.figure(title, far, most=1e-3, part=commands.part)


def weights(output: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / f"{step:06d}" / "pretrained_model" / "model.safetensors")


def difference(a: dict, b: dict, start: dict) -> float:
    """Norm of the difference over the norm of what training changed."""
    norm = [sum((x[k].float() - y[k].float()).square().sum().item() for k in a) ** 0.5 for x, y in ((a, b), (b, start))]
    return norm[0] / norm[1]
