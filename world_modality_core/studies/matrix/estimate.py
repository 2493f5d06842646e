"""How long a study takes: from its own finished jobs, or from the seconds that the study names."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from statistics import median

from world_modality_core.studies.matrix.expand import Job
from world_modality_core.studies.matrix.job_record import is_done, read_record, state


@dataclass(frozen=True)
class Guess:
    """The time that a job takes, all of it, and where the figure comes from."""

    seconds: float | None
    source: str  # "measured", "given" or "unknown"


def duration(seconds: float | None) -> str:
    """Seconds as "3 h 05 min", "2 min 05 s" or "7 s"; None as "unknown"."""
    if seconds is None:
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def guess_all(jobs: list[Job], given: dict[str, float], study_jobs: list[Job] | None = None) -> dict[str, Guess]:
    """Estimate each job from finished ones: of the same model, else of the same policy type, else of the same kind.

    Args:
        jobs: Jobs to estimate.
        given: Seconds a unit by kind, for what was never measured.
        study_jobs: Jobs to learn from: all of the study's, also those that are not asked for; `jobs` if not given.

    Returns:
        Job name -> guess.
    """
    rates: dict[tuple[str, ...], list[float]] = {}
    for job in study_jobs or jobs:
        record = read_record(job.folder)
        if record.get("state") == "done":
            for key in _keys(job):
                rates.setdefault(key, []).append(record["seconds"] / (record.get("units") or 1))
    guesses = {}
    for job in jobs:
        measured = next((rates[key] for key in _keys(job) if key in rates), None)
        if measured:
            guesses[job.name] = Guess(median(measured) * (job.units or 1), "measured")
        elif job.kind in given and (job.units or job.kind == "intervene"):
            guesses[job.name] = Guess(given[job.kind] * (job.units or 1), "given")
        else:
            guesses[job.name] = Guess(None, "unknown")
    return guesses


def _keys(job: Job) -> list[tuple[str, ...]]:
    """What a job's rate is looked up by, the closest first. Steps and whole jobs are different rates."""
    unit = "unit" if job.units else "job"
    keys = [(job.kind, unit, "model", job.model)]
    if job.policy_type:
        keys.append((job.kind, unit, "type", job.policy_type))
    return [*keys, (job.kind, unit)] if job.units or job.kind == "intervene" else keys


def time_left(jobs: list[Job], guesses: dict[str, Guess], n_workers: int, skip_failed: bool = True) -> float | None:
    """Time until all jobs are done, if they run in their order, `n_workers` at a time.

    Returns:
        Seconds; None if the time of a job that is still to run is unknown.
    """
    ends: dict[str, float] = {}
    workers = [0.0] * max(n_workers, 1)
    for job in jobs:
        now, record = state(job), read_record(job.folder)
        if is_done(job, record) or (now == "failed" and skip_failed):
            ends[job.name] = 0.0
            continue
        guess = guesses[job.name].seconds
        if guess is None:
            return None
        left = max(guess - record.get("seconds", 0.0), 0.0)
        start = max([heapq.heappop(workers), *(ends.get(name, 0.0) for name in job.after)])
        ends[job.name] = start + left
        heapq.heappush(workers, ends[job.name])
    return max(ends.values(), default=0.0)
