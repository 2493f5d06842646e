"""The queue: runs what is ready on the workers at hand, each job as a process of its own.

Everything that must survive a kill is in the jobs' folders. A job that a queue runs is locked, so that several queues
on one study share its jobs; a queue that is killed takes its processes with it (`die_with_parent.py`).
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from world_modality_core.io.errors import ConfigError, DiskFullError
from world_modality_core.studies.matrix.expand import Job
from world_modality_core.studies.matrix.job_record import (
    LOG_FILE,
    adds_episodes,
    drop_old_checkpoints,
    duration,
    end_of_log,
    is_done,
    lock_of,
    missing_output,
    new_record,
    prepare,
    read_record,
    write_record,
)

POLL_S = 0.2
SEARCH_S = 2.0
"""How often to look for jobs that became free though none of ours ended: another queue's."""
HEARTBEAT_S = 30.0
"""How often the seconds of a running job are written down and its old checkpoints removed."""
PATIENCE_S = 15.0
"""How long a job may take to end when asked to."""


def find_program(name: str) -> str:
    """Path of a console script of this environment.

    Raises:
        ConfigError: if it isn't installed.
    """
    path = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if path is None:
        raise ConfigError(f"the command {name} is not installed in this environment")
    return path


@dataclass
class QueueOptions:
    """How to run a study.

    Attributes:
        n_workers: Jobs at a time.
        gpus: GPUs, one for each worker in turn; empty leaves CUDA_VISIBLE_DEVICES as it is.
        threads: OMP_NUM_THREADS of each job.
        retry_failed: Run failed jobs again.
        keep_all_checkpoints: Keep the checkpoints before a training's last one.
        find_program: Name of a command -> what to execute.
    """

    n_workers: int = 2
    gpus: tuple[str, ...] = ()
    threads: int = 1
    retry_failed: bool = False
    keep_all_checkpoints: bool = False
    find_program: Callable[[str], str] = find_program


@dataclass
class _RunningJob:
    job: Job
    record: dict[str, Any]
    process: subprocess.Popen
    lock: FileLock
    worker: int
    earlier_s: float  # seconds of earlier starts
    started_s: float
    noted_s: float


def run_queue(jobs: list[Job], options: QueueOptions) -> dict[str, str]:
    """Run all jobs that are not done, each after those that it builds on.

    Args:
        jobs: The jobs, each after those that it builds on.
        options: How to run them.

    Returns:
        Name -> "done", "failed" or "blocked" (builds on a failed one).

    Raises:
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the running jobs were ended; the same queue goes on from there.
    """
    programs = {name: options.find_program(name) for name in dict.fromkeys(job.command[0] for job in jobs)}
    with _interruptible():
        queue = _Queue(jobs, options, programs)
        try:
            while queue.has_more():
                time.sleep(POLL_S)
        except BaseException:
            queue.stop()
            raise
        return queue.outcome


