"""The scripts of examples/cluster, run with stand-ins for Slurm, accelerate and hf: what they start is understood."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import draccus
import pytest
from accelerate.commands.launch import launch_command_parser
from huggingface_hub.cli.hf import app
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_world_modality  # noqa: F401 - registers types
from coc_tools.config import LabelConfig
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from world_modality_core.precompute.precompute_options import PrecomputeConfig
from world_modality_core.studies.matrix.cli import make_parser

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
CONFIGS = {
    "lerobot.scripts.lerobot_train": TrainPipelineConfig,
    "lerobot-train": TrainPipelineConfig,
    "world_modality_core.precompute.cli": PrecomputeConfig,
    "wm-precompute": PrecomputeConfig,
    "coc_tools.cli": LabelConfig,
    "wm-eval": WorldEvalConfig,
}
SLURM = {
    "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_NODEID": "1", "SLURM_GPUS_ON_NODE": "4",
    "SLURM_CPUS_PER_TASK": "32", "SLURM_JOB_ID": "71234", "SLURM_ARRAY_TASK_ID": "2",
}  # fmt: skip


@pytest.fixture
def run(tmp_path):
    """run(script, *arguments, **environment): exit status, and the words of each command that the script started."""
    programs = tmp_path / "programs"
    programs.mkdir()
    log = tmp_path / "commands.jsonl"
    stand_in = f"#!{sys.executable}\nimport json, os, sys\n" + (
        f"print(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]), file=open({str(log)!r}, 'a'))\n"
    )
    for name in ("accelerate", "hf", "lerobot-train", "wm-matrix"):
        (programs / name).write_text(stand_in)
    (programs / "srun").write_text('#!/bin/bash\nexec "$@"\n')
    # More than a pipe holds: a script that reads only the first line must not die of it.
    (programs / "scontrol").write_text("#!/bin/bash\nprintf 'node%d\\n' {1..20000}\n")
    for program in programs.iterdir():
        program.chmod(0o755)

    def run_script(name: str, *arguments: str, **environment: str):
        done = subprocess.run(
            ["bash", CLUSTER / name, *arguments],
            cwd=tmp_path,
            env={"PATH": f"{programs}:{os.environ['PATH']}", **SLURM, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        commands = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
        log.unlink(missing_ok=True)
        return done, commands

    return run_script


def parse(program: str, arguments: list[str]):
    """Parse with the program's own config; a bare flag is a true one."""
    return draccus.parse(CONFIGS[program], args=[a if "=" in a else f"{a}=true" for a in arguments])


def launched(command: list[str]):
    """What `accelerate launch` makes of its arguments, and the config of the module that it starts."""
    assert command[:2] == ["accelerate", "launch"]
    launch = launch_command_parser().parse_args(command[2:])
    assert launch.module
    return launch, parse(launch.training_script, launch.training_script_args)


def option_values(names: list[str], arguments: list[str]) -> dict:
    """Parse the arguments of `hf NAMES...` with its own parser, without running it."""
    command, context = app, app.make_context("hf", list(names), resilient_parsing=True)
    for name in names:
        command = command.get_command(context, name)
    return command.make_context(names[-1], list(arguments)).params


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_syntax(script):
    subprocess.run(["bash", "-n", script], check=True)
    assert "set -euo pipefail" in script.read_text()


def test_training_on_two_nodes(run):
    done, commands = run("slurm_train.sh", COMPANION="data/world")
    assert done.returncode == 0, done.stderr
    launch, cfg = launched(commands[0])
    assert (launch.num_machines, launch.machine_rank, launch.num_processes) == (2, 1, 8)
    assert (launch.main_process_ip, launch.multi_gpu) == ("node1", True)
    assert 1024 < launch.main_process_port < 65536
    assert cfg.policy.type == "world_F"
    assert (cfg.policy.companion.root, str(cfg.dataset.root)) == ("data/world", "data/world_stripped")


