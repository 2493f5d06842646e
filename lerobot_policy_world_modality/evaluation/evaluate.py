"""Run every arm of a checkpoint over the same pinned scenes, and write one row per episode as it goes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import connection
from pathlib import Path
from time import perf_counter
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout
from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import rollout
from lerobot.utils.device_utils import get_safe_torch_device
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.utils.io_utils import write_video
from lerobot.utils.random_utils import set_seed
from torch import Tensor, nn

from lerobot_policy_world_modality.envs.libero_setup import check_libero_is_set_up
from lerobot_policy_world_modality.evaluation.arms import BANK_ARMS, MemoryArm
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.evaluation.eval_info import begin, describe
from lerobot_policy_world_modality.evaluation.memory_bank import MemoryBank, pinned_number
from lerobot_policy_world_modality.evaluation.pinned_env import PinnedEnv
from lerobot_policy_world_modality.evaluation.pinned_policy import PinnedPolicy
from lerobot_policy_world_modality.evaluation.plan_log import PlanLog
from lerobot_policy_world_modality.evaluation.tasks import LIBERO, Task, tasks_of
from lerobot_policy_world_modality.live_monitor.evaluated_monitor import EvaluatedMonitor, mark_alarm
from lerobot_policy_world_modality.policies.shared.host import host_of
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import writing
from world_modality_core.io.progress import Progress, WithoutBars
from world_modality_core.io.worker_process import follow_parent
from world_modality_core.monitor.monitor_rows import write_monitor_rows
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.studies.evidence.episode_records import INFO_FILE, EpisodeWriter, write_eval_info


def evaluate(cfg: WorldEvalConfig) -> pd.DataFrame:
    """Run what the options ask for and isn't there yet.

    Returns:
        All rows of the evaluation (`world_modality_core.studies.evidence.episode_records`).

    Raises:
        ConfigError: an option can't work, or the folder holds another evaluation or is being written; before any work.
    """
    folder = cfg.resolve()
    if cfg.env.type in LIBERO:
        check_libero_is_set_up()
    monitor = Monitor.load(cfg.monitor) if cfg.monitor else None
    info = describe(cfg, folder)
    output_dir = Path(cfg.output_dir).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output_dir / ".lock", timeout=0):
            return Evaluation(cfg, folder, info, output_dir, monitor).run()
    except Timeout:
        raise ConfigError(f"another wm-eval is writing {output_dir}: wait, or choose another --output_dir") from None


@dataclass(frozen=True)
class SceneBatch:
    """Scenes of one task that run side by side in one arm.

    Attributes:
        task: The task.
        arm: The arm.
        seeds: (b,) seeds of the scenes.
        wanted: Those that are missing.
    """

    task: Task
    arm: str
    seeds: list[int]
    wanted: list[int]


@dataclass(frozen=True)
class PlayedBatch:
    """What came of a batch: rows of its episodes, the monitor's rows of them, and whether the batch moved the draws."""

    batch: SceneBatch
    rows: list[dict[str, Any]]
    watched: list[dict[str, Any]]
    depends_on_batch: bool