class _Queue:
    def __init__(self, jobs: list[Job], options: QueueOptions, programs: dict[str, str]):
        self.jobs, self.options, self.programs = jobs, options, programs
        self.outcome: dict[str, str] = {}
        self.running: list[_RunningJob] = []
        self.retried: set[str] = set()
        self.elsewhere: set[str] = set()
        self.searched_s = -SEARCH_S

    def has_more(self) -> bool:
        """Take note of what has ended, start what is ready. Returns whether anything is left to wait for."""
        n_running = len(self.running)
        for each in list(self.running):
            self._poll(each)
        if len(self.running) < n_running or time.monotonic() - self.searched_s > SEARCH_S:
            self.searched_s = time.monotonic()
            for job in self.jobs:
                if job.name not in self.outcome and all(each.job is not job for each in self.running):
                    self._start_if_ready(job)
        return len(self.outcome) < len(self.jobs)

    def _start_if_ready(self, job: Job) -> None:
        record = read_record(job.folder)
        if is_done(job, record):
            return self._finish(job, "done", "done before" if job.name not in self.elsewhere else "done")
        if record.get("state") == "failed" and not self._retries(job):
            return self._finish(job, "failed", "failed before; --retry_failed runs it again")
        before = [self.outcome.get(name) for name in job.after]
        if "failed" in before or "blocked" in before:
            return self._finish(job, "blocked", f"not run: it builds on {', '.join(job.after)}")
        if any(outcome != "done" for outcome in before) or len(self.running) >= self.options.n_workers:
            return None
        lock = lock_of(job)
        try:
            lock.acquire()
        except Timeout:
            if job.name not in self.elsewhere:
                self.elsewhere.add(job.name)
                self._say(f"{job.name}: another queue runs it")
            return None
        if read_record(job.folder) != record:  # another queue ended it meanwhile
            lock.release()
            return None
        return self._start(job, record, lock)

    def _retries(self, job: Job) -> bool:
        return self.options.retry_failed and job.name not in self.retried and job.name not in self.elsewhere

    def _start(self, job: Job, record: dict[str, Any], lock: FileLock) -> None:
        worker = min(set(range(self.options.n_workers)) - {each.worker for each in self.running})
        goes_on = bool(record) and (record["command"] == list(job.command) or adds_episodes(job, record))
        self.retried.add(job.name)
        if not goes_on:
            record = {}
        command = prepare(job, record)
        if not record:
            record = new_record(job, self.options.threads, datetime.now(UTC).isoformat())
        record |= {"command": list(job.command), "state": "running"}
        record |= {"n_starts": record.get("n_starts", 0) + 1, "threads": self.options.threads}
        write_record(job.folder, record)
        with (job.folder / LOG_FILE).open("a" if goes_on else "w") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(Path(__file__).with_name("die_with_parent.py")), str(os.getpid())]
                + [self.programs[command[0]], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(worker),
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
        now = time.monotonic()
        self.running.append(_RunningJob(job, record, process, lock, worker, record["seconds"], now, now))
        self._say(f"{job.name}: {'goes on' if goes_on else 'starts'}")

    def _environment(self, worker: int) -> dict[str, str]:
        environment = os.environ | {
            "OMP_NUM_THREADS": str(self.options.threads),
            # OpenMP's threads wait by spinning, which slows down the other workers.
            "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }
        if self.options.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = self.options.gpus[worker % len(self.options.gpus)]
        return environment

    def _poll(self, each: _RunningJob) -> None:
        code, now = each.process.poll(), time.monotonic()
        if code is None:
            if now - each.noted_s > HEARTBEAT_S:
                each.noted_s = now
                self._write_state(each, "running")
                self._drop_old_checkpoints(each.job)
            return
        self.running.remove(each)
        self._drop_old_checkpoints(each.job)
        each.record |= {"exit_code": code, "ended_at": datetime.now(UTC).isoformat()}
        missing = missing_output(each.job) if code == 0 else None
        outcome = "done" if code == 0 and missing is None else "failed"
        self._write_state(each, outcome)
        each.lock.release()
        seconds = duration(each.record["seconds"])
        if missing is not None:
            self._finish(each.job, outcome, f"failed: it ended without an error, and {missing} is not there")
        elif code == 0:
            self._finish(each.job, outcome, f"done in {seconds}")
        else:
            log = "\n".join(f"    {line}" for line in end_of_log(each.job).splitlines())
            whole = each.job.folder / LOG_FILE
            self._finish(
                each.job, outcome, f"failed with exit code {code} after {seconds}; the whole log: {whole}\n{log}"
            )

    def _write_state(self, each: _RunningJob, state: str) -> None:
        each.record |= {"state": state, "seconds": each.earlier_s + time.monotonic() - each.started_s}
        write_record(each.job.folder, each.record)

    def _drop_old_checkpoints(self, job: Job) -> None:
        if job.kind == "train" and not self.options.keep_all_checkpoints:
            drop_old_checkpoints(job)

    def _finish(self, job: Job, outcome: str, text: str) -> None:
        self.outcome[job.name] = outcome
        self._say(f"{job.name}: {text}")

    def _say(self, text: str) -> None:
        """One line about a job, with the time and the count."""
        print(f"{datetime.now():%H:%M:%S} [{len(self.outcome)}/{len(self.jobs)}] {text}", flush=True)

    def stop(self) -> None:
        """End the running jobs; they go on when the queue is started again."""
        for each in self.running:
            _signal(each.process, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        for each in self.running:
            try:
                each.process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                pass
            _signal(each.process, signal.SIGKILL)  # whatever is left of its group
            each.process.wait()
            try:
                self._write_state(each, "interrupted")
            except DiskFullError:
                pass  # a job that says "running" and holds no lock counts as interrupted
            each.lock.release()
            self._say(f"{each.job.name}: interrupted")
        self.running.clear()


def _signal(process: subprocess.Popen, number: int) -> None:
    """Send a signal to a job's process group, its data loaders and environments included."""
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass


@contextmanager
def _interruptible():
    """Ctrl-C ends the queue, and so does SIGTERM, from a batch system for instance."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    # SIGINT too: a shell lets its background jobs ignore it, and a queue is often one.
    old = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
