"""From a study to its jobs: which command each runs, in which folder, and after which others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from world_modality_core.studies.matrix.draw import draw_episodes, read_tasks
from world_modality_core.studies.matrix.errors import MatrixError
from world_modality_core.studies.matrix.study import Flags, Study, substitute

PROGRAMS = {"prophet": "wm-prophet", "train": "lerobot-train", "eval": "wm-eval", "intervene": "wm-intervene"}
_OURS = {
    "prophet": ("output_dir",),
    "train": ("output_dir", "seed", "resume"),
    "eval": ("output_dir", "policy.path", "model", "train_seed", "arms"),
    "intervene": ("output_dir", "policy.path", "model"),
}
"""Flags that the study gives itself."""


@dataclass(frozen=True)
class Job:
    """One run of one command.

    Attributes:
        name: Unique in the study; its folder's name.
        kind: One of `study.KINDS`.
        model: Label of the model or Prophet.
        seed: Training seed; None for a Prophet that serves all seeds.
        command: Program (its name) and arguments.
        folder: Everything of the job.
        after: Names of the jobs that must have been done.
        policy_type: `policy.type`, "" where there is none or it isn't known.
        units: Steps or episodes, for the estimate; None where the command doesn't tell.
    """

    name: str
    kind: str
    model: str
    seed: int | None
    command: tuple[str, ...]
    folder: Path
    after: tuple[str, ...] = ()
    policy_type: str = ""
    units: float | None = None

    @property
    def output(self) -> Path:
        """Folder that the command writes."""
        return self.folder / self.kind

    @property
    def metrics(self) -> Path:
        """What the training logged."""
        return self.folder / "metrics.jsonl"


def checkpoint(train: Job) -> Path:
    """The policy that a training leaves."""
    return train.output / "checkpoints" / "last" / "pretrained_model"


def expand(study: Study, has_metrics: Callable[[str], bool]) -> list[Job]:
    """Write out the jobs of a study, seed by seed, so that a first seed is complete early.

    Args:
        study: The study.
        has_metrics: Whether a policy type has the flag `policy.metrics_file`.

    Returns:
        The jobs, each after those that it builds on.

    Raises:
        MatrixError: if a placeholder is unknown, a flag belongs to the study, or a draw is impossible.
    """
    jobs: dict[str, Job] = {}
    tasks = read_tasks(study.episodes.draw) if study.episodes else None
    seeds = list(dict.fromkeys([*study.seeds, *(s for model in study.models.values() for s in model.seeds or [])]))
    for seed in seeds:
        values: dict[str, Any] = {"seed": seed}
        if tasks is not None:
            labelled, unlabelled = draw_episodes(study.episodes.draw, tasks, seed)
            values |= {"labelled": labelled, "unlabelled": unlabelled, "all": sorted(labelled + unlabelled)}
        models = {label: model for label, model in study.models.items() if seed in (model.seeds or study.seeds)}
        # Prophets first: models wait for them.
        prophets = {
            name: _prophet(study, name, values, jobs)
            for name in dict.fromkeys(m.prophet for m in models.values())
            if name
        }
        for label, model in models.items():
            prophet = prophets.get(model.prophet)
            own = values | ({"prophet": str(prophet.output)} if prophet else {})
            train = _train(study, label, own, prophet, has_metrics)
            jobs[train.name] = train
            for job in [*_evals(study, label, values, train), *_interventions(study, label, values, train)]:
                jobs[job.name] = job
    return list(jobs.values())


def _prophet(study: Study, name: str, values: dict[str, Any], jobs: dict[str, Job]) -> Job:
    entry, where = study.prophets[name], f"prophets.{name}"
    seed = values["seed"] if entry.per_seed else None
    job_name = f"prophet-{name}" + (f"-s{seed}" if entry.per_seed else "")
    if job_name in jobs:
        return jobs[job_name]
    folder = Path(study.root) / job_name
    flags = _merge(study.prophet, entry.flags, where, "prophet")
    if entry.per_seed:
        flags.setdefault("seed", "{seed}")
        flags = substitute(flags, values | {"job": str(folder)}, where)
    else:
        shared = {"job": str(folder)}
        if "all" in values and study.episodes.draw.unlabelled_per_task is None:
            shared["all"] = values["all"]
        for flag, value in flags.items():
            if any(f"{{{key}}}" in str(value) for key in set(values) - set(shared)):
                raise MatrixError(f"{where}.{flag}: {value!r} differs from seed to seed; set per_seed: true")
        flags = substitute(flags, shared, where)
    jobs[job_name] = Job(
        name=job_name,
        kind="prophet",
        model=name,
        seed=seed,
        command=_command("prophet", flags | {"output_dir": str(folder / "prophet")}),
        folder=folder,
        units=_number(flags.get("steps")),
    )
    return jobs[job_name]


def _train(
    study: Study, label: str, values: dict[str, Any], prophet: Job | None, has_metrics: Callable[[str], bool]
) -> Job:
    where, name = f"models.{label}.train", f"train-{label}-s{values['seed']}"
    folder = Path(study.root) / name
    flags = _merge(study.train, study.models[label].train, where, "train")
    flags = substitute(flags, values | {"job": str(folder)}, where)
    if not {"policy.type", "policy.path", "config_path"} & set(flags):
        raise MatrixError(f"{where}: no policy.type (nor policy.path, nor config_path): say what is trained")
    policy_type = str(flags.get("policy.type", ""))
    steps = _number(flags.get("steps"))
    if policy_type and has_metrics(policy_type):
        flags.setdefault("policy.metrics_file", str(folder / "metrics.jsonl"))
    if study.keep_checkpoints == "last" and steps is not None:
        flags.setdefault("save_freq", max(int(steps) // 5, 1))  # what a kill can cost
    if prophet is not None and not any(str(prophet.output) in str(value) for value in flags.values()):
        raise MatrixError(f"models.{label}.prophet: no flag of its training has {{prophet}} in it")
    return Job(
        name=name,
        kind="train",
        model=label,
        seed=values["seed"],
        command=_command("train", flags | {"seed": values["seed"], "output_dir": str(folder / "train")}),
        folder=folder,
        after=(prophet.name,) if prophet else (),
        policy_type=policy_type,
        units=steps,
    )


def _evals(study: Study, label: str, values: dict[str, Any], train: Job) -> list[Job]:
    """The evaluations of a checkpoint: one for each of `evals`, else the one of `eval`."""
    model, jobs = study.models[label], []
    if not (study.eval or study.evals or model.eval):
        return []
    arms = model.arms or study.arms
    for name, extra in (study.evals or {"": {}}).items():
        where = f"models.{label}.eval"
        job_name = f"eval-{label}-s{values['seed']}" + (f"-{name}" if name else "")
        folder = Path(study.root) / job_name
        flags = _merge(_merge(study.eval, extra, f"evals.{name}", "eval"), model.eval, where, "eval")
        flags = substitute(flags, values | {"job": str(folder)}, where)
        n_tasks = str(flags.get("env.task", "")).count(",") + 1
        n_episodes = _number(flags.get("eval.n_episodes", 50))
        jobs.append(
            Job(
                name=job_name,
                kind="eval",
                model=label,
                seed=values["seed"],
                command=_command(
                    "eval", _of_checkpoint(train) | {"train_seed": train.seed, "arms": ",".join(arms)} | flags, folder
                ),
                folder=folder,
                after=(train.name,),
                policy_type=train.policy_type,
                units=n_episodes and n_episodes * n_tasks * len(arms),
            )
        )
    return jobs


def _interventions(study: Study, label: str, values: dict[str, Any], train: Job) -> list[Job]:
    asked = study.models[label].intervene
    if asked is False:
        return []
    where, name = f"models.{label}.intervene", f"intervene-{label}-s{values['seed']}"
    folder = Path(study.root) / name
    flags = _merge(study.intervene, {} if asked is True else asked, where, "intervene")
    flags = substitute(flags, values | {"job": str(folder)}, where)
    command = _command("intervene", _of_checkpoint(train) | flags, folder)
    return [Job(name, "intervene", label, values["seed"], command, folder, (train.name,), train.policy_type)]


def _of_checkpoint(train: Job) -> Flags:
    return {"policy.path": str(checkpoint(train)), "model": train.model}


def _merge(common: Flags, own: Flags, where: str, kind: str) -> Flags:
    """Flags of a job: the common ones, replaced and taken away by its own."""
    for flag in [*common, *own]:
        if flag in _OURS[kind]:
            raise MatrixError(f"{where}: {flag} is given by the study itself; leave it out")
        if flag.rpartition(".")[2] == "trust_remote_code":
            raise MatrixError(f"{where}: {flag}: a file can't ask for code to be run; leave it out")
    taken_away = [pattern for pattern, value in own.items() if value is None]
    kept = {
        flag: value
        for flag, value in common.items()
        if value is not None and not any(fnmatchcase(flag, pattern) for pattern in taken_away)
    }
    return kept | {flag: value for flag, value in own.items() if value is not None}


def _command(kind: str, flags: Flags, folder: Path | None = None) -> tuple[str, ...]:
    if folder is not None:
        flags = flags | {"output_dir": str(folder / kind)}
    return (PROGRAMS[kind], *(f"--{name}={_text(value, kind)}" for name, value in flags.items()))


def _text(value: Any, kind: str) -> str:
    """A value as it is typed on the command line; wm-prophet's lists have no brackets."""
    if isinstance(value, list) and kind == "prophet":
        return ",".join(map(str, value))
    return json.dumps(value, separators=(",", ":")) if isinstance(value, bool | list) else str(value)


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def select(jobs: list[Job], only: list[str]) -> list[Job]:
    """The jobs whose names or models fit one of the patterns, and what they build on; all if there is no pattern.

    Raises:
        MatrixError: if a pattern fits no job.
    """
    if not only:
        return jobs
    by_name = {job.name: job for job in jobs}
    chosen: set[str] = set()
    for pattern in only:
        hits = [job for job in jobs if fnmatchcase(job.name, pattern) or fnmatchcase(job.model, pattern)]
        if not hits:
            names = ", ".join(dict.fromkeys(job.model for job in jobs))
            raise MatrixError(f"--only={pattern} fits no job; models and Prophets are {names}")
        while hits:
            job = hits.pop()
            chosen.add(job.name)
            hits += [by_name[name] for name in job.after]
    return [job for job in jobs if job.name in chosen]
