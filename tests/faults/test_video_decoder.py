"""Where LeRobot can't decode by torchcodec, our commands and LeRobot's with our plugin say so in one line."""

import os
import subprocess
import sys

import pytest

from tests.faults.commands import run
from tests.faults.test_training import checkpoint, intervene_options, train_options  # noqa: F401
from world_modality_core.decoder_notice import NOTICE

# Two datasets are opened here, and one in a worker process of each kind.
OPENS = """
import multiprocessing
import world_modality_core
from lerobot.utils.import_utils import get_safe_default_video_backend as choose

if __name__ == "__main__":
    print(choose(), choose())
    for method in ("fork", "spawn"):
        worker = multiprocessing.get_context(method).Process(target=choose)
        worker.start()
        worker.join()
        assert worker.exitcode == 0
"""


@pytest.fixture
def ffmpeg(tmp_path, monkeypatch):
    """Processes started from now on can import torchcodec, with or without FFmpeg on this machine."""
    (tmp_path / "torchcodec.py").touch()
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}".rstrip(":"))


def opens(tmp_path) -> subprocess.CompletedProcess:
    script = tmp_path / "opens.py"
    script.write_text(OPENS)
    return subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)


def assert_said_once(err: str) -> None:
    lines = [line for line in err.splitlines() if "torchcodec" in line]
    assert len(lines) == 1 and lines[0].endswith(NOTICE), err[-3000:]
    # Each of torchcodec's own lines names it, or the library that it lacks. No word of tracebacks in general: torch's
    # DataLoader prints one now and then, when the interpreter ends before its workers.
    assert "libavutil" not in err


def test_the_real_torchcodec_fails_at_length(no_ffmpeg):
    done = subprocess.run([sys.executable, "-c", "import torchcodec"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.count("Traceback") > 5


def test_many_datasets_and_workers_say_it_once(no_ffmpeg, tmp_path):
    done = opens(tmp_path)
    assert done.stdout.split() == ["pyav", "pyav"]
    assert_said_once(done.stderr)


def test_nothing_is_said_where_torchcodec_loads(ffmpeg, tmp_path):
    done = opens(tmp_path)
    assert done.stdout.split() == ["torchcodec", "torchcodec"]
    assert done.stderr == ""


@pytest.mark.slow
def test_a_training_says_it_once(no_ffmpeg, tiny_companion, tmp_path):
    options = [*train_options(tiny_companion, tmp_path / "run"), "--num_workers=2", "--steps=2"]
    done = run("lerobot.scripts.lerobot_train:main", *options, log=tmp_path / "log")
    assert done.status == 0, done.err[-3000:]
    assert_said_once(done.err)


@pytest.mark.slow
def test_an_intervention_says_it_once(no_ffmpeg, checkpoint, tmp_path):  # noqa: F811
    options = intervene_options(checkpoint, tmp_path / "I")
    done = run("lerobot_policy_world_modality.intervention.cli:main", *options, log=tmp_path / "log")
    assert done.status == 0, done.err[-3000:]
    assert_said_once(done.err)
