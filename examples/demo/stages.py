"""Run the stages of a pipeline as subprocesses: once each, resumed when interrupted, anew when arguments change.

A stage is a command and the folders that it writes. Its key is a hash over the command and the keys of the stages
before it. `<folder>/stages/<name>.json` says with which key a stage was started, and whether and how fast it ended.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
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
    """

    name: str
    what: str
    command: list[str]
    outputs: list[Path]
    resume: Callable[[], list[str] | None] = field(default=lambda: None)
    leftovers: list[Path] = field(default_factory=list)
    extra_key: str = ""


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


def _follow(process: subprocess.Popen, log: Path, started: float) -> None:
    """Copy a command's output to its log and show its last line: in place on a terminal, else once a minute."""
    live = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    line, shown = b"", started
    with log.open("ab") as file:
        while chunk := process.stdout.read1(65536):
            file.write(chunk)
            file.flush()
            lines = (line + chunk).replace(b"\r", b"\n").split(b"\n")
            full = [text for text in lines[:-1] if text.strip() and not _CHATTER.match(text)]
            line = lines[-1]
            if full and time.monotonic() - shown > (0.2 if live else 60):
                shown = time.monotonic()
                text = full[-1].decode(errors="replace").strip()
                text = "".join(c for c in f"  {duration(shown - started)} | {text}" if c.isprintable())
                print(f"\r{text[:width]:<{width}}" if live else text, end="" if live else "\n", flush=True)
    if live:
        print(f"\r{' ' * width}\r", end="")


def run_stage(stage: Stage, folder: Path, previous_key: str, environment: dict[str, str]) -> str:
    """Run a stage unless it is already done with these very arguments.

    Args:
        stage: What to run.
        folder: Where logs and stamps go.
        previous_key: Key of the stage before, "" for the first.
        environment: Environment variables of the command.

    Returns:
        The stage's key.

    Raises:
        StageError: if the command fails, with the end of its log.
    """
    material = json.dumps([previous_key, stage.command, stage.extra_key])
    key = hashlib.sha256(material.encode()).hexdigest()
    stamp = read_stamp(folder, stage.name)
    if stamp.get("key") == key and stamp.get("done") and all(path.exists() for path in stage.outputs):
        print(f"{stage.name}: done before in {duration(stamp['seconds'])}", flush=True)
        return key

    spent, command = 0.0, None
    if stamp.get("key") == key and not stamp.get("done"):
        command = stage.resume()
        spent = stamp.get("seconds", 0.0) if command else 0.0
    log = folder / "logs" / f"{stage.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    if command is None:
        command = stage.command
        log.unlink(missing_ok=True)
        for path in stage.outputs + stage.leftovers:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    print(f"{stage.name}: {stage.what}{' (continues)' if spent else ''}\n{indent(_show(command), '    ')}", flush=True)

    stamp = {"key": key, "done": False, "seconds": spent, "what": stage.what, "command": _show(stage.command)}
    _write_stamp(folder, stage.name, stamp)
    started = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, stdin=subprocess.DEVNULL
    )
    try:
        _follow(process, log, started)
        code = process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise
    finally:
        stamp["seconds"] = spent + time.monotonic() - started
        _write_stamp(folder, stage.name, stamp)
    if code != 0:
        end = log.read_text(errors="replace").replace("\r", "\n").splitlines()[-15:]
        raise StageError("\n".join([*end, f"{stage.name} failed with exit code {code}; the whole log: {log}"]))
    _write_stamp(folder, stage.name, stamp | {"done": True})
    print(f"{stage.name}: done in {duration(stamp['seconds'])}", flush=True)
    return key
