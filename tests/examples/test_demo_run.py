"""The demo's driver: its commands are valid, and the whole of it runs, once."""

import argparse
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import draccus
import pytest
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_world_modality  # noqa: F401 - registers types
import run
import stages as runner
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.record.record_options import RecordConfig
from tests import fork_server
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


def start_fork(command, **options):
    fork = fork_server.start(command, **options)
    fork.stdout = fork.stdout.detach()
    return fork


@pytest.mark.slow
@pytest.mark.sim
def test_the_whole_demo_runs_and_does_not_repeat_itself(tmp_path, monkeypatch, capfd):
    command = [run.__file__, f"--folder={tmp_path / 'demo'}", "--tasks=reach-v3", "--n_episodes=2"]
    command += ["--steps=4", "--eval_episodes=1", "--device=cpu"]
    # Its commands are forks of a process that has imported LeRobot: the environment that they are given is this one's.
    given = {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1", "OMP_WAIT_POLICY": "passive"}
    for name, value in ({"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | given).items():
        monkeypatch.setenv(name, value)
    forks = SimpleNamespace(**vars(subprocess) | {"run": fork_server.run, "Popen": start_fork})
    monkeypatch.setattr(run, "subprocess", forks)
    monkeypatch.setattr(runner, "subprocess", forks)
    monkeypatch.setattr(sys, "argv", command)
    status = run.main()
    monkeypatch.undo()
    first = capfd.readouterr()
    assert status == 0, first
    done = fork_server.run([sys.executable, *command], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for printed, n_repeated in ((first.out, 0), (done.stdout, 9)):
        assert printed.count("done before in") == n_repeated
        assert "reach-v3" in printed and "index.html" in printed
        assert "\x1b" not in printed and "\r" not in printed
    page = (tmp_path / "demo" / "index.html").read_text()
    assert "wm-compare says" in page and (tmp_path / "demo" / "report.html").exists()
    assert page.count("<video") >= 1 and page.count("<img") >= 10
