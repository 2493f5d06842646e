"""What was run: commands, versions, commits."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Run:
    """One command that was run.

    Attributes:
        name: Of the job, or of the evaluation's folder.
        kind: "train", "eval" or "prophet".
        model: Label of what was trained or evaluated; "" where there is none.
        train_seed: Training seed; None where there is none.
        command: As it would be typed.
        commit: Of this project; "" where it is not known.
        versions: Package -> version.
        state: "done", "failed", ...
        seconds: How long it took; None where it is not known.
        started_at: When.
        facts: More that is worth telling: renderer, checkpoint's hash, machine ...
    """

    name: str
    kind: str
    model: str
    train_seed: int | None
    command: str
    commit: str
    versions: dict[str, str]
    state: str = "done"
    seconds: float | None = None
    started_at: str = ""
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def time(self) -> str:
        """Such as "1 h 02 min", or ""."""
        if self.seconds is None:
            return ""
        minutes, seconds = divmod(round(self.seconds), 60)
        hours, minutes = divmod(minutes, 60)
        if hours:
            return f"{hours} h {minutes:02d} min"
        return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"


def run_of_job(job: dict[str, Any]) -> Run:
    """A job of wm-matrix; `eval` is the eval.json of an evaluation."""
    info = job.get("eval") or {}
    return Run(
        name=job["name"],
        kind=job["kind"],
        model=job.get("model") or "",
        train_seed=job.get("train_seed"),
        command=_typed(job["command"]),
        commit=job.get("commit") or "",
        versions={**(job.get("versions") or {}), **(info.get("versions") or {})},
        state=job.get("state") or "",
        seconds=job.get("seconds"),
        started_at=job.get("started_at") or "",
        facts=({"threads": str(job["threads"])} if job.get("threads") else {}) | _facts(info),
    )


def run_of_eval(info: dict[str, Any]) -> Run:
    """An evaluation that no job started."""
    return Run(
        name=info["folder"].rstrip("/").rsplit("/", 1)[-1],
        kind="eval",
        model=info["model"],
        train_seed=info["train_seed"],
        command=_typed(info["command"]),
        commit=info.get("commit") or "",
        versions=info.get("versions") or {},
        started_at=info.get("started_at") or "",
        facts=_facts(info),
    )


def _facts(info: dict[str, Any]) -> dict[str, str]:
    """What is worth telling of an eval.json."""
    facts = {name: str(info.get(name) or "") for name in ("checkpoint", "checkpoint_hash", "renderer", "machine")}
    facts["arms"] = ", ".join(info.get("arms") or [])
    return {name: text for name, text in facts.items() if text}


def _typed(command: Sequence[str] | str) -> str:
    return command if isinstance(command, str) else shlex.join(map(str, command))


def common_versions(runs: Sequence[Run]) -> dict[str, list[tuple[str, int]]]:
    """Package -> (version, how many runs had it), most frequent first; the commit among them."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, version in {**run.versions, "commit": run.commit or "not known"}.items():
            counts.setdefault(name, Counter())[str(version)] += 1
    return {name: counter.most_common() for name, counter in sorted(counts.items())}
