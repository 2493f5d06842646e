"""What was run: commands, versions, commits."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from world_modality_core.studies.matrix.job_record import duration


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
        facts: More that is worth showing: renderer, checkpoint's hash, machine ...
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
        return "" if self.seconds is None else duration(self.seconds)


def run_of_job(job: dict[str, Any]) -> Run:
    """A job of wm-matrix; `eval` is the eval.json of an evaluation."""
    info, command = job.get("eval") or {}, job["command"]
    return Run(
        name=job["name"],
        kind=job["kind"],
        model=job.get("model") or "",
        train_seed=job.get("train_seed"),
        command=command if isinstance(command, str) else shlex.join(map(str, command)),
        commit=job.get("commit") or "",
        versions={**(job.get("versions") or {}), **(info.get("versions") or {})},
        state=job.get("state") or "",
        seconds=job.get("seconds"),
        started_at=job.get("started_at") or "",
        facts=({"threads": str(job["threads"])} if job.get("threads") else {}) | _facts(info),
    )


def run_of_eval(info: dict[str, Any]) -> Run:
    """An evaluation that no job started."""
    same = {key: info.get(key) for key in ("model", "train_seed", "command", "commit", "started_at")}
    return run_of_job(same | {"name": Path(info["folder"]).name, "kind": "eval", "state": "done", "eval": info})


def _facts(info: dict[str, Any]) -> dict[str, str]:
    """More of an eval.json that is worth showing."""
    facts = {name: str(info.get(name) or "") for name in ("checkpoint", "checkpoint_hash", "renderer", "machine")}
    facts["arms"] = ", ".join(info.get("arms") or [])
    return {name: text for name, text in facts.items() if text}


def common_versions(runs: Sequence[Run]) -> dict[str, list[tuple[str, int]]]:
    """Package -> (version, how many runs had it), most frequent first; the commit among them."""
    counts: dict[str, Counter[str]] = {}
    for run in runs:
        for name, version in {**run.versions, "commit": run.commit or "not known"}.items():
            counts.setdefault(name, Counter())[str(version)] += 1
    return {name: counter.most_common() for name, counter in sorted(counts.items())}
