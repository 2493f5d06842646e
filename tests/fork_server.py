"""Processes that have imported LeRobot already: commands of the tests start in forks of one server.

Importing LeRobot costs about ten CPU-seconds, and many tests start real commands. `start` and `run` take a command line
as `subprocess` does. One that runs Python (`python -m MODULE`, `python FILE.py`, a console script) becomes a fork of a
server that has imported torch and LeRobot once and computed nothing; any other, and one whose environment changes what
is read at import, gets an interpreter of its own. A fork is a process as any other: its pid is what tests kill, and it
has its own session, folder, environment and files.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import IO, Any

# What is read once, when the modules below are imported, or by the interpreter itself.
_READ_AT_IMPORT = (
    "PYTHON", "HF_", "TOKENIZERS", "OMP_", "MKL_", "TORCH_", "CUDA", "HOME", "LD_", "TRANSFORMERS", "XDG",
)  # fmt: skip
_PRELOADED = (
    "lerobot.scripts.lerobot_train", "lerobot.scripts.lerobot_eval", "lerobot_policy_world_modality",
    "lerobot.policies.factory", "transformers", "datasets", "pandas", "torchvision.transforms.v2",
)  # fmt: skip


def _renew_thread_pool() -> None:
    """Replace torch's thread pool in a fork, where its threads are missing.

    Torch does so itself where the pool is first asked for; if two threads ask at once it fails: "Invalid thread pool!".
    """
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(torch.get_num_threads())


os.register_at_fork(after_in_child=_renew_thread_pool)


class Fork:
    """A process that the server forked, with the part of `subprocess.Popen`'s interface that the tests use."""

    def __init__(self, pid: int, status: socket.socket, args: Sequence[str]):
        self.pid, self._status, self.args, self.returncode = pid, status, args, None
        self.stdout = self.stderr = None

    def poll(self) -> int | None:
        """Its exit code, -n where a signal n ended it; None while it runs."""
        return self._wait(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: if it goes on for longer.
        """
        if self._wait(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Wait for its end, and give what it printed to pipes."""
        end = None if timeout is None else time.monotonic() + timeout
        texts: dict[Any, list[bytes]] = {pipe: [] for pipe in (self.stdout, self.stderr) if pipe is not None}
        open_pipes = list(texts)
        while open_pipes:
            ready, _, _ = select.select(open_pipes, [], [], None if end is None else max(0.0, end - time.monotonic()))
            if not ready:
                raise subprocess.TimeoutExpired(self.args, timeout)
            for pipe in ready:
                part = os.read(pipe.fileno(), 1 << 16)
                texts[pipe].append(part)
                if not part:
                    open_pipes.remove(pipe)
        self.wait(None if end is None else max(0.0, end - time.monotonic()))
        return tuple(None if p is None else b"".join(texts[p]).decode() for p in (self.stdout, self.stderr))

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *_: object) -> None:
        self.wait()

    def _wait(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._status], [], [], timeout)[0]:
            answer = self._status.recv(64)
            assert answer, "the fork server has gone"
            self.returncode = int(answer)
        return self.returncode


