"""From a study to its jobs: which command each runs, in which folder, and after which others."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix.draw import draw_episodes, read_tasks
from world_modality_core.studies.matrix.study import Flags, Study, substitute

PROGRAMS = {"prophet": "wm-prophet", "train": "lerobot-train", "eval": "wm-eval", "intervene": "wm-intervene"}
_SET_BY_THE_STUDY = {
    "prophet": ("output_dir",),
    "train": ("output_dir", "seed", "resume"),
    "eval": ("output_dir", "policy.path", "model", "train_seed", "arms"),
    "intervene": ("output_dir", "policy.path", "model"),
}


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
        after: Names of the jobs that must be done first.
        policy_type: `policy.type`, "" where the job has none or it isn't known.
    """

    name: str
    kind: str
    model: str
    seed: int | None
    command: tuple[str, ...]
    folder: Path
    after: tuple[str, ...] = ()
    policy_type: str = ""

    @property
    def output(self) -> Path:
        """Folder that the command writes."""
        return self.folder / self.kind

    @property
    def metrics(self) -> Path:
        """What the training logged."""
        return self.folder / "metrics.jsonl"

    @property
    def checkpoint(self) -> Path:
        """The policy that a training leaves."""
        return self.output / "checkpoints" / "last" / "pretrained_model"


