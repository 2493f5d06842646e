"""The jobs that record what is missing, and the processes that do them. Imports MuJoCo: choose a renderer before."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from lerobot_policy_world_modality.record import expert_episode
from lerobot_policy_world_modality.record.attempts import Attempts, episode_folder
from lerobot_policy_world_modality.record.expert_episode import EpisodeJob, Outcome
from lerobot_policy_world_modality.record.record_options import RecordConfig
from world_modality_core.io.files import checked, read_json
from world_modality_core.io.progress import Progress
from world_modality_core.io.worker_process import follow_parent


def attempts_so_far(cfg: RecordConfig, tasks: list[str], staging: Path) -> list[Attempts]:
    """What the staging folder holds of each task.

    Raises:
        ConfigError: the expert hardly ever succeeds in a task.
    """
    attempts = {task: Attempts(task, cfg.start_seed, cfg.n_episodes) for task in tasks}
    for task in tasks:
        for path in sorted(staging.glob(f"{task}/*.json")):
            outcome = checked(Outcome, read_json(path), path)
            if not outcome["success"] or episode_folder(staging, task, outcome["seed"]).is_dir():
                attempts[task].add(outcome)
    return list(attempts.values())


def record_missing(cfg: RecordConfig, attempts: list[Attempts], staging: Path) -> None:
    """Record every episode that the staging folder does not hold yet.

    Args:
        cfg: The options.
        attempts: `attempts_so_far`; those that are made are added.
        staging: The folder.

    Raises:
        ConfigError: the expert hardly ever succeeds in a task.
    """
    of_task = {each.task: each for each in attempts}
    options = (cfg.env.gym_kwargs, cfg.action_noise, cfg.n_frames_after_success, staging, cfg.video)
    n_before = sum(len(a.kept()) for a in attempts)
    with Progress("Recording", len(attempts) * cfg.n_episodes, "episodes", n_before) as progress:

        def missing_jobs() -> list[EpisodeJob]:
            if n_failed := sum(len(a.failed()) for a in attempts):
                progress.note(failed=n_failed)
            progress.reach(sum(len(a.kept()) for a in attempts))
            return [EpisodeJob(a.task, seed, *options) for a in attempts for seed in a.missing()]

        for outcome in _outcomes(missing_jobs, cfg.n_workers or min(8, len(os.sched_getaffinity(0)))):
            of_task[outcome["task"]].add(outcome)


def _outcomes(missing_jobs: Callable[[], list[EpisodeJob]], n_workers: int) -> Iterator[Outcome]:
    """Yield the outcome of each job as it ends. A failed attempt asks for another seed, so that the list may grow."""
    n_workers = min(n_workers, len(missing_jobs()))
    if n_workers <= 1:
        while todo := missing_jobs():
            yield expert_episode.record_episode(todo[0])
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([expert_episode.__name__])
    running: dict[tuple[str, int], Future] = {}
    with ProcessPoolExecutor(n_workers, context, initializer=follow_parent) as pool:
        try:
            while True:
                for job in missing_jobs():
                    if (job.task, job.seed) not in running:
                        running[job.task, job.seed] = pool.submit(expert_episode.record_episode, job)
                if not running:
                    return
                done, _ = wait(running.values(), return_when=FIRST_COMPLETED)
                for key in [key for key, future in running.items() if future in done]:
                    yield running.pop(key).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