class Evaluation:
    """One evaluation: its scenes, what of them was run, and what runs the rest.

    A copy in another process (`run_in_processes`) has what it needs to run batches; this one alone writes rows.

    Args:
        cfg: The options, resolved.
        folder: The checkpoint's, as it was checked and hashed.
        info: What `describe` says of them.
        output_dir: Where everything is written.
        monitor: What watches, if anything does.
    """

    def __init__(
        self, cfg: WorldEvalConfig, folder: Path, info: dict[str, Any], output_dir: Path, monitor: Monitor | None
    ):
        self.cfg, self.folder, self.output_dir, self.monitor = cfg, folder, output_dir, monitor
        self._envs: dict[str, dict[int, Any]] | None = self._make_envs()
        self._pinned: tuple[Task, PinnedEnv] | None = None  # the task that is run, and its environment
        self._is_prepared = False
        self.tasks = tasks_of(cfg.env, self._envs)
        if "wrong_task" in cfg.arm_names and len(self.tasks) < 2:
            raise ConfigError(
                f"arms={cfg.arms!r}: wrong_task shows the memories of another task, but env.task={cfg.env.task!r} is "
                "one task; name a second, or leave wrong_task out"
            )
        self.info = begin(output_dir, info)
        self.writer = EpisodeWriter(output_dir)
        rows = self.writer.rows()
        self.done = set(zip(rows["arm"], rows["task"], rows["seed"].tolist(), strict=True))
        # Of each scene, what it looked like at first: it must look so to every arm.
        self.init_hashes = dict(zip(zip(rows["task"], rows["seed"], strict=True), rows["init_hash"], strict=True))
        self.counts: dict[tuple[str, str], list[bool]] = defaultdict(list)
        for arm, task, success in zip(rows["arm"], rows["task"], rows["success"], strict=True):
            self.counts[arm, task].append(success)
        self.seeds = range(cfg.seed, cfg.seed + cfg.eval.n_episodes)
        self.bank = None
        if self.info["bank_size"]:
            kept = range(cfg.seed, cfg.seed + self.info["bank_size"])
            self.bank = MemoryBank(output_dir, [(task.name, seed) for task in self.tasks for seed in kept])
            done = {(task, seed) for arm, task, seed in self.done if arm == "intact"}
            self.bank.drop_unfinished(done)
            if cfg.bank_arms:
                self.bank.check_holds(done)
                will_run = self.seeds if "intact" in cfg.arm_names else ()
                if any(scene not in done and scene[1] not in will_run for scene in self.bank.scenes):
                    raise ConfigError(
                        f"arms={cfg.arms!r}: {cfg.bank_arms[0]} needs the memories that intact predicts in the first "
                        f"{len(kept)} scenes of each task, and intact has not run them all in {output_dir}; put it "
                        f"among the arms, with --eval.n_episodes={len(kept)} or more"
                    )

    def run(self) -> pd.DataFrame:
        """Run what is missing, then write `episodes.parquet`."""
        # Arms that exchange memories need those of all tasks first.
        exchanging = [arm for arm in self.cfg.arm_names if arm in BANK_ARMS]
        phases = [[arm for arm in self.cfg.arm_names if arm not in BANK_ARMS], exchanging]
        missing = [
            [batch for task in self.tasks for arm in phase for batch in self._missing_batches(task, arm)]
            for phase in phases
        ]
        n_missing = sum(len(batch.wanted) for phase in missing for batch in phase)
        try:
            if n_missing and self.cfg.jobs == 1:
                self._prepare()
            if n_missing:
                n_all = len(self.tasks) * len(self.cfg.arm_names) * len(self.seeds)
                with Progress("wm-eval", n_all, "episodes", n_all - n_missing) as self.progress:
                    for phase in missing:
                        for played in self._play(phase):
                            self._keep(played)
        finally:
            self._close_envs()
        self.writer.finish()
        rows = self.writer.rows()
        self._check_all_is_there(rows)
        return rows

    def _check_all_is_there(self, rows: pd.DataFrame) -> None:
        """Refuse to call done what something else removed from the folder meanwhile."""
        missing = self.done - set(zip(rows["arm"], rows["task"], rows["seed"].tolist(), strict=True))
        if missing or not (self.output_dir / INFO_FILE).is_file():
            raise ConfigError(
                f"output_dir={self.output_dir}: {len(missing)} of {len(self.done)} episodes or {INFO_FILE} are not "
                "there although they were written: something removed them. Evaluate again, into a new folder"
            )

    def _missing_batches(self, task: Task, arm: str) -> list[SceneBatch]:
        """The batches in which an episode is missing."""
        missing = [seed for seed in self.seeds if (arm, task.name, seed) not in self.done]
        return [
            SceneBatch(task, arm, seeds, [seed for seed in seeds if seed in missing])
            for seeds in batches(self.cfg.seed, self.cfg.eval.batch_size, missing)
        ]

    def _play(self, missing: list[SceneBatch]) -> Iterator[PlayedBatch]:
        """Run batches, as they end; in this process, or in several."""
        if self.cfg.jobs == 1:
            yield from map(self.run_batch, missing)
        elif missing:
            self._close_envs()
            yield from run_in_processes(self, missing, self.cfg.jobs)

    def __getstate__(self) -> dict[str, Any]:
        """All but what each process has of its own."""
        return self.__dict__ | {"_envs": None, "_pinned": None, "monitor": None, "progress": None}

    def _make_envs(self) -> dict[str, dict[int, Any]]:
        cfg = self.cfg
        # Processes of asynchronous environments are forked from one that has imported LeRobot: else each imports it.
        multiprocessing.set_forkserver_preload([__name__])
        try:
            return make_env(
                cfg.env,
                n_envs=cfg.eval.batch_size,
                use_async_envs=cfg.eval.use_async_envs,
                trust_remote_code=cfg.trust_remote_code,
            )
        except ValueError as error:
            raise ConfigError(f"env.type={cfg.env.type}, env.task={cfg.env.task!r}: {error}") from error

    def _prepare(self) -> None:
        """Load policy and processors, as lerobot-eval does."""
        cfg, self._is_prepared = self.cfg, True
        self.device = get_safe_torch_device(cfg.policy.device, log=True)
        # lerobot-eval lets cuDNN measure which kernel is fastest: another one each time, in a run that goes on, say.
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cuda.matmul.allow_tf32 = True
        set_seed(cfg.seed)
        cfg.policy.pretrained_path = self.folder
        self.policy = make_policy(cfg=cfg.policy, env_cfg=cfg.env, rename_map=cfg.rename_map)
        self.policy.eval()
        self.pinned_policy = PinnedPolicy(self.policy)
        sizes = [(parameter.requires_grad, parameter.numel()) for parameter in self.policy.parameters()]
        self.facts = self.info["training"] | {
            "n_trainable": sum(n for is_trainable, n in sizes if is_trainable),
            "n_frozen": sum(n for is_trainable, n in sizes if not is_trainable),
            "mujoco": self.info["versions"].get("mujoco") if self.info["renderer"] else None,
        }
        overrides = {
            "device_processor": {"device": str(self.policy.config.device)},
            "rename_observations_processor": {"rename_map": cfg.rename_map},
        }
        preprocessor, postprocessor = make_pre_post_processors(
            policy_cfg=cfg.policy,
            pretrained_path=str(self.folder),
            preprocessor_overrides=overrides,
        )
        self.watch = None
        if self.monitor is not None:
            self.watch = EvaluatedMonitor(self.monitor.to(self.policy.config.device), self.policy, preprocessor)
            preprocessor = self.watch.preprocess
        env_preprocessor, env_postprocessor = make_env_pre_post_processors(env_cfg=cfg.env, policy_cfg=cfg.policy)
        self.processors = {
            "env_preprocessor": env_preprocessor,
            "env_postprocessor": env_postprocessor,
            "preprocessor": preprocessor,
            "postprocessor": postprocessor,
        }

    def _env_of(self, task: Task) -> PinnedEnv:
        """A task's environment, built once for all batches of it that come one after the other."""
        if self._pinned is None or self._pinned[0] != task:
            if self._pinned is not None:
                done, env = self._pinned
                env.close()
                del self._envs[done.group][done.task_id]
            if task.task_id not in (self._envs or {}).get(task.group, {}):
                self._close_envs()
                self._envs = self._make_envs()
            env = self._envs[task.group][task.task_id]
            self._pinned = task, PinnedEnv(env, self.cfg.env.type, task.name, self.cfg.seed)
        return self._pinned[1]

    def _close_envs(self) -> None:
        if self._envs is not None:
            close_envs(self._envs)
        self._envs = self._pinned = None

    def run_batch(self, batch: SceneBatch) -> PlayedBatch:
        """Run the scenes of a batch side by side; keeps films and memories of those that are wanted."""
        if not self._is_prepared:
            self._prepare()
        host = host_of(self.policy)
        memory = None if host is None else host.config.memory
        arm = MemoryArm(batch.arm, self.bank, self.cfg.draw_seed, self.cfg.stale_plans, memory)
        with arm.applied_to(self.policy):
            return self._run_batch(self._env_of(batch.task), arm, batch)

    def _run_batch(self, env: PinnedEnv, arm: MemoryArm, batch: SceneBatch) -> PlayedBatch:
        cfg, task, seeds, wanted = self.cfg, batch.task, batch.seeds, batch.wanted
        filmed = [seed in wanted and seed < cfg.seed + cfg.n_filmed for seed in seeds]
        env.filmed[:] = filmed
        arm.start(task.name, seeds)
        log = PlanLog(self.policy, arm, self.info["n_action_steps"])

        def after_action(policy: nn.Module) -> None:
            log(policy)
            if self.watch is not None:
                self.watch.after_action(env.last_action)

        if self.watch is not None:
            self.watch.start()
        # What is drawn for the batch as a whole is the same in every arm, and in a run that was killed and goes on.
        set_seed(pinned_number(cfg.seed, task.name, seeds[0]) % 2**32)
        self.pinned_policy.start(task.name, seeds)
        start = perf_counter()
        amp = torch.autocast(self.device.type) if cfg.policy.use_amp else nullcontext()
        with torch.no_grad(), amp:
            data = rollout(
                env, self.pinned_policy, **self.processors, seeds=seeds, predicted_latents_callback=after_action
            )
        wall_s = (perf_counter() - start) / env.num_envs
        results = reduce_rollout(data)
        n_plans = [-(-int(steps) // self.info["n_action_steps"]) for steps in results["steps"]]
        summaries = log.summaries(n_plans)
        rows, watched = [], []
        knows = self.watch is not None and cfg.env.type == "metaworld_light"
        setbacks = env.call("setback") if knows else [None] * len(seeds)
        for i, seed in enumerate(seeds):
            if seed not in wanted:
                continue
            init_hash = env.init_hashes[i]
            if arm.for_bank and (task.name, seed) in self.bank.scenes:
                self.bank.save(task.name, seed, torch.stack([memory[i] for memory in arm.for_bank[: n_plans[i]]]))
            success = bool(results["success"][i])
            if self.watch is not None:
                row = self._watched(arm.name, task.name, seed, success, int(results["steps"][i]), i)
                if setbacks[i] is not None and not success:
                    row["setback_at"], row["setback"] = setbacks[i]
                watched.append(row)
                env.films[i] = mark_alarm(env.films[i], watched[-1]["alarm_step"])
            video = self._save_film(env, arm.name, task.name, seed, i) if self._keeps_film(filmed[i], success) else None
            rows.append(
                {
                    **{key: self.info[key] for key in ("model", "train_seed", "policy_type", "n_action_steps")},
                    **{key: self.info[key] for key in ("renderer", "env_hash")},
                    "arm": arm.name,
                    "checkpoint": self.info["checkpoint_hash"],
                    "env": cfg.env.type,
                    "task": task.name,
                    "group": task.group,
                    "tier": task.tier,
                    "seed": seed,
                    "init_hash": init_hash,
                    "instruction": env.instructions[i] if env.instructions else None,
                    "success": success,
                    "steps": int(results["steps"][i]),
                    "sum_reward": float(results["sum_reward"][i]),
                    "max_reward": float(results["max_reward"][i]),
                    "wall_s": wall_s,
                    **summaries[i],
                    "n_plans": n_plans[i],
                    "image_height": self.info["image"][0],
                    "image_width": self.info["image"][1],
                    "episode_length": int(env.call("_max_episode_steps")[0]),
                    "video": video,
                    **self.facts,
                    "action_jerk": float(results["action_jerk"][i]),
                }
            )
        return PlayedBatch(batch, rows, watched, self.pinned_policy.has_drawn)

    def _keep(self, played: PlayedBatch) -> None:
        """Write what came of a batch."""
        arm, task, rows = played.batch.arm, played.batch.task.name, played.rows
        for row in rows:
            self._check_scene(task, row["seed"], row["init_hash"])
        if played.depends_on_batch and not self.info["depends_on_batch"]:
            self.info["depends_on_batch"] = True
            write_eval_info(self.output_dir, self.info)
        if played.watched:  # first: an episode that is done has been watched
            write_monitor_rows(self.output_dir, played.watched, self.monitor.score_names)
        self.writer.write(rows)
        self.done |= {(arm, task, seed) for seed in played.batch.wanted}
        count = self.counts[arm, task]
        count += [row["success"] for row in rows]
        self.progress.note(**{f"successes of {task} {arm}": f"{sum(count)}/{len(count)}"})
        self.progress.update(len(rows))

    def _watched(self, arm: str, task: str, seed: int, success: bool, steps: int, i: int) -> dict[str, Any]:
        """A monitor's row."""
        env = self.cfg.env
        return {
            **{key: self.info[key] for key in ("model", "train_seed")},
            **{"arm": arm, "task": task, "seed": seed, "success": success, "steps": steps},
            "disturbance": getattr(env, "disturbance", ""),
            "disturbed_at": env.disturb_at if getattr(env, "disturbance", "") else None,
            **self.watch.row(i, steps),
        }

    def _check_scene(self, task: str, seed: int, init_hash: str) -> None:
        known = self.init_hashes.setdefault((task, seed), init_hash)
        if known != init_hash:
            raise RuntimeError(
                f"task {task}, seed {seed}: the first observation is not the one that another arm saw (hash "
                f"{init_hash} instead of {known}), so that nothing run here can be paired. Something other than the "
                "seed decides the scene or the picture: another renderer, or an environment that isn't deterministic"
            )

    def _keeps_film(self, is_filmed: bool, success: bool) -> bool:
        return is_filmed and not (self.cfg.videos == "failures" and success)

    def _save_film(self, env: PinnedEnv, arm: str, task: str, seed: int, i: int) -> str:
        path = Path("videos", arm, task.replace("/", "_"), f"{seed}.mp4")
        (self.output_dir / path).parent.mkdir(parents=True, exist_ok=True)
        with writing(self.output_dir / path, ".mp4") as aside:  # libav goes by the name's end
            write_video(aside, env.films[i], env.metadata["render_fps"])
        return path.as_posix()


def run_in_processes(evaluation: Evaluation, missing: list[SceneBatch], n_processes: int) -> Iterator[PlayedBatch]:
    """Run batches in processes of their own, that take them in order.

    Yields:
        What came of each, as they end.

    Raises:
        BrokenExecutor: if a process was killed; the others are stopped.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    is_followed, follows = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        min(n_processes, len(missing)), context, initializer=_begin_worker, initargs=(evaluation, is_followed)
    )
    try:
        for future in as_completed([pool.submit(_run_in_worker, batch) for batch in missing]):
            yield future.result()
    except BaseException:
        follows.close()  # a batch may take minutes: what is in flight is given up, as by a kill
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_in_worker: Evaluation | None = None


def _begin_worker(evaluation: Evaluation, is_followed: connection.Connection) -> None:
    """Before a worker's first batch. What it would print, the command itself has printed."""
    global _in_worker
    follow_parent(is_followed)
    register_third_party_plugins()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    sys.stdout, sys.stderr = open(os.devnull, "w"), WithoutBars(sys.stderr)  # noqa: SIM115 - for as long as it lives
    torch.set_num_threads(evaluation.info["threads"])
    _in_worker = evaluation
    if evaluation.cfg.monitor:
        evaluation.monitor = Monitor.load(evaluation.cfg.monitor)


def _run_in_worker(batch: SceneBatch) -> PlayedBatch:
    return _in_worker.run_batch(batch)


def batches(start: int, size: int, wanted: list[int]) -> Iterator[list[int]]:
    """The batches [start, start + size), [start + size, start + 2 size), ... of seeds in which one is wanted.

    So a scene always runs beside the same scenes, whatever was run before and is left to run; the environments to spare
    run scenes for which nothing is written.
    """
    for number in sorted({(seed - start) // size for seed in wanted}):
        yield list(range(start + number * size, start + (number + 1) * size))


def reduce_rollout(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results of each episode of a rollout, as `lerobot_eval.eval_policy` computes them.

    Args:
        data: What `rollout` returned: `done`, `reward` and `success`, each (b, steps of the longest), and `action`
            (b, steps, a).

    Returns:
        `steps` until done, `sum_reward`, `max_reward` and `success`, each (b,); and `action_jerk` (b,), the mean over
        its steps of how far an action is from where the last two led, |a_t - 2 a_{t-1} + a_{t-2}|.
    """
    last = data["done"].int().argmax(dim=1)  # the first True
    # Up to one step beyond the last, as upstream has it; a finished environment has reward 0 there.
    counts = torch.arange(data["done"].shape[1]) <= last[:, None] + 1
    rewards = data["reward"] * counts.int()
    jerks = data["action"].double().diff(n=2, dim=1).norm(dim=-1)  # of steps 2, 3, ...
    is_inside = torch.arange(2, 2 + jerks.shape[1]) <= last[:, None]
    return {
        "action_jerk": (jerks * is_inside).sum(dim=1) / is_inside.sum(dim=1).clamp(min=1),
        "steps": last + 1,
        "sum_reward": rewards.sum(dim=1),
        "max_reward": rewards.amax(dim=1),
        "success": (data["success"] * counts.int()).any(dim=1),
    }
