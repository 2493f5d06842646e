"""wm-matrix whose jobs are forks of it: importing LeRobot anew after each kill would cost ten seconds of a core."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
import types
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

_PR_SET_PDEATHSIG = 1


class Fork:
    """A job's process, with the part of `subprocess.Popen`'s interface that wm-matrix uses."""

    def __init__(self, command: list[str], *, stdout: Any, env: dict[str, str], **_: Any):
        starter, self.returncode = os.getpid(), None
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setsid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != starter:
                return
            for number in (1, 2):
                os.dup2(stdout.fileno(), number)
            self._before = sys.stdout, sys.stderr  # kept: as they go, they would close the numbers
            sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.environ.clear()
            os.environ.update(env)
            sys.argv = command[5:]  # after: python -I -S die_with_parent.py PID
            scripts = {script.name: script.value for script in entry_points(group="console_scripts")}
            module, _, name = scripts[Path(sys.argv[0]).name].partition(":")
            status = getattr(importlib.import_module(module), name)() or 0
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def poll(self) -> int | None:
        """Its exit code, -n where a signal n ended it; None while it runs."""
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def wait(self, timeout: float = 600.0) -> int:
        """Wait for its end."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("job", timeout)
            time.sleep(0.02)
        return self.returncode


def main() -> int:
    """wm-matrix."""
    from world_modality_core.studies.matrix import cli, queue

    names = ("DEVNULL", "STDOUT", "TimeoutExpired")
    queue.subprocess = types.SimpleNamespace(Popen=Fork, **{name: getattr(subprocess, name) for name in names})
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