def start(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | IO | None = None,
    stderr: int | IO | None = None,
    start_new_session: bool = False,
) -> Fork | subprocess.Popen:
    """Start a command; arguments as those of `subprocess.Popen`. A fork's stdin is empty."""
    command = [str(part) for part in command]
    environment = dict(os.environ if env is None else env)
    program = _python_of(command)
    if program is None or _read_at_import(environment) != _read_at_import(os.environ):
        return subprocess.Popen(
            command, env=environment, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr,
            start_new_session=start_new_session, text=True,
        )  # fmt: skip
    pipes: dict[str, IO[str]] = {}
    numbers = [empty := os.open(os.devnull, os.O_RDONLY), 1, 2]
    for i, (name, given) in enumerate((("stdout", stdout), ("stderr", stderr)), start=1):
        if given == subprocess.PIPE:
            read, numbers[i] = os.pipe()
            pipes[name] = os.fdopen(read)
        elif given == subprocess.DEVNULL:
            numbers[i] = os.open(os.devnull, os.O_WRONLY)
        elif given == subprocess.STDOUT:
            numbers[i] = numbers[1]
        elif given is not None:
            numbers[i] = given if isinstance(given, int) else given.fileno()
    request = {
        "program": program, "env": environment, "cwd": str(cwd or Path.cwd()), "start_new_session": start_new_session,
    }  # fmt: skip
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(_server())
    connection.sendmsg(
        [json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", numbers))]
    )
    os.close(empty)
    pid = int(connection.recv(64))
    for i, given in enumerate((stdout, stderr), start=1):
        if given in (subprocess.PIPE, subprocess.DEVNULL):
            os.close(numbers[i])
    fork = Fork(pid, connection, command)
    fork.stdout, fork.stderr = pipes.get("stdout"), pipes.get("stderr")
    return fork


def run(
    command: Sequence[str | Path],
    *,
    capture_output: bool = False,
    text: bool = True,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess:
    """Run a command to its end; arguments as those of `subprocess.run`, with text as output."""
    if capture_output:
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = start(command, **options)
    try:
        out, err = process.communicate(timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def _python_of(command: Sequence[str]) -> list[str] | None:
    """[module or "", function or "", argv ...] of a command that runs Python; None for any other."""
    first, *rest = command
    if first == sys.executable and rest[:1] == ["-m"]:
        return [rest[1], "", *rest[1:]]
    if first == sys.executable and rest[0].endswith(".py"):
        return ["", "", *rest]
    scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
    if Path(first).parent == Path(sys.executable).parent and Path(first).name in scripts:
        module, _, name = scripts[Path(first).name].partition(":")
        return [module, name, first, *rest]
    return None


def _read_at_import(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}


@cache
def _server() -> str:
    """Address of this process's server, which ends with it, be it killed."""
    address = tempfile.mktemp(prefix="fork-server-")
    ours, theirs = socket.socketpair()
    command = [sys.executable, __file__, address, str(theirs.fileno())]
    server = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], start_new_session=True, stdin=subprocess.DEVNULL,
        env=os.environ | {"JE_ARROW_MALLOC_CONF": "background_thread:false"},  # a thread, else, that forks lack
    )  # fmt: skip
    theirs.close()
    assert ours.recv(1) == b"1", "the fork server did not start"

    def end() -> None:
        ours.close()
        server.wait(120)

    atexit.register(end)
    return address


def _serve(address: str, owner: socket.socket) -> None:
    """Fork for each request, and report how the forks end, for as long as the owner's process lives."""
    import importlib

    for name in _PRELOADED:
        importlib.import_module(name)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen(64)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write)
    waiting: dict[int, socket.socket] = {}
    owner.send(b"1")
    while True:
        ready, _, _ = select.select([listener, owner, wake_read], [], [])
        if owner in ready:  # its end was closed: the tests are over
            os.unlink(address)
            os._exit(0)  # the interpreter's own end takes seconds, and there is nothing to put in order
        if listener in ready:
            connection, _ = listener.accept()
            text, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * 4))
            numbers = array.array("i")
            numbers.frombytes(ancillary[0][2][: 3 * numbers.itemsize])
            pid = os.fork()
            if not pid:
                for other in (listener, owner, connection, *waiting.values()):
                    other.close()
                signal.set_wakeup_fd(-1)
                os.close(wake_read)
                os.close(wake_write)
                _become(json.loads(text), numbers)
            for number in numbers:
                os.close(number)
            connection.send(str(pid).encode())
            waiting[pid] = connection
        if wake_read in ready:
            os.read(wake_read, 1 << 10)
            while waiting:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                with waiting.pop(pid) as connection, contextlib.suppress(OSError):
                    connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def _become(request: dict[str, Any], numbers: Sequence[int]) -> None:
    """Let this process be the command, to its end."""
    import importlib
    import runpy
    import threading
    import traceback

    import numpy as np

    status = 1
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if request["start_new_session"]:
            os.setsid()
        for target, number in enumerate(numbers):
            os.dup2(number, target)
        for number in set(numbers):
            os.close(number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        # As the interpreter does: a command that puts others in their place must not close the files.
        sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["env"])
        np.random.seed()  # seeded from the system, once for all forks, when numpy was imported
        module, name, *sys.argv = request["program"]
        if name:
            status = getattr(importlib.import_module(module), name)()
        elif not module:
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        else:
            sys.path.insert(0, request["cwd"])
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status = 0
    except SystemExit as stop:
        status = stop.code
    except BaseException as error:
        traceback.print_exc()
        if isinstance(error, KeyboardInterrupt):  # as the interpreter does
            status = -signal.SIGINT
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()
        atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if status == -signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit(int(status or 0))


if __name__ == "__main__":
    _serve(sys.argv[1], socket.socket(fileno=int(sys.argv[2])))