def test_a_requeued_training_goes_on(run, tmp_path):
    checkpoint = tmp_path / "out" / "checkpoints" / "last" / "pretrained_model"
    checkpoint.mkdir(parents=True)
    _, commands = run("slurm_train.sh", OUTPUT="out")
    assert commands[0][-2:] == [
        "--config_path=out/checkpoints/last/pretrained_model/train_config.json",
        "--resume=true",
    ]


def test_a_training_without_a_checkpoint_starts_anew_and_keeps_the_old_folder(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "log").write_text("lost?")
    _, commands = run("slurm_train.sh", OUTPUT="out")
    assert launched(commands[0])[1].resume is False
    assert not (tmp_path / "out").exists()
    assert next(tmp_path.glob("out.without_checkpoint_*/log")).read_text() == "lost?"


@pytest.mark.parametrize("n_gpus", [1, 4])
@pytest.mark.parametrize("script", ["slurm_precompute.sh", "slurm_label.sh"])
def test_arrays_take_one_dataset_an_element(run, tmp_path, script, n_gpus):
    (tmp_path / "datasets.txt").write_text("lerobot/pusht\nlerobot/aloha_sim\n")
    done, commands = run(script, "datasets.txt", SLURM_GPUS_ON_NODE=str(n_gpus))
    assert done.returncode == 0, done.stderr
    launch, cfg = launched(commands[0])
    assert (launch.num_machines, launch.num_processes, launch.multi_gpu) == (1, n_gpus, n_gpus > 1)
    assert cfg.dataset.repo_id == "lerobot/aloha_sim"
    done, commands = run(script, "datasets.txt", SLURM_ARRAY_TASK_ID="3")
    assert (done.returncode, commands) == (1, []) and "no line 3" in done.stderr


def test_precompute_can_reuse_an_encoder(run, tmp_path):
    (tmp_path / "datasets.txt").write_text("a/b\nc/d\n")
    _, commands = run("slurm_precompute.sh", "datasets.txt", REUSE_FROM="data/first")
    cfg = launched(commands[0])[1]
    assert (cfg.reuse_from, cfg.encoder.family, cfg.strip_images) == ("data/first", "", True)


def test_an_element_of_a_study_is_one_job(run):
    _, commands = run("slurm_matrix.sh", "examples/studies/phases.yaml", "train-A-s1", "train-A-s2", "train-A-s3")
    options = make_parser().parse_args(commands[0][1:])
    assert (options.only, options.jobs, options.threads) == ("train-A-s3", 1, 32)


@pytest.mark.parametrize("step", ["precompute", "train", "eval"])
def test_hf_jobs(run, step, tmp_path):
    environment = {"ORG": "me", "IMAGE": "me/world-modality:cuda"}
    done, (command,) = run("hf_jobs.sh", step, **environment)
    assert done.returncode == 0, done.stderr
    if step == "train":
        cfg = parse(command[0], command[1:])
        assert (cfg.job.target, cfg.job.image) == ("a100-large", environment["IMAGE"])
        assert cfg.policy.companion.repo_id == "me/libero_world"
        return
    assert command[:3] == ["hf", "jobs", "run"]
    job = option_values(["jobs", "run"], command[3:])
    assert (job["image"], job["secrets"], job["flavor"]) == (environment["IMAGE"], ["HF_TOKEN"], "a100-large")
    if step == "precompute":
        assert parse(job["command"][0], list(job["command"][1:])).push_to_hub
        return
    assert job["command"][:2] == ("bash", "-c")
    program, *arguments = shlex.split(job["command"][2].split("&&")[0])
    # LeRobot reads the policy from its checkpoint before draccus sees the other options.
    cfg = parse(program, [a for a in arguments if not a.startswith("--policy.")])
    assert cfg.env.type == "libero"


def test_hf_jobs_wants_to_know_where(run):
    done, commands = run("hf_jobs.sh", "train")
    assert done.returncode != 0 and not commands
    assert "ORG=your account" in done.stderr
    done, commands = run("hf_jobs.sh", "dance", ORG="me", IMAGE="x")
    assert (done.returncode, commands) == (2, []) and "none of precompute" in done.stderr
