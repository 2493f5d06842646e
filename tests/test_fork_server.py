"""A command in a fork of the tests' server is a process as any other, and starts at once."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from tests import fork_server

PROGRAM = """
import json, os, sys, threading, time, torch
if sys.argv[1] == "sleep":
    print("sleeping", flush=True)
    time.sleep(600)
print(json.dumps({
    "argv": sys.argv, "cwd": os.getcwd(), "mine": os.environ.get("MINE"), "is_leader": os.getsid(0) == os.getpid(),
    "main": __name__, "threads": threading.active_count(), "tasks": len(os.listdir(f"/proc/{os.getppid()}/task")),
    "lerobot": "lerobot" in sys.modules, "mujoco": "mujoco" in sys.modules, "n": torch.get_num_threads(),
}))
print("said", file=sys.stderr)
sys.exit({"fail": "a reason", "three": 3}.get(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    (folder / "a_program.py").write_text(PROGRAM)
    return folder


def command(*arguments):
    return [sys.executable, "-m", "a_program", *arguments]


def test_a_fork_has_its_own_folder_environment_session_and_output(folder):
    done = fork_server.run(
        command("a", "b"), cwd=folder, env=os.environ | {"MINE": "1"}, capture_output=True, start_new_session=True
    )
    assert done.returncode == 0 and done.stderr == "said\n"
    found = json.loads(done.stdout)
    assert found.pop("argv") == [str(folder / "a_program.py"), "a", "b"]
    assert found == {
        "cwd": str(folder), "mine": "1", "is_leader": True, "main": "__main__", "threads": 1, "tasks": 1,
        "lerobot": True, "mujoco": False, "n": 1,
    }  # fmt: skip


def test_statuses_are_those_of_a_process(folder):
    done = [fork_server.run(command(word), cwd=folder, capture_output=True) for word in ("three", "fail")]
    assert [each.returncode for each in done] == [3, 1] and done[1].stderr == "said\na reason\n"
    with pytest.raises(subprocess.CalledProcessError):
        fork_server.run(command("three"), cwd=folder, capture_output=True, check=True)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_reach_the_process(folder, number, tmp_path):
    with (tmp_path / "log").open("w") as log:
        process = fork_server.start(command("sleep"), cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        while "sleeping" not in Path(log.name).read_text():
            assert process.poll() is None
            time.sleep(0.01)
        os.kill(process.pid, number)
        assert process.wait(120) == -number
    assert not Path(f"/proc/{process.pid}").exists()
    assert ("KeyboardInterrupt" in Path(log.name).read_text()) == (number == signal.SIGINT)


def test_what_takes_too_long_is_ended(folder):
    with pytest.raises(subprocess.TimeoutExpired):
        fork_server.run(command("sleep"), cwd=folder, capture_output=True, timeout=0.5)


def test_other_programs_and_other_imports_get_an_interpreter_of_their_own(folder):
    assert isinstance(fork_server.start(["true"]), subprocess.Popen)
    other = fork_server.start(
        command("a"), cwd=folder, env=os.environ | {"HF_HOME": str(folder)}, stdout=subprocess.PIPE
    )
    assert isinstance(other, subprocess.Popen) and '"lerobot": false' in other.communicate()[0]


def test_a_console_script_is_its_function(tmp_path):
    script = Path(sys.executable).with_name("wm-compare")
    done = fork_server.run([script, "--nothing"], cwd=tmp_path, capture_output=True)
    assert done.returncode == 2 and "wm-compare: there is no option --nothing" in done.stderr


def test_two_threads_of_a_fork_compute_at_once():
    def compute(errors, barrier):
        barrier.wait()
        try:
            torch.ones(400_000) + 1
        except RuntimeError as error:
            errors.append(error)

    torch.set_num_threads(torch.get_num_threads())  # there is a pool, whose threads no fork has
    for _ in range(10):
        if not (pid := os.fork()):
            errors, barrier = [], threading.Barrier(4)
            threads = [threading.Thread(target=compute, args=(errors, barrier)) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            os._exit(len(errors))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
