"""`wm-record`: Meta-World's scripted experts, recorded into a LeRobotDataset with video.

    wm-record --tasks=push-v3,reach-v3 --n_episodes=30 --action_noise=0.1 --output.repo_id=me/mw --output.root=data/mw

Every episode is staged as a dataset of one episode (`record_episode.py`) beside the output and appears there all or
nothing; at the end LeRobot merges them in the order of tasks and seeds. A recording that was killed therefore goes on
with the same command and loses at most the episodes in flight, and the result does not depend on the number of workers.
"""

import contextlib
import importlib.metadata
import io
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, TypedDict

from filelock import FileLock, Timeout
from lerobot.configs import parser
from lerobot.configs.video import RGBEncoderConfig
from tqdm import tqdm

from lerobot_policy_world_modality.envs.configuration_metaworld_light import MetaworldLightEnvConfig
from lerobot_policy_world_modality.envs.frame_guard import BlankFrameError, FrozenFrameError
from lerobot_policy_world_modality.envs.mujoco_gl import RendererError, choose_mujoco_gl
from world_modality_core.io.commands import command_errors
from world_modality_core.io.files import checked, naming_full_disk, read_json, write_text
from world_modality_core.io.option_differences import option_differences
from world_modality_core.latents.companion import default_root

RECORD_FILE = Path("meta/wm_record.json")
MERGE_AT_ONCE = 16
"""LeRobot's merge rewrites its output for every source: 16 at a time, then the results, instead of n^2/2 episodes."""


@dataclass
class RecordOutput:
    """Where the dataset goes: a local folder (default: LeRobot's home), and its name on the Hub."""

    repo_id: str = ""
    root: str | None = None
    private: bool = False


@dataclass
class RecordEnv:
    """The part of `--env.type=metaworld_light` that a recording may choose. `episode_length` caps an episode."""

    type: Literal["metaworld_light"] = "metaworld_light"
    episode_length: int = 500
    observation_height: int = 128
    observation_width: int = 128
    camera_name: str = "corner2"
    hide_goal_after: int = 0
    hold_still_for: int = 0


