"""What is known of a job: `job.json` in its folder, and whether it may go on, is done, or has to be refused."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from filelock import FileLock, Timeout

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import checked, parse_json, read_json, write_text
from world_modality_core.memory.sources import EXCHANGING_SOURCES
from world_modality_core.studies.matrix.expand import Job

JOB_FILE = "job.json"
LOG_FILE = "log.txt"
LOCKS = ".locks"
"""Folder of the locks, beside the jobs' folders: a lock outlives a job that is thrown away."""

# Flags by which a finished evaluation may be added to.
_MAY_GROW = ("--arms", "--eval.n_episodes", "--eval.batch_size", "--videos")

_PACKAGES = (
    "lerobot_policy_world_modality", "lerobot", "torch", "numpy", "transformers", "metaworld", "mujoco", "gymnasium",
)  # fmt: skip


class _Record(TypedDict):
    """What is taken for granted of `job.json`."""

    state: Literal["running", "done", "failed", "interrupted"]
    command: list[str]
    seconds: float
    name: NotRequired[str]
    n_starts: NotRequired[int]
    started_at: NotRequired[str]
    after: NotRequired[dict[str, str | None]]


class _TrainingStep(TypedDict):
    """LeRobot's `training_step.json`."""

    step: int


def read_record(folder: Path) -> dict[str, Any]:
    """The record of a job; empty if it was never started.

    Raises:
        DamagedFileError: if it can't be read.
    """
    try:
        record = read_json(folder / JOB_FILE, dict)
    except FileNotFoundError:
        return {}
    checked(_Record, record, folder / JOB_FILE)
    return record


def duration(seconds: float) -> str:
    """Seconds as "3 h 05 min", "2 min 05 s" or "7 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """Write the record of a job; aside first, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / JOB_FILE, json.dumps(record, indent=2) + "\n")


def lock_of(job: Job) -> FileLock:
    """The lock that a queue holds while it runs a job; the system frees it when the queue ends, however it ends."""
    folder = job.folder.parent / LOCKS
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{job.name}.lock", timeout=0)


def state(job: Job) -> str:
    """ "done", "failed", "running" (in any queue), "interrupted" or "waiting" (never started)."""
    found = read_record(job.folder).get("state", "waiting")
    if found != "running":
        return found
    try:
        with lock_of(job):
            return "interrupted"
    except Timeout:
        return "running"


def adds_episodes(job: Job, record: dict[str, Any]) -> bool:
    """Whether an evaluation differs from the recorded one in nothing but which arms and how many scenes it has.

    wm-eval then goes on with what it has, and runs what is missing; it can't where `intact` ran without keeping its
    memories for arms that exchange them.
    """
    if job.kind != "eval" or not record or record["command"] == list(job.command):
        return False
    # Arms that exchange memories need those that `intact` keeps, which it does only if it is run beside such an arm.
    exchanging = set(EXCHANGING_SOURCES)
    if _arms(job.command) & exchanging and not _arms(record["command"]) & exchanging:
        return False
    return _pinned(record["command"]) == _pinned(job.command)


def is_done(job: Job, record: dict[str, Any]) -> bool:
    """Whether nothing of a job is left to run; episodes that were asked for since are."""
    return record.get("state") == "done" and not adds_episodes(job, record)


def _arms(command: list[str] | tuple[str, ...]) -> set[str]:
    return {arm for word in command if word.startswith("--arms=") for arm in re.findall(r"\w+", word[len("--arms=") :])}


def _pinned(command: list[str] | tuple[str, ...]) -> list[str]:
    return sorted(word for word in command if word.partition("=")[0] not in _MAY_GROW)


def check_unchanged(jobs: list[Job]) -> None:
    """Refuse to mix results of different commands.

    Raises:
        ConfigError: if a job that is done or half done was started with another command, or after an earlier run of a
            job that it builds on.
    """
    problems = []
    by_name = {job.name: job for job in jobs}
    for job in jobs:
        record = read_record(job.folder)
        if not record and job.output.exists():  # starting anew would delete it
            problems.append(f"{job.output} was not written by wm-matrix (no {JOB_FILE} beside it)")
        if record.get("state", "failed") == "failed":  # a failed job may be mended
            continue
        if record["command"] != list(job.command) and not adds_episodes(job, record):
            problems.append(f"{job.name} is {record['state']} with another command: {_difference(record, job)}")
        for name, started_at in record.get("after", {}).items():
            if name in by_name and read_record(by_name[name].folder).get("started_at") != started_at:
                problems.append(f"{job.name} is {record['state']}, but {name}, which it builds on, was run anew since")
    if problems:
        more = "" if len(problems) == 1 else f" (and {len(problems) - 1} more jobs)"
        raise ConfigError(f"{problems[0]}{more}; delete the job's folder to run it anew, or take the change back")


