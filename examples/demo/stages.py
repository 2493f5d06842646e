"""Run the stages of a pipeline as subprocesses: once each, resumed when interrupted, anew when arguments change.

A stage is a command and the folders that it writes. Its key is a hash over the command and the keys of the stages
before it. `<folder>/stages/<name>.json` says with which key a stage was started, and whether and how fast it ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import select
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import indent

# What FFmpeg's libraries say about every video; it goes to the log only.
_CHATTER = re.compile(rb"\[\w+ @ 0x")


class StageError(RuntimeError):
    """A stage's command failed."""


@dataclass
class Stage:
    """One command of the pipeline.

    Attributes:
        name: Short name, also of its log and stamp.
        what: What it does, for the reader.
        command: Program and arguments.
        outputs: Files or folders that it writes; removed before it starts anew.
        resume: Command that continues an interrupted run, or None where nothing can be continued. By default an
            interrupted stage starts anew.
        leftovers: What an interrupted run may leave beside the outputs; removed like them.
        extra_key: What else, besides the command, its result depends on.
        about: How long it takes on two idle cores, in words.
    """

    name: str
    what: str
    command: list[str]
    outputs: list[Path]
    resume: Callable[[], list[str] | None] = field(default=lambda: None)
    leftovers: list[Path] = field(default_factory=list)
    extra_key: str = ""
    about: str = "10 s"