def expand(study: Study, has_metrics: Callable[[str], bool]) -> list[Job]:
    """Write out the jobs of a study, seed by seed, so that a first seed is complete early.

    Args:
        study: The study.
        has_metrics: Whether a policy type has the flag `policy.metrics_file`.

    Returns:
        The jobs, each after those that it builds on.

    Raises:
        ConfigError: if a placeholder is unknown, a flag belongs to the study, or a draw is impossible.
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
        # Prophets first: models wait for them. One that serves all seeds comes again with each, as the same job.
        prophets = {
            name: _prophet(study, name, values) for name in dict.fromkeys(m.prophet for m in models.values()) if name
        }
        chains = [
            [train, *_evals(study, label, values, train), *_interventions(study, label, values, train)]
            for label, model in models.items()
            for train in [_train(study, label, values, prophets.get(model.prophet), has_metrics)]
        ]
        for job in [*prophets.values(), *(job for chain in chains for job in chain)]:
            jobs.setdefault(job.name, job)
    return list(jobs.values())


def _prophet(study: Study, name: str, values: dict[str, Any]) -> Job:
    entry, where = study.prophets[name], f"prophets.{name}"
    flags = _merge(study.prophet, entry.flags, where, "prophet")
    if entry.per_seed:
        flags.setdefault("seed", "{seed}")
        return _job(study, f"prophet-{name}-s{values['seed']}", name, values["seed"], flags, values, where)
    shared = {}
    if "all" in values and study.episodes.draw.unlabelled_per_task is None:
        shared["all"] = values["all"]
    for flag, value in flags.items():
        if any(f"{{{key}}}" in str(value) for key in set(values) - set(shared)):
            raise ConfigError(f"{where}.{flag}: {value!r} differs from seed to seed; set per_seed: true")
    return _job(study, f"prophet-{name}", name, None, flags, shared, where)


def _train(
    study: Study, label: str, values: dict[str, Any], prophet: Job | None, has_metrics: Callable[[str], bool]
) -> Job:
    where, seed = f"models.{label}.train", values["seed"]
    flags = _merge(study.train, study.models[label].train, where, "train")
    if not {"policy.type", "policy.path", "config_path"} & set(flags):
        raise ConfigError(f"{where}: no policy.type (nor policy.path, nor config_path): say what is trained")
    if prophet is not None:
        if not any("{prophet}" in str(value) for value in flags.values()):
            raise ConfigError(f"models.{label}.prophet: no flag of its training has {{prophet}} in it")
        values = values | {"prophet": str(prophet.output)}
    policy_type = substitute(str(flags.get("policy.type", "")), values, where)
    if policy_type and has_metrics(policy_type):
        flags.setdefault("policy.metrics_file", "{job}/metrics.jsonl")
    steps = str(flags.get("steps"))
    if study.keep_checkpoints == "last" and steps.isdigit():
        flags.setdefault("save_freq", max(int(steps) // 5, 1))  # what a kill can cost
    after = (prophet.name,) if prophet else ()
    name = f"train-{label}-s{seed}"
    return _job(study, name, label, seed, flags | {"seed": seed}, values, where, after, policy_type)


def _evals(study: Study, label: str, values: dict[str, Any], train: Job) -> list[Job]:
    """The evaluations of a checkpoint: one for each of `evals`, else the one of `eval`."""
    model, where = study.models[label], f"models.{label}.eval"
    if not (study.eval or study.evals or model.eval):
        return []
    given = {"train_seed": train.seed, "arms": ",".join(model.arms or study.arms)}
    jobs = []
    for name, extra in (study.evals or {"": {}}).items():
        flags = _merge(_merge(study.eval, extra, f"evals.{name}", "eval"), model.eval, where, "eval")
        job_name = f"eval-{label}-s{train.seed}" + (f"-{name}" if name else "")
        jobs.append(_of_checkpoint(study, job_name, train, given | flags, values, where))
    return jobs


def _interventions(study: Study, label: str, values: dict[str, Any], train: Job) -> list[Job]:
    asked, where = study.models[label].intervene, f"models.{label}.intervene"
    if asked is False:
        return []
    flags = _merge(study.intervene, {} if asked is True else asked, where, "intervene")
    return [_of_checkpoint(study, f"intervene-{label}-s{train.seed}", train, flags, values, where)]


def _of_checkpoint(study: Study, name: str, train: Job, flags: Flags, values: dict[str, Any], where: str) -> Job:
    """A job that reads the checkpoint of a training."""
    flags = {"policy.path": str(train.checkpoint), "model": train.model} | flags
    return _job(study, name, train.model, train.seed, flags, values, where, (train.name,), train.policy_type)


def _job(
    study: Study, name: str, model: str, seed: int | None, flags: Flags, values: dict[str, Any], where: str,
    after: tuple[str, ...] = (), policy_type: str = "",
) -> Job:  # fmt: skip
    """A job whose kind its name begins with, with the placeholders of its flags filled in."""
    kind, folder = name.partition("-")[0], Path(study.root) / name
    flags = substitute(flags, values | {"job": str(folder)}, where) | {"output_dir": str(folder / kind)}
    command = (PROGRAMS[kind], *(f"--{flag}={_typed(value, kind)}" for flag, value in flags.items()))
    return Job(name, kind, model, seed, command, folder, after, policy_type)


def _merge(common: Flags, own: Flags, where: str, kind: str) -> Flags:
    """Flags of a job: the common ones, replaced and taken away by its own."""
    for flag in [*common, *own]:
        if flag in _SET_BY_THE_STUDY[kind]:
            raise ConfigError(f"{where}: {flag} is given by the study itself; leave it out")
        if flag.rpartition(".")[2] == "trust_remote_code":
            raise ConfigError(f"{where}: {flag}: a file can't ask for code to be run; leave it out")
    taken_away = [pattern for pattern, value in own.items() if value is None]
    kept = {
        flag: value
        for flag, value in common.items()
        if value is not None and not any(fnmatchcase(flag, pattern) for pattern in taken_away)
    }
    return kept | {flag: value for flag, value in own.items() if value is not None}


def _typed(value: Any, kind: str) -> str:
    """A value as it is typed on the command line; wm-prophet's lists have no brackets."""
    if isinstance(value, list) and kind == "prophet":
        return ",".join(map(str, value))
    return json.dumps(value, separators=(",", ":")) if isinstance(value, bool | list) else str(value)


def select(jobs: list[Job], only: list[str]) -> list[Job]:
    """The jobs whose names or models fit one of the patterns, and what they build on; all if no pattern is given.

    Raises:
        ConfigError: if a pattern fits no job.
    """
    if not only:
        return jobs
    by_name = {job.name: job for job in jobs}
    chosen: set[str] = set()
    for pattern in only:
        hits = [job for job in jobs if fnmatchcase(job.name, pattern) or fnmatchcase(job.model, pattern)]
        if not hits:
            names = ", ".join(dict.fromkeys(job.model for job in jobs))
            raise ConfigError(f"--only={pattern} fits no job; models and Prophets are {names}")
        while hits:
            job = hits.pop()
            chosen.add(job.name)
            hits += [by_name[name] for name in job.after]
    return [job for job in jobs if job.name in chosen]
