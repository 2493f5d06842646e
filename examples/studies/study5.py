"""Study 5: does a monitor tell a policy's failures, and disturbances, in time? (design: docs/study5.md)

    python examples/studies/study5.py --data=data/metaworld3 --output=outputs/study5
    python examples/studies/study5.py --data=data/metaworld3 --output=outputs/study5 --seeds=1,2 --n_judged=15 ...
    python examples/studies/study5.py --data=data/metaworld3 --output=outputs/study5 --export=results/study5

`data` holds `companion` and `companion_stripped`, made as docs/study5.md says. Each stage writes a folder and is passed
over where that is finished; a stage that was cut off goes on. --n_jobs run beside each other.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, get_args

import numpy as np
from scipy.optimize import minimize

from lerobot_policy_world_modality.envs.configuration_metaworld_light import Disturbance
from world_modality_core.monitor.calibration import conformal_quantile
from world_modality_core.monitor.judgement import CONTEST, judge
from world_modality_core.monitor.judging import judged_by, plain_values
from world_modality_core.monitor.monitor_rows import PREFIX, read_monitor_rows, scores_of_rows, write_monitor_rows
from world_modality_core.monitor.saved_monitor import Monitor

TASKS = "push-v3,pick-place-v3,peg-insert-side-v3"
# Of the 60 recorded episodes of each task, in this order: what the Prophet learns from, and what the policies see.
PER_TASK, OF_PROPHET, OF_POLICY = 60, 30, 15
# Scenes that thresholds are set on, and those that are judged; the reduced run's were 200_000 and 100_000.
CALIBRATION_SEED, JUDGED_SEED = 500_000, 400_000
MODULES = {
    "wm-prophet": "world_modality_core.prophet.cli",
    "wm-monitor": "world_modality_core.monitor.cli",
    "wm-eval": "lerobot_policy_world_modality.evaluation.cli",
    "lerobot-train": "lerobot.scripts.lerobot_train",
}


def make_parser() -> argparse.ArgumentParser:
    """The study's options: its size. What it asks is fixed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seeds", default="1,2,3,4,5", help="training seeds of the policies")
    parser.add_argument("--tasks", default=TASKS, help="of the three, those that are evaluated")
    parser.add_argument("--disturbances", default=",".join(get_args(Disturbance)[1:]))
    parser.add_argument("--n_calibrated", type=int, default=40, help="scenes of each task and seed for thresholds")
    parser.add_argument("--n_judged", type=int, default=50, help="scenes of each task and seed that are judged")
    parser.add_argument("--n_disturbed", type=int, default=10, help="of these, that each disturbance happens in")
    parser.add_argument("--false_alarm_rate", type=float, default=0.05)
    parser.add_argument("--prophet_steps", type=int, default=3000)
    parser.add_argument("--policy_steps", type=int, default=1500)
    parser.add_argument("--device", default="cpu", help="of training; rollouts run on the CPU, beside each other")
    parser.add_argument("--n_jobs", type=int, default=1, help="commands that run beside each other")
    parser.add_argument("--export", type=Path, help="write the records of what is done into a folder, and stop")
    return parser