def _difference(record: dict[str, Any], job: Job) -> str:
    old, new = record["command"], list(job.command)
    gone, added = [word for word in old if word not in new], [word for word in new if word not in old]
    if not gone and not added:
        return "its arguments are in another order"
    return f"it ran with {' '.join(gone) or 'nothing'}, the study now has {' '.join(added) or 'nothing'} instead"


def new_record(job: Job, threads: int, now: str) -> dict[str, Any]:
    """The record of a job that starts from nothing."""
    return {
        "name": job.name,
        "kind": job.kind,
        "model": job.model,
        "train_seed": job.seed,
        "policy_type": job.policy_type,
        "command": list(job.command),
        "state": "running",
        "seconds": 0.0,
        "started_at": now,
        "ended_at": None,
        "n_starts": 0,
        "exit_code": None,
        "commit": commit(),
        "versions": versions(),
        "threads": threads,
        "after": {name: read_record(job.folder.parent / name).get("started_at") for name in job.after},
    }


def prepare(job: Job, record: dict[str, Any]) -> list[str]:
    """Put a job's folder in order, and say which command starts it or makes it go on.

    lerobot-train goes on from its last checkpoint, and starts anew if there is none; the others go on by themselves.

    Args:
        job: The job.
        record: Its record, or {} to start anew.

    Returns:
        Program (its name) and arguments.
    """
    last = _last_checkpoint(job.output)
    config = last / "pretrained_model" / "train_config.json"
    if record and job.kind != "train":
        return list(job.command)
    if record and config.exists():
        path = last / "training_state" / "training_step.json"
        step = checked(_TrainingStep, read_json(path), path)["step"]
        _drop_lines_after(job.metrics, step)
        return [job.command[0], f"--config_path={config}", "--resume=true"]
    for path in (job.output, job.metrics):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return list(job.command)


def _last_checkpoint(output: Path) -> Path:
    """The last whole checkpoint of a training.

    LeRobot saves a checkpoint, takes the link `last` away and makes it anew: where two checkpoints are and no link,
    a kill hit between the two, and the newest one is whole.
    """
    last = output / "checkpoints" / "last"
    steps = sorted(path.name for path in last.parent.glob("*") if path.name.isdigit())
    if not last.is_symlink() and len(steps) > 1:
        last.symlink_to(steps[-1])
    return last


def _drop_lines_after(metrics: Path, step: int) -> None:
    """A run that goes on logs the steps after its checkpoint again."""
    if not metrics.exists():
        return
    kept = []
    for line in metrics.read_text(errors="replace").splitlines():
        try:
            if parse_json(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):  # the kill hit the line in mid-write
            continue
    write_text(metrics, "".join(f"{line}\n" for line in kept))


def drop_old_checkpoints(job: Job) -> None:
    """Remove the checkpoints of a training before its last one."""
    folder = job.output / "checkpoints"
    last = folder / "last"
    if not last.exists():
        return
    newest = last.resolve().name
    for path in folder.iterdir():
        if path.name.isdigit() and path.name < newest:
            shutil.rmtree(path)


def missing_output(job: Job) -> Path | None:
    """What a job that ended without an error should have left, if it is not there."""
    path = job.checkpoint if job.kind == "train" else job.output
    return None if path.is_dir() and any(path.iterdir()) else path


def end_of_log(job: Job, n_lines: int = 15) -> str:
    """The last lines that a job printed."""
    try:
        text = (job.folder / LOG_FILE).read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    lines = [line for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return "\n".join(lines[-n_lines:])


@cache
def commit() -> str | None:
    """The commit of this code, with "+changes" where files differ from it; None outside of a repository."""
    here = Path(__file__).resolve().parent
    try:
        head = _git(here, "rev-parse", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{head}+changes" if changed else head


def _git(folder: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True).stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