@dataclass
class RecordConfig:
    """Options of `wm-record`."""

    # Meta-World tasks or difficulty tiers, comma-separated.
    tasks: str = ""
    # successful episodes to keep, per task.
    n_episodes: int = 30
    # the first seed of every task; each next attempt takes the next seed. Record from 0 upwards and evaluate
    # with `--seed=100000` or above, and no scene is in both.
    start_seed: int = 0
    # standard deviation of the white noise added to the executed action; labels stay the expert's own.
    action_noise: float = 0.0
    # frames kept after success, in which the expert goes on.
    n_frames_after_success: int = 5
    # processes; 0 means one per usable core, at most 8. Does not change the result.
    n_workers: int = 0
    # upload when done.
    push_to_hub: bool = False
    output: RecordOutput = field(default_factory=RecordOutput)
    env: RecordEnv = field(default_factory=RecordEnv)
    # LeRobot's encoder settings. The default is lossless but for the rounding of colours, as a policy acts on frames
    # that no codec has touched, and decodes fast at random places (a key frame every 2 frames, no B-frames).
    video: RGBEncoderConfig = field(
        default_factory=lambda: RGBEncoderConfig(
            vcodec="h264", pix_fmt="yuv444p", g=2, crf=0, preset="veryfast", extra_options={"bf": 0}
        )
    )

    def validate(self) -> None:
        """Raises ValueError naming the option. Not `__post_init__`: the parser would bury the message."""
        if not self.output.repo_id:
            raise ValueError("output.repo_id is empty: name the dataset, for instance --output.repo_id=me/metaworld")
        for name, least in (("n_episodes", 1), ("start_seed", 0), ("n_frames_after_success", 0), ("n_workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least {least}")
        if not 0 <= self.action_noise <= 1:
            raise ValueError(f"action_noise={self.action_noise}: expected 0 to 1, the actions' own range being [-1, 1]")
        _env_config(self)


class _Outcome(TypedDict):
    """What `record_episode` writes of an attempt."""

    task: str
    seed: int
    success: bool
    n_frames: int


class RecordError(RuntimeError):
    """The recording cannot start or go on; the message says what to do."""


def record(cfg: RecordConfig) -> Path:
    """Record the dataset that the options describe, or the rest of it.

    Returns:
        The dataset's root.

    Raises:
        RecordError: the output exists and was recorded otherwise, another recorder is at work, the disk is too small,
            or an expert nearly always fails.
        ValueError: an option makes no sense, or a task does not exist.
    """
    cfg.validate()
    choose_mujoco_gl()  # before anything imports mujoco
    from lerobot_policy_world_modality.envs.metaworld_light import TASK_DESCRIPTIONS, resolve_tasks

    tasks = [task for group in resolve_tasks(cfg.tasks).values() for task in group]
    tasks = list(dict.fromkeys(tasks))
    root = Path(cfg.output.root or default_root(cfg.output.repo_id))
    staging = root.with_name(root.name + ".recording")
    request = _request(cfg, tasks)
    _tell_shared_instructions(tasks, TASK_DESCRIPTIONS)

    if _is_recorded(root, {**request, "n_episodes": cfg.n_episodes}):
        print(f"{root} holds this recording already.")
    else:
        staging.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(staging / "lock", timeout=0), naming_full_disk(staging):
                _check_staging(staging, request)
                _check_disk(cfg, len(tasks), staging)
                attempts = _record_missing(cfg, tasks, staging)
                _merge(cfg, attempts, staging, root, request, TASK_DESCRIPTIONS)
        except Timeout:
            raise RecordError(f"another wm-record is writing {root}: wait, or choose another --output.root") from None
        except BaseException:
            if not any(staging.glob("*/*.json")):  # nothing worth resuming
                shutil.rmtree(staging)
            raise
    shutil.rmtree(staging, ignore_errors=True)
    if cfg.push_to_hub:
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        LeRobotDataset(cfg.output.repo_id, root=root).push_to_hub(private=cfg.output.private)
    return root


class Attempts:
    """Which seeds of one task were tried, and which are still to try.

    Seeds count up from `start_seed`; every failure asks for one more. The kept episodes are the first `n_episodes`
    successes, in whatever order the attempts were made.
    """

    def __init__(self, task: str, start_seed: int, n_episodes: int):
        self.task, self.start_seed, self.n_episodes = task, start_seed, n_episodes
        self.outcomes: dict[int, dict] = {}

    def seeds(self) -> range:
        """The seeds to try, as far as is known now: as many as episodes wanted and failures among these seeds."""
        n = self.n_episodes
        while (wanted := self.n_episodes + len(self._failed(n))) > n:
            n = wanted
        return range(self.start_seed, self.start_seed + n)

    def missing(self) -> list[int]:
        return [seed for seed in self.seeds() if seed not in self.outcomes]

    def kept(self) -> list[int]:
        return [s for s in self.seeds() if s in self.outcomes and self.outcomes[s]["success"]]

    def failed(self) -> list[int]:
        return self._failed(len(self.seeds()))

    def add(self, outcome: dict) -> None:
        """Raises RecordError when the expert hardly ever succeeds."""
        self.outcomes[outcome["seed"]] = outcome
        n_tried, n_kept = len(self.outcomes), len(self.kept())
        if n_tried >= 20 and n_kept < 0.1 * n_tried:
            raise RecordError(
                f"task {self.task}: the expert succeeded in {n_kept} of {n_tried} scenes. "
                "Lower --action_noise, raise --env.episode_length, or leave this task out."
            )

    def _failed(self, n: int) -> list[int]:
        seeds = range(self.start_seed, self.start_seed + n)
        return [s for s in seeds if s in self.outcomes and not self.outcomes[s]["success"]]


def _record_missing(cfg: RecordConfig, tasks: list[str], staging: Path) -> list[Attempts]:
    """Record every episode that the staging folder does not hold yet."""
    from lerobot_policy_world_modality.record.expert_episode import EpisodeJob

    attempts = {task: Attempts(task, cfg.start_seed, cfg.n_episodes) for task in tasks}
    for task in tasks:
        for path in sorted(staging.glob(f"{task}/*.json")):
            attempts[task].add(checked(_Outcome, read_json(path), path))

    gym_kwargs = _env_config(cfg).gym_kwargs
    with tqdm(total=len(tasks) * cfg.n_episodes, unit="episode") as bar:

        def show() -> None:
            bar.n = sum(len(a.kept()) for a in attempts.values())
            bar.set_postfix(failed=sum(len(a.failed()) for a in attempts.values()))

        def jobs() -> list[EpisodeJob]:
            show()
            options = (gym_kwargs, cfg.action_noise, cfg.n_frames_after_success, staging, cfg.video)
            return [EpisodeJob(a.task, seed, *options) for a in attempts.values() for seed in a.missing()]

        bar.initial = sum(len(a.kept()) for a in attempts.values())
        for outcome in _run(jobs, cfg.n_workers or min(8, _n_cores())):
            attempts[outcome["task"]].add(outcome)
        show()
    return list(attempts.values())


def _run(jobs, n_workers: int):
    """Yield the outcome of each job as it ends; `jobs()` lists those that are not done yet, and may grow."""
    from lerobot_policy_world_modality.record import expert_episode as record_episode

    n_workers = min(n_workers, len(jobs()))
    if n_workers <= 1:
        while todo := jobs():
            yield record_episode.record_episode(todo[0])
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([record_episode.__name__])
    running: dict[tuple[str, int], Future] = {}
    with ProcessPoolExecutor(n_workers, context, initializer=record_episode.follow_parent) as pool:
        try:
            while True:
                for job in jobs():
                    if (job.task, job.seed) not in running:
                        running[job.task, job.seed] = pool.submit(record_episode.record_episode, job)
                if not running:
                    return
                done, _ = wait(running.values(), return_when=FIRST_COMPLETED)
                for key in [key for key, future in running.items() if future in done]:
                    yield running.pop(key).result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _merge(
    cfg: RecordConfig,
    attempts: list[Attempts],
    staging: Path,
    root: Path,
    request: dict,
    descriptions: dict[str, str],
) -> None:
    """Merge the kept episodes, in order, into the output; it appears complete or not at all."""
    sources = [staging / a.task / f"{seed:06d}" for a in attempts for seed in a.kept()]
    merged = merge_episodes(sources, cfg.output.repo_id, staging / "merged")

    report = {a.task: _task_report(a, descriptions[a.task]) for a in attempts}
    record_of_it = {
        **request,
        "n_episodes": cfg.n_episodes,
        "tasks": report,
        "versions": {name: importlib.metadata.version(name) for name in ("lerobot", "metaworld", "mujoco")},
    }
    path = merged / RECORD_FILE
    write_text(path, json.dumps(record_of_it, indent=1))
    root.parent.mkdir(parents=True, exist_ok=True)
    if root.exists():
        root.rmdir()  # empty: _is_recorded refused anything else
    os.replace(merged, root)
    _print_report(report, root)


def merge_episodes(sources: list[Path], repo_id: str, folder: Path) -> Path:
    """Merge datasets of one episode each into one, in their order.

    Args:
        sources: Their roots.
        repo_id: What the result is called.
        folder: Where to work; what is there is removed.

    Returns:
        The result's root, in `folder`.
    """
    import av
    from lerobot.datasets.aggregate import aggregate_datasets

    shutil.rmtree(folder, ignore_errors=True)
    print(f"Merging {len(sources)} episodes ...")
    level = 0
    av.logging.set_libav_level(av.logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per merge
        while level == 0 or len(sources) > 1:
            groups = [sources[i : i + MERGE_AT_ONCE] for i in range(0, len(sources), MERGE_AT_ONCE)]
            sources = [folder / f"{level}" / f"{i}" for i in range(len(groups))]
            for group, target in zip(groups, sources, strict=True):
                aggregate_datasets([repo_id] * len(group), repo_id, group, target)
            level += 1
    return sources[0]


def _task_report(attempts: Attempts, description: str) -> dict:
    kept = attempts.kept()
    n_frames = sum(attempts.outcomes[seed]["n_frames"] for seed in kept)
    return {
        "instruction": description,
        "n_kept": len(kept),
        "n_failed": len(attempts.failed()),
        "mean_frames": n_frames / len(kept),
        "kept_seeds": kept,
        "failed_seeds": attempts.failed(),
    }


def _print_report(report: dict[str, dict], root: Path) -> None:
    print(f"{'task':<30} {'kept':>5} {'failed':>7} {'expert succeeded':>17} {'mean frames':>12}")
    for task, row in report.items():
        rate = row["n_kept"] / (row["n_kept"] + row["n_failed"])
        print(f"{task:<30} {row['n_kept']:>5} {row['n_failed']:>7} {rate:>16.0%} {row['mean_frames']:>13.1f}")
    print(f"Recorded {sum(r['n_kept'] for r in report.values())} episodes into {root}")


def _request(cfg: RecordConfig, tasks: list[str]) -> dict:
    """What decides the content of the dataset, except how many episodes of it there are."""
    return {
        "format": 1,
        "tasks": tasks,
        "start_seed": cfg.start_seed,
        "action_noise": cfg.action_noise,
        "n_frames_after_success": cfg.n_frames_after_success,
        "env": asdict(cfg.env),
        "video": asdict(cfg.video),
    }


def _is_recorded(root: Path, request: dict) -> bool:
    """Whether the output is there, complete and of these options.

    Raises:
        RecordError: something else is there.
    """
    if not root.exists() or not any(root.iterdir()):
        return False
    path = root / RECORD_FILE
    if not path.is_file():
        raise RecordError(f"{root} exists and was not made by wm-record; choose another --output.root")
    found = read_json(path, dict)
    found["tasks"] = list(found.get("tasks") or ())
    if differing := _differences(found, request):
        raise RecordError(f"{root} was recorded with other options ({differing}); choose another --output.root")
    return True


def _check_staging(staging: Path, request: dict) -> None:
    """Raises RecordError when the interrupted recording that is there had other options."""
    path = staging / "request.json"
    if not path.is_file():
        write_text(path, json.dumps(request, indent=1))
    elif differing := _differences(read_json(path, dict), request):
        raise RecordError(
            f"{staging} holds an interrupted recording with other options ({differing}); "
            "finish it with its own options, delete that folder, or choose another --output.root"
        )


def _differences(found: dict, request: dict) -> str:
    # A record says more than was asked for; an option that is younger than the recording had its default.
    found = {name: found.get(name) for name in request} | {"env": asdict(RecordEnv()) | found.get("env", {})}
    return "; ".join(option_differences(found, request))


def _check_disk(cfg: RecordConfig, n_tasks: int, staging: Path) -> None:
    """Twice (staged and merged) 0.3 bytes a pixel, several times what was measured, for 200 frames an episode."""
    pixels = cfg.env.observation_height * cfg.env.observation_width
    needed = 2 * n_tasks * cfg.n_episodes * (min(200, cfg.env.episode_length) * 0.3 * pixels + 100_000)
    free = shutil.disk_usage(staging).free
    if free < needed:
        raise RecordError(
            f"{staging.parent} has {free / 1e9:.1f} GB free and this recording may need {needed / 1e9:.1f} GB; "
            "make room, or choose another --output.root"
        )


def _tell_shared_instructions(tasks: list[str], descriptions: dict[str, str]) -> None:
    shared = [text for text, n in Counter(descriptions[task] for task in tasks).items() if n > 1]
    for text in shared:
        names = ", ".join(task for task in tasks if descriptions[task] == text)
        logging.warning(
            f'{names} have the same instruction in LeRobot ("{text}"): a policy that is told only that cannot know '
            "which one is meant, and their episodes share one task_index."
        )


def _n_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _env_config(cfg: RecordConfig) -> MetaworldLightEnvConfig:
    """The environment's own config, which also checks the options."""
    return MetaworldLightEnvConfig(**{key: value for key, value in asdict(cfg.env).items() if key != "type"})


def main() -> None:
    """Console script `wm-record`."""
    sys.argv[1:] = ["--push_to_hub=true" if arg == "--push_to_hub" else arg for arg in sys.argv[1:]]
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    import datasets

    datasets.disable_progress_bars()
    with command_errors("wm-record", RecordError, RendererError, BlankFrameError, FrozenFrameError, ValueError):
        parser.wrap()(record)()


if __name__ == "__main__":
    main()