class Study:
    """Its stages, in order.

    Args:
        given: The options.
    """

    def __init__(self, given: argparse.Namespace):
        self.given, self.out = given, given.output
        self.seeds = [int(seed) for seed in given.seeds.split(",")]
        self.out.mkdir(parents=True, exist_ok=True)
        self._lock = Lock()

    def run(self) -> None:
        """All of it."""
        given, data = self.given, self.given.data
        recorded = f"--companions={data / 'companion'}", f"--sources={data / 'companion_stripped'}"
        self.together([lambda: self.train_prophet(recorded), *(lambda s=s: self.train(s) for s in self.seeds)])
        # On demonstrations first: a monitor that has scores, and thresholds for experts.
        self.stage(
            "monitor_experts/monitor.json", "wm-monitor", "fit", f"--prophet={self.out / 'prophet'}", *recorded,
            "--window=2", f"--output_dir={self.out / 'monitor_experts'}",
        )  # fmt: skip
        whats = [("judged", JUDGED_SEED, given.n_judged), ("calibration", CALIBRATION_SEED, given.n_calibrated)]
        for kind in filter(None, given.disturbances.split(",")):
            whats.append((f"disturbed/{kind}", JUDGED_SEED, given.n_disturbed, f"--env.disturbance={kind}"))
        self.together([lambda s=s, what=what: self.evaluate(s, *what) for what in whats for s in self.seeds])
        # Thresholds of the policy's own successes, on other scenes than those judged.
        self.stage(
            "monitor/monitor.json", "wm-monitor", "fit", f"--monitor={self.out / 'monitor_experts'}",
            f"--rows={self.out / 'calibration'}", f"--false_alarm_rate={given.false_alarm_rate}",
            "--window=2", f"--output_dir={self.out / 'monitor'}",
        )  # fmt: skip
        folders = [str(self.out / "judged"), str(self.out / "disturbed")]
        folders = [folder for folder in folders if Path(folder).is_dir()]
        for name in ("monitor", "monitor_experts"):
            self.stage(
                f"judgement_{name}.json", "wm-monitor", "eval", *folders, f"--monitor={self.out / name}",
                f"--output={self.out / f'judgement_{name}.json'}",
            )  # fmt: skip

    def together(self, commands: Iterable[Callable[[], None]]) -> None:
        """Run what doesn't build on each other, `--n_jobs` at a time."""
        with ThreadPoolExecutor(self.given.n_jobs) as pool:
            for done in [pool.submit(command) for command in commands]:
                done.result()

    def train_prophet(self, recorded: tuple[str, ...]) -> None:
        """A Prophet of successful episodes: of what is seen, and of where the robot will be."""
        self.stage(
            "prophet/model.safetensors", "wm-prophet", *recorded, f"--episodes={self.episodes(OF_PROPHET)}",
            "--prophet.d_model=128", "--prophet.n_layers=2", "--prophet.use_language=true", "--prophet.use_state=true",
            "--prophet.tells_state=true", "--state_loss_weight=1", "--history_stride=4", "--future_stride=4",
            f"--steps={self.given.prophet_steps}", f"--save_freq={self.given.prophet_steps}", "--batch_size=64",
            f"--device={self.given.device}", f"--output_dir={self.out / 'prophet'}",
        )  # fmt: skip

    def export(self, folder: Path) -> None:
        """The records: rows with the levels of the monitor that was set on the policy's successes, and judgements."""
        monitor = Monitor.load(self.out / "monitor")
        for what in ("calibration", "judged", "disturbed"):
            if not (self.out / what).is_dir():
                continue
            rows = judged_by(monitor, read_monitor_rows([self.out / what]), what).drop(columns="folder")
            names = [f"score_{name}" for name in monitor.score_names]
            for (_, _, kind), of in rows.groupby(["arm", "task", "disturbance"]):
                records = of.drop(columns=names).astype(object).where(of.notna(), None).to_dict("records")
                for record, values in zip(records, of[names].to_numpy(), strict=True):
                    record["values"] = np.stack([np.asarray(each, float) for each in values], axis=1)
                write_monitor_rows(folder / what / kind, records, monitor.score_names)
        (folder / "clock.json").write_text(json.dumps(self.clock(), indent=1) + "\n")
        found = self.with_labels(monitor)
        (folder / "judgement_with_labels.json").write_text(json.dumps(found, indent=1, default=plain_values) + "\n")
        for path in [*self.out.glob("judgement_*.json"), self.out / "commands.jsonl"]:
            shutil.copy(path, folder / path.name)

    def clock(self) -> dict[str, Any]:
        """The control that alarms must be read against: one that only knows the time, at the same promise."""
        past, judged = (read_monitor_rows([self.out / what]) for what in ("calibration", "judged"))
        past = past[past["success"]].groupby("task")["steps"]
        lines = {task: conformal_quantile(steps.to_numpy(), self.given.false_alarm_rate) for task, steps in past}
        late = judged["steps"] > judged["task"].map(lines)
        lead = (judged["steps"] - judged["task"].map(lines))[late & ~judged["success"]]
        return {
            "alarm_after_steps": lines,
            "false": [int((late & judged["success"]).sum()), int(judged["success"].sum())],
            "true": [int((late & ~judged["success"]).sum()), int((~judged["success"]).sum())],
            "median_lead_steps": float(lead.median()),
        }

    def with_labels(self, monitor: Monitor) -> dict[str, Any]:
        """Apart from the rest, what knowing the failures among the calibration episodes gives.

        A logistic regression of the outcome on each score's mean surprise until the moment at which successes begin
        to end, by task; judged as the others are, under the name `with_labels`.
        """
        names, tasks = monitor.score_names, monitor.description.tasks
        known = [i for i, name in enumerate(names) if name != "elapsed_time"]  # at any moment it is the same for all
        past, judged = (read_monitor_rows([self.out / what]) for what in ("calibration", "judged"))
        judged = judged_by(monitor, judged, "judged")
        column: list[Any] = [None] * len(judged)
        for number, task in enumerate(tasks):
            surprise = []
            for rows in (past, judged):
                mine = rows[rows["instruction"] == task]
                episodes = scores_of_rows(mine, names, tasks, "rows")
                surprise.append([monitor.calibration.surprise(number, e.steps, e.values)[:, known] for e in episodes])
            rows = past[past["instruction"] == task]
            until = rows[rows["success"]]["steps"].quantile(1 - CONTEST, interpolation="lower")
            n_ticks = int(until // rows["every"].iloc[0]) + 1
            inputs = np.array([np.nan_to_num(np.nanmean(each[:n_ticks], axis=0)) for each in surprise[0]])
            weight = _logistic(inputs, ~rows["success"].to_numpy())
            for place, each in zip(np.flatnonzero(judged["instruction"] == task), surprise[1], strict=True):
                column[place] = np.nan_to_num(each) @ weight
        return judge(judged.assign(**{f"{PREFIX}with_labels": column}), self.given.false_alarm_rate)

    def train(self, seed: int) -> None:
        """A policy without a world memory: the monitor must not need one."""
        stripped, steps = self.given.data / "companion_stripped", self.given.policy_steps
        self.stage(
            f"train/s{seed}/checkpoints/last/pretrained_model/model.safetensors", "lerobot-train",
            "--policy.type=world_A", "--dataset.repo_id=study/metaworld3_world_stripped", f"--dataset.root={stripped}",
            f"--dataset.episodes=[{self.episodes(OF_POLICY, spelled=True)}]",
            f"--policy.companion.root={self.given.data / 'companion'}", "--policy.d_model=128", "--policy.n_layers=2",
            "--policy.per_cell=false", "--policy.dropout=0.0", "--policy.n_obs_steps=3", "--policy.history_stride=4",
            "--policy.chunk_size=8", "--policy.n_action_steps=4", "--policy.optimizer_lr=1e-3",
            "--policy.scheduler_warmup_steps=100", f"--policy.scheduler_decay_steps={steps}",
            f"--policy.device={self.given.device}", "--policy.push_to_hub=false", "--batch_size=24", f"--steps={steps}",
            f"--save_freq={steps}", "--env_eval_freq=0", "--num_workers=0", "--wandb.enable=false", f"--seed={seed}",
            f"--output_dir={self.out / f'train/s{seed}'}",
        )  # fmt: skip

    def evaluate(self, seed: int, what: str, first: int, n: int, *more: str) -> None:
        """Watched rollouts of a policy."""
        folder = self.out / what / f"s{seed}"
        self.stage(
            f"{what}/s{seed}/episodes.parquet", "wm-eval",
            f"--policy.path={self.out / f'train/s{seed}/checkpoints/last/pretrained_model'}", "--model=A",
            "--env.type=metaworld_light", f"--env.task={self.given.tasks}", "--env.episode_length=200",
            "--env.camera_period=4", *more, f"--eval.n_episodes={n}", f"--eval.batch_size={min(n, 10)}",
            "--eval.use_async_envs=false", "--policy.device=cpu", f"--seed={first}",
            f"--monitor={self.out / 'monitor_experts'}", f"--output_dir={folder}",
        )  # fmt: skip

    def episodes(self, n: int, spelled: bool = False) -> str:
        """The first n recorded episodes of each task, as ranges or one by one."""
        starts = range(0, 3 * PER_TASK, PER_TASK)
        if spelled:
            return ",".join(str(start + i) for start in starts for i in range(n))
        return ",".join(f"{start}-{start + n - 1}" for start in starts)

    def stage(self, made: str, program: str, *arguments: str) -> None:
        """Run a command unless what it makes is there, and note it down."""
        if (self.out / made).exists():
            return
        print(" ".join([program, *arguments]), flush=True)
        subprocess.run([sys.executable, "-m", MODULES[program], *arguments], check=True)
        with self._lock, (self.out / "commands.jsonl").open("a") as file:
            file.write(json.dumps([program, *arguments]) + "\n")


def _logistic(inputs: np.ndarray, is_failure: np.ndarray, penalty: float = 0.1) -> np.ndarray:
    """(c,) weights of inputs (n, c), with a penalty on their squares."""
    spread = inputs.std(0) + 1e-6
    scaled, sign = inputs / spread, np.where(is_failure, 1.0, -1.0)

    def loss(w: np.ndarray) -> float:
        return np.logaddexp(0, -sign * (scaled @ w[1:] + w[0])).mean() + penalty * (w[1:] ** 2).sum() / 2

    return minimize(loss, np.zeros(1 + inputs.shape[1])).x[1:] / spread


if __name__ == "__main__":
    options = make_parser().parse_args()
    study = Study(options)
    study.export(options.export) if options.export else study.run()