def duration(seconds: float) -> str:
    """Seconds as "2 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def read_stamp(folder: Path, name: str) -> dict:
    """What is known of a stage: key, done, seconds, what, command; empty if it never started."""
    try:
        return json.loads((folder / "stages" / f"{name}.json").read_text())
    except FileNotFoundError:
        return {}


def _write_stamp(folder: Path, name: str, stamp: dict) -> None:
    path = folder / "stages" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp")
    aside.write_text(json.dumps(stamp))
    os.replace(aside, path)


def _show(command: list[str]) -> str:
    """The command as a user would type it, one argument a line."""
    words = [Path(command[0]).name, *(shlex.quote(word) for word in command[1:])]
    return " \\\n    ".join(words)


class _Screen:
    """What the running stages say last: in place on a terminal, else one line each every half minute."""

    def __init__(self):
        self.live = sys.stdout.isatty()
        self.says: dict[str, str] = {}
        self._shown = time.monotonic()

    def show(self) -> None:
        """Print what there is to print by now."""
        now = time.monotonic()
        if now - self._shown < (0.5 if self.live else 30):
            return
        self._shown = now
        if not self.live:
            for text in self.says.values():
                print(f"  {text}", flush=True)
            return
        width = shutil.get_terminal_size().columns - 1
        text = "  " + "   ".join(self.says.values())
        print(f"\r{text[:width]:<{width}}", end="", flush=True)

    def end(self, name: str, line: str) -> None:
        """A stage has ended."""
        self.say(line)
        self.says.pop(name, None)

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self.live:
            print(f"\r{' ' * (shutil.get_terminal_size().columns - 1)}\r", end="")
        print(line, flush=True)


class _Lane:
    """Stages one after the other, of which one runs."""

    def __init__(self, stages: list[Stage], folder: Path, key: str, environment: dict[str, str], screen: _Screen):
        self._left, self._folder, self.key, self._environment = list(stages), folder, key, environment
        self._screen = screen
        self.process: subprocess.Popen | None = None
        self.next()

    def next(self) -> None:
        """Start the next stage that isn't done yet, if there is one."""
        while self._left and self.process is None:
            self._start(self._left.pop(0))

    def _start(self, stage: Stage) -> None:
        material = json.dumps([self.key, stage.command, stage.extra_key])
        self.key = hashlib.sha256(material.encode()).hexdigest()
        stamp = read_stamp(self._folder, stage.name)
        if stamp.get("key") == self.key and stamp.get("done") and all(path.exists() for path in stage.outputs):
            self._screen.say(f"{stage.name}: done before in {duration(stamp['seconds'])}")
            return
        self._spent, command = 0.0, None
        if stamp.get("key") == self.key and not stamp.get("done"):
            command = stage.resume()
            self._spent = stamp.get("seconds", 0.0) if command else 0.0
        self._stage, self._log = stage, self._folder / "logs" / f"{stage.name}.log"
        self._log.parent.mkdir(parents=True, exist_ok=True)
        if command is None:
            command = stage.command
            self._log.write_bytes(b"")
            for path in stage.outputs + stage.leftovers:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        about = "goes on" if self._spent else f"about {stage.about}"
        self._screen.say(f"{stage.name}: {stage.what} ({about})\n{indent(_show(command), '    ')}")
        self._stamp = {
            "key": self.key, "done": False, "seconds": self._spent, "what": stage.what,
            "command": _show(stage.command),
        }  # fmt: skip
        _write_stamp(self._folder, stage.name, self._stamp)
        self._started, self._line, self._last = time.monotonic(), b"", ""
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=self._environment, stdin=subprocess.DEVNULL
        )

    def tick(self) -> None:
        """Tell the screen how long the stage has run."""
        self._screen.says[self._stage.name] = (
            f"{self._stage.name} {duration(time.monotonic() - self._started)}{self._last and f' | {self._last}'}"
        )

    def read(self) -> None:
        """Copy what the command says to its log; at its end, go on.

        Raises:
            StageError: the command failed.
        """
        chunk = self.process.stdout.read1(65536)
        if not chunk:
            self._end()
            return
        with self._log.open("ab") as file:
            file.write(chunk)
        *lines, self._line = (self._line + chunk).replace(b"\r", b"\n").split(b"\n")
        if full := [text for text in lines if text.strip() and not _CHATTER.match(text)]:
            self._last = "".join(c for c in full[-1].decode(errors="replace").strip() if c.isprintable())

    def _end(self) -> None:
        stage, code = self._stage, self.process.wait()
        self._note_time()
        self.process = None
        if code != 0:
            end = self._log.read_text(errors="replace").replace("\r", "\n").splitlines()[-15:]
            raise StageError(
                "\n".join([*end, f"{stage.name} failed with exit code {code}; the whole log: {self._log}"])
            )
        _write_stamp(self._folder, stage.name, self._stamp | {"done": True})
        self._screen.end(stage.name, f"{stage.name}: done in {duration(self._stamp['seconds'])}")

    def _note_time(self) -> None:
        self._stamp["seconds"] = self._spent + time.monotonic() - self._started
        _write_stamp(self._folder, self._stage.name, self._stamp)

    def stop(self) -> None:
        """End what runs; the stage can go on later."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self._note_time()


def run_stages(
    lanes: list[list[Stage]], folder: Path, previous_key: str, environment: dict[str, str],
    after_each: Callable[[], None] = lambda: None,
) -> str:  # fmt: skip
    """Run stages unless they are already done with these very arguments.

    Args:
        lanes: Stages that run one after the other; lanes run at the same time.
        folder: Where logs and stamps go.
        previous_key: Key of what was run before, "" at first.
        environment: Environment variables of the commands.
        after_each: Called when a stage has ended.

    Returns:
        The key of all of them.

    Raises:
        StageError: if a command fails, with the end of its log; the others are stopped.
    """
    screen = _Screen()
    running = [_Lane(stages, folder, previous_key, environment, screen) for stages in lanes]
    try:
        while busy := [lane for lane in running if lane.process is not None]:
            for ready in select.select([lane.process.stdout for lane in busy], [], [], 0.5)[0]:
                lane = next(lane for lane in busy if lane.process and lane.process.stdout is ready)
                lane.read()
                if lane.process is None:
                    after_each()
                    lane.next()
            for lane in running:
                if lane.process is not None:
                    lane.tick()
            screen.show()
    except BaseException:
        for lane in running:
            lane.stop()
        raise
    return running[0].key if len(running) == 1 else hashlib.sha256("".join(r.key for r in running).encode()).hexdigest()
