"""Console scripts in processes of their own, killed or interrupted at a chosen moment, on disks of a chosen size.

A command runs in a fork of the test's process: the imports, which cost seconds, are there already. One that renders
runs in a fork of a process that has not (`fresh.py`, tests/fork_server.py), since a fork of a process that has rendered
waits for the renderer's threads for ever. An audit hook of the interpreter sends the signal, so that it hits at the
very operation that a test names and nothing has to be patched.
"""

from __future__ import annotations

import errno
import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
from tqdm.std import TqdmDefaultWriteLock

# Forks would share the lock of progress bars: one that is killed while it holds it would stop all later ones.
TqdmDefaultWriteLock.mp_lock = None

_FORKS: dict[int, Any] = {}
"""Processes of tests/fork_server.py, by pid."""


@dataclass
class At:
    """A signal to a command at a moment of its own, or of a process that it forked.

    Attributes:
        event: Audit event of the interpreter: "os.rename" (os.replace too), "open", ...
        part: What one of the event's arguments must hold.
        number: The signal.
        nth: At which such event.
        again_s: Seconds after which it is sent again.
    """

    event: str
    part: str
    number: int = signal.SIGKILL
    nth: int = 1
    again_s: float | None = None

    def __post_init__(self) -> None:
        self._seen = 0

    def watch(self) -> None:
        """Watch this process, which is the command, and what it forks."""
        self._command = os.getpid()
        sys.addaudithook(self.hook)

    def hook(self, event: str, arguments: tuple) -> None:
        if event != self.event or not any(self.part in str(argument) for argument in arguments):
            return
        self._seen += 1
        if self._seen == self.nth:
            if self.again_s is not None:
                threading.Timer(self.again_s, os.kill, (self._command, self.number)).start()
            os.kill(self._command, self.number)
            while os.getppid() == self._command:  # in what it forked, nothing more happens
                time.sleep(0.01)


@dataclass
class Done:
    """How a command ended: its exit status, 128 + n where a signal n ended it (as in a shell), and what it printed."""

    status: int
    out: str
    err: str

    @property
    def told(self) -> str:
        """The one line that it ended with, without progress bars."""
        assert "Traceback" not in self.err, self.err[-3000:]
        lines = [line for line in self.err.replace("\r", "\n").splitlines() if ": " in line and "it/s" not in line]
        return lines[-1] if lines else ""


def start(main: Callable[[], object] | str, *arguments: str, log: Path, at: At | None = None) -> int:
    """Start a console script's `main`; gives its process id.

    Args:
        main: The function, which runs in a fork; or "module:function", which runs in a fork of the fork server.
        arguments: Of the command line.
        log: What it prints goes to this name with the suffixes .out and .err.
        at: When to send it a signal.
    """
    if isinstance(main, str):
        job = json.dumps([main, arguments, str(log), at and asdict(at)])
        from tests import fork_server  # not where fresh.py reads this file

        process = fork_server.start([sys.executable, Path(__file__).with_name("fresh.py"), job])
        _FORKS[process.pid] = process
        return process.pid
    pid = os.fork()
    if not pid:
        become(main, arguments, log, at)
    return pid


def become(main: Callable[[], object] | str, arguments: Sequence[str], log: Path, at: At | None) -> None:
    """Let this process be the command, to its end."""
    status = 1
    try:
        os.setsid()
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(log.with_suffix(f".{name}"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        logging.getLogger().handlers.clear()  # pytest's, which would keep what the command says
        sys.argv = ["command", *arguments]
        if at is not None:
            at.watch()
        if isinstance(main, str):
            module, name = main.split(":")
            main = getattr(importlib.import_module(module), name)
        status = main() or 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def exit_code(pid: int) -> int | None:
    if pid in _FORKS:
        return _FORKS[pid].poll()
    done, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if done else None


def wait(pid: int, log: Path, timeout_s: float = 480.0) -> Done:
    """Wait for a command's end."""
    end = time.monotonic() + timeout_s
    while (code := exit_code(pid)) is None:
        if time.monotonic() > end:
            os.killpg(pid, signal.SIGKILL)
            pytest.fail(f"it did not end: {log.with_suffix('.err').read_text()[-2000:]}")
        time.sleep(0.02)
    texts = [log.with_suffix(f".{name}").read_text(errors="replace") for name in ("out", "err")]
    return Done(code if code >= 0 else 128 - code, *texts)


def run(main: Callable[[], object] | str, *arguments: str, log: Path, at: At | None = None) -> Done:
    """Run a console script's `main` to its end."""
    return wait(start(main, *arguments, log=log, at=at), log)


def tree(folder: Path, *left_out: str) -> dict[str, bytes]:
    """Name -> content of all files in a folder, without locks and caches and what else is named."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock" and not {"cache", *left_out} & {*path.parts, path.name}
    }


@contextmanager
def small_disk(folder: Path, n_bytes: int) -> Iterator[Path]:
    """A disk (tmpfs) of a size, at `folder`; skips the test where mounting is not permitted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={n_bytes}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True) if shutil.which("mount") else None
    if done is None or done.returncode:
        pytest.skip(f"a small disk can't be mounted here: {done.stderr.strip() if done else 'no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, n_left: int) -> Path:
    """Fill a disk but for some bytes; gives the file that has to go to make room."""
    ballast = disk / "ballast"
    ballast.unlink(missing_ok=True)
    free = os.statvfs(disk)
    n = max(0, free.f_bavail * free.f_frsize - n_left)
    with ballast.open("wb") as file:
        try:
            while n > 0:
                n -= file.write(bytes(min(n, 1 << 20)))
            file.flush()
        except OSError as error:
            assert error.errno == errno.ENOSPC
    return ballast
