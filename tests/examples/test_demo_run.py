"""The demo's driver: its commands are valid, and the whole of it runs, once."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import draccus
import pytest
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_world_modality  # noqa: F401 - registers types
import run
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.record.record_options import RecordConfig
from world_modality_core.precompute.precompute_options import PrecomputeConfig

CONFIGS = {
    "wm-record": RecordConfig,
    "wm-precompute": PrecomputeConfig,
    "lerobot-train": TrainPipelineConfig,
    "wm-eval": WorldEvalConfig,
}


@pytest.fixture
def stages(tmp_path):
    options = argparse.Namespace(
        folder=tmp_path, tasks="push-v3,reach-v3", n_episodes=2, steps=100, eval_episodes=2, device="cpu"
    )
    return {stage.name: stage for lanes in run.make_steps(options) for lane in lanes for stage in lane}


@pytest.mark.parametrize("name", ["record", "precompute", "train", "eval", "train_blind", "eval_blind"])
def test_commands_are_understood(stages, name):
    """Every option of every command exists and takes the value that it is given."""
    program, *arguments = stages[name].command
    # LeRobot reads a policy's path and overrides from the checkpoint, which is not there yet.
    arguments = [argument for argument in arguments if not (name.startswith("eval") and ".path=" in argument)]
    arguments = [a for a in arguments if not (name.startswith("eval") and a.startswith("--policy."))]
    arguments = [f"{a}=true" if a == "--strip_images" else a for a in arguments]
    config = draccus.parse(CONFIGS[Path(program).name], args=arguments)
    output = config.output.root if name in ("record", "precompute") else config.output_dir
    assert Path(output) == stages[name].outputs[0]


def test_evaluated_scenes_were_not_recorded():
    assert run.EVAL_SEED > run.RECORD_SEED + 100 * run.N_EPISODES


def test_a_missing_renderer_is_one_line(monkeypatch, capsys):
    def fail():
        raise RuntimeError("neither EGL nor OSMesa can render here: install one")

    monkeypatch.setattr(run, "choose_mujoco_gl", fail)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "neither EGL nor OSMesa" in error


@pytest.mark.slow
@pytest.mark.sim
def test_the_whole_demo_runs_and_does_not_repeat_itself(tmp_path):
    command = [sys.executable, run.__file__, "--folder", str(tmp_path / "demo"), "--tasks=reach-v3", "--n_episodes=2"]
    command += ["--steps=4", "--eval_episodes=1", "--device=cpu"]
    for count in (0, 9):
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ, timeout=550)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("done before in") == count
        assert "reach-v3" in done.stdout and "index.html" in done.stdout
        assert "\x1b" not in done.stdout and "\r" not in done.stdout
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "wm-compare says" in page and (tmp_path / "demo" / "report.html").exists()
    assert page.count("<video") >= 1 and page.count("<img") >= 10
