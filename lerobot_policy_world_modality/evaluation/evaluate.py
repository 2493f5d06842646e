"""Run every arm of a checkpoint over the same pinned scenes, and write one row per episode as it goes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import nullcontext
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
from lerobot.utils.io_utils import write_video
from lerobot.utils.random_utils import set_seed
from torch import Tensor
from tqdm import tqdm

from lerobot_policy_world_modality.envs.libero_setup import check_libero_is_set_up
from lerobot_policy_world_modality.evaluation.arms import BANK_ARMS, MemoryArm
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.evaluation.eval_info import begin, describe
from lerobot_policy_world_modality.evaluation.memory_bank import MemoryBank, pinned_number
from lerobot_policy_world_modality.evaluation.pinned_env import PinnedEnv
from lerobot_policy_world_modality.evaluation.plan_log import PlanLog
from lerobot_policy_world_modality.evaluation.tasks import LIBERO, Task, tasks_of
from lerobot_policy_world_modality.policies.shared.memory_filling import close_gates
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.episode_records import EpisodeWriter


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
    info = describe(cfg, folder)
    output_dir = Path(cfg.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output_dir / ".lock", timeout=0):
            return Evaluation(cfg, info, output_dir).run()
    except Timeout:
        raise ConfigError(f"another wm-eval is writing {output_dir}: wait, or choose another --output_dir") from None


class Evaluation:
    """One evaluation: its scenes, what of them was run, and what runs the rest.

    Args:
        cfg: The options, resolved.
        info: What `describe` says of them.
        output_dir: Where everything is written.
    """

    def __init__(self, cfg: WorldEvalConfig, info: dict[str, Any], output_dir: Path):
        self.cfg, self.info, self.output_dir = cfg, info, output_dir
        self._envs: dict[str, dict[int, Any]] | None = self._make_envs()
        self.tasks = tasks_of(cfg.env, self._envs)
        if "wrong_task" in cfg.arm_names and len(self.tasks) < 2:
            raise ConfigError(
                f"arms={cfg.arms!r}: wrong_task shows the memories of another task, but env.task={cfg.env.task!r} is "
                "one task; name a second, or leave wrong_task out"
            )
        begin(output_dir, info)
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
        if cfg.bank_arms:
            kept = self.seeds[: cfg.bank_scenes]
            self.bank = MemoryBank(output_dir, [(task.name, seed) for task in self.tasks for seed in kept])
            self.bank.check_holds({(task, seed) for arm, task, seed in self.done if arm == "intact"})
            if "intact" not in cfg.arm_names and any(self._missing("intact", task) for task in self.tasks):
                raise ConfigError(
                    f"arms={cfg.arms!r}: {cfg.bank_arms[0]} needs the memories that intact predicts, and intact has "
                    f"not run to its end in {output_dir}; put it among the arms"
                )

    def run(self) -> pd.DataFrame:
        """Run what is missing, then write `episodes.parquet`."""
        # Arms that exchange memories need those of all tasks first.
        exchanging = [arm for arm in self.cfg.arm_names if arm in BANK_ARMS]
        phases = [[arm for arm in self.cfg.arm_names if arm not in BANK_ARMS], exchanging]
        jobs = [[(task, arm) for task in self.tasks for arm in phase] for phase in phases]
        n_missing = sum(len(self._missing(arm, task)) for phase in jobs for task, arm in phase)
        if n_missing:
            self._prepare()
            n_all = sum(len(phase) for phase in jobs) * len(self.seeds)
            with tqdm(total=n_all, initial=n_all - n_missing, unit="episode", desc="wm-eval") as self.bar:
                for phase in jobs:
                    self._run_phase([(task, arm) for task, arm in phase if self._missing(arm, task)])
        if self._envs is not None:
            close_envs(self._envs)
        self.writer.finish()
        return self.writer.rows()

    def _missing(self, arm: str, task: Task) -> list[int]:
        return [seed for seed in self.seeds if (arm, task.name, seed) not in self.done]

    def _make_envs(self) -> dict[str, dict[int, Any]]:
        cfg = self.cfg
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
        cfg = self.cfg
        self.device = get_safe_torch_device(cfg.policy.device, log=True)
        torch.backends.cudnn.benchmark = True
        torch.backends.cuda.matmul.allow_tf32 = True
        set_seed(cfg.seed)
        self.policy = make_policy(cfg=cfg.policy, env_cfg=cfg.env, rename_map=cfg.rename_map)
        self.policy.eval()
        overrides = {
            "device_processor": {"device": str(self.policy.config.device)},
            "rename_observations_processor": {"rename_map": cfg.rename_map},
        }
        preprocessor, postprocessor = make_pre_post_processors(
            policy_cfg=cfg.policy,
            pretrained_path=cfg.policy.pretrained_path,
            pretrained_revision=cfg.policy.pretrained_revision,
            preprocessor_overrides=overrides,
        )
        env_preprocessor, env_postprocessor = make_env_pre_post_processors(env_cfg=cfg.env, policy_cfg=cfg.policy)
        self.processors = {
            "env_preprocessor": env_preprocessor,
            "env_postprocessor": env_postprocessor,
            "preprocessor": preprocessor,
            "postprocessor": postprocessor,
        }

    def _run_phase(self, jobs: list[tuple[Task, str]]) -> None:
        """Run jobs (task, arm), task after task; each task's environments are built once and serve all of its arms."""
        if not jobs:
            return
        envs, self._envs = self._envs or self._make_envs(), None
        try:
            for task in dict.fromkeys(task for task, _ in jobs):
                env = envs[task.group][task.task_id]
                pinned = PinnedEnv(env, self.cfg.env.type, task.name, self.cfg.seed)
                for arm in [arm for other, arm in jobs if other == task]:
                    self._run_arm(pinned, task, arm)
                env.close()
        finally:
            close_envs(envs)

    def _run_arm(self, env: PinnedEnv, task: Task, arm_name: str) -> None:
        memory = getattr(self.policy.config, "memory", None)
        arm = MemoryArm(arm_name, self.bank, self.cfg.draw_seed, self.cfg.stale_plans, memory)
        latent_reader = getattr(self.policy, "latent_reader", None)
        if latent_reader is not None:
            latent_reader.intervention = arm
        close_gates(self.policy, arm_name == "gate_closed")
        for seeds in batches(self._missing(arm_name, task), env.num_envs):
            self._run_batch(env, task, arm, seeds)

    def _run_batch(self, env: PinnedEnv, task: Task, arm: MemoryArm, wanted: list[int]) -> None:
        """Run the scenes `wanted` and write their rows; environments to spare run the seeds that follow, for nobody."""
        cfg = self.cfg
        seeds = [*wanted, *range(wanted[-1] + 1, wanted[-1] + 1 + env.num_envs - len(wanted))]
        filmed = [seed in wanted and seed < cfg.seed + cfg.n_filmed for seed in seeds]
        env.filmed[:] = filmed
        arm.start(task.name, seeds)
        log = PlanLog(self.policy, arm, self.info["n_action_steps"])
        # Policies that draw noise draw the same in every arm, and in a run that was killed and goes on.
        set_seed(pinned_number(cfg.seed, task.name, wanted[0]) % 2**32)
        start = perf_counter()
        amp = torch.autocast(self.device.type) if cfg.policy.use_amp else nullcontext()
        with torch.no_grad(), amp:
            data = rollout(env, self.policy, **self.processors, seeds=seeds, predicted_latents_callback=log)
        wall_s = (perf_counter() - start) / env.num_envs
        results = reduce_rollout(data)
        n_plans = [-(-int(steps) // self.info["n_action_steps"]) for steps in results["steps"]]
        summaries = log.summaries(n_plans)
        rows = []
        for i, seed in enumerate(wanted):
            init_hash = env.init_hashes[i]
            self._check_scene(task.name, seed, init_hash)
            if arm.seen and (task.name, seed) in self.bank.scenes:
                self.bank.save(task.name, seed, torch.stack([memory[i] for memory in arm.seen[: n_plans[i]]]))
            success = bool(results["success"][i])
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
                }
            )
        self.writer.write(rows)
        self.done |= {(arm.name, task.name, seed) for seed in wanted}
        count = self.counts[arm.name, task.name]
        count += [row["success"] for row in rows]
        self.bar.set_postfix_str(f"{arm.name} {task.name} {sum(count)}/{len(count)}")
        self.bar.update(len(rows))

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
        write_video(self.output_dir / path, env.films[i], env.metadata["render_fps"])
        return path.as_posix()


def batches(seeds: list[int], size: int) -> Iterator[list[int]]:
    """Split seeds into batches, in order; the last may be smaller."""
    for start in range(0, len(seeds), size):
        yield seeds[start : start + size]


def reduce_rollout(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """Results of each episode of a rollout, as `lerobot_eval.eval_policy` computes them.

    Args:
        data: What `rollout` returned: `done`, `reward` and `success`, each (b, steps of the longest).

    Returns:
        `steps` until done, `sum_reward`, `max_reward` and `success`, each (b,).
    """
    last = data["done"].int().argmax(dim=1)  # the first True
    # Up to one step beyond the last, as upstream has it; a finished environment has reward 0 there.
    counts = torch.arange(data["done"].shape[1]) <= last[:, None] + 1
    rewards = data["reward"] * counts.int()
    return {
        "steps": last + 1,
        "sum_reward": rewards.sum(dim=1),
        "max_reward": rewards.amax(dim=1),
        "success": (data["success"] * counts.int()).any(dim=1),
    }
