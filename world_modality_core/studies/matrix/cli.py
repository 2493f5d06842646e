"""`wm-matrix`: a study from one YAML, as a resumable queue of wm-prophet, lerobot-train, wm-eval and wm-intervene.

wm-matrix examples/studies/study1.yaml --plan
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix.expand import Job, expand, select
from world_modality_core.studies.matrix.flags import check_flags, has_metrics_file
from world_modality_core.studies.matrix.job_record import check_unchanged, duration, is_done, read_record, state
from world_modality_core.studies.matrix.queue import QueueOptions, find_program, run_queue
from world_modality_core.studies.matrix.study import KINDS, Study, load_study


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="wm-matrix", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("study", type=Path, help="YAML file (docs/studies.md)")
    parser.add_argument("--plan", action="store_true", help="show the jobs and how many are done, and stop")
    parser.add_argument("-v", "--verbose", action="store_true", help="with --plan: every command")
    parser.add_argument("--status", action="store_true", help="show how far each job is, and stop")
    parser.add_argument("--export", type=Path, help="write the small records of what is done into a folder, and stop")
    parser.add_argument("--jobs", type=int, help="how many run at a time; default: one for each of --gpus, or 2")
    parser.add_argument("--gpus", default="", help="GPUs, with commas between them: one for each worker in turn")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of each job (1)")
    parser.add_argument(
        "--only",
        default="",
        help="only these jobs or models and what they build on: patterns, with commas between them",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a value of `vars`, in place of the file's; repeatable",
    )
    parser.add_argument("--root", help="folder of the jobs, in place of the file's")
    parser.add_argument("--retry_failed", action="store_true", help="run failed jobs again")
    return parser


def format_plan(study: Study, jobs: list[Job], n_workers: int, verbose: bool) -> str:
    """How many jobs each kind and model has, and how many are done; if `verbose`, every command."""
    lines = [f"{study.study}: {len(jobs)} jobs in {study.root}, {n_workers} at a time", ""]
    lines.append(f"  {'kind':<10} {'model':<28} {'jobs':>4} {'done':>5}")
    groups: dict[tuple[str, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.kind, job.model), []).append(job)
    for (kind, model), group in sorted(groups.items(), key=lambda item: KINDS.index(item[0][0])):
        n_done = sum(is_done(job, read_record(job.folder)) for job in group)
        lines.append(f"  {kind:<10} {model:<28} {len(group):>4} {n_done:>5}")
    for job in jobs if verbose else ():
        lines += [
            "",
            f"# {job.name}" + (f", after {', '.join(job.after)}" if job.after else ""),
            shlex.join(job.command),
        ]
    return "\n".join(lines)


def format_status(jobs: list[Job]) -> str:
    """One line per job, and the counts."""
    lines, counts = [], {}
    for job in jobs:
        record, now = read_record(job.folder), state(job)
        if now == "done" and not is_done(job, record):
            now = "done in part"  # it is asked for more arms or scenes than it has
        counts[now] = counts.get(now, 0) + 1
        seconds = duration(record["seconds"]) if record else ""
        lines.append(f"  {now:<12} {job.name:<44} {seconds}")
    return "\n".join([*lines, "", ", ".join(f"{n} {name}" for name, n in counts.items())])


def main(
    argv: list[str] | None = None,
    find_program: Callable[[str], str] = find_program,
    check: Callable[[list[Job]], None] = check_flags,
) -> int:
    """Console script `wm-matrix`.

    Args:
        argv: Arguments; the process's by default.
        find_program: Name of a command -> what to execute; the environment's console scripts by default.
        check: Refuses jobs that can't work.

    Returns:
        Exit status: 0 if all is done, 1 if not.

    Raises:
        SystemExit: 1 with one line where there is something to mend, 130 if interrupted.
    """
    return run_command("wm-matrix", make_parser(), lambda given: _run(given, find_program, check), argv)


def _run(given: argparse.Namespace, find_program: Callable[[str], str], check: Callable[[list[Job]], None]) -> int:
    gpus = tuple(gpu for gpu in given.gpus.split(",") if gpu)
    n_workers = given.jobs if given.jobs is not None else len(gpus) or 2
    for name, value in (("jobs", n_workers), ("threads", given.threads)):
        if value < 1:
            raise ConfigError(f"--{name}={value}: expected at least 1")
    overrides = _overrides(given.set)
    study = load_study(given.study, overrides, given.root)
    jobs = select(expand(study, has_metrics_file), [word for word in given.only.split(",") if word])
    if given.status:
        print(format_status(jobs))
        return 0
    if given.export is not None:
        from world_modality_core.studies.matrix.export import export  # pandas and what it takes

        print(export(study, jobs, given.study, given.export, overrides))
        return 0
    check(jobs)
    check_unchanged(jobs)
    print(format_plan(study, jobs, n_workers, given.verbose), flush=True)
    if given.plan:
        return 0
    print()
    options = QueueOptions(
        n_workers=n_workers,
        gpus=gpus,
        threads=given.threads,
        retry_failed=given.retry_failed,
        keep_all_checkpoints=study.keep_checkpoints == "all",
        find_program=find_program,
    )
    Path(study.root).resolve().mkdir(parents=True, exist_ok=True)  # a link may lead to a folder that isn't there yet
    outcome = run_queue(jobs, options)
    bad = [name for name, each in outcome.items() if each != "done"]
    print(
        f"\n{len(outcome) - len(bad)} of {len(outcome)} jobs are done"
        + (f"; not done: {', '.join(bad)}" if bad else "")
    )
    return 1 if bad else 0


def _overrides(words: list[str]) -> dict[str, str]:
    overrides = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise ConfigError(f"--set {word}: expected NAME=VALUE")
        overrides[name] = value
    return overrides


if __name__ == "__main__":
    sys.exit(main())
