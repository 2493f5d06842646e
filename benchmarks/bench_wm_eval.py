"""Cost of wm-eval over lerobot-eval on the same episodes of the same checkpoint, both as their whole command.

Each repeat runs both commands, one after the other and in turns as to which is first, and compares seconds; with
--cpu, processor seconds, which hold on a machine that does other work as well. With --jobs=N it is wm-eval --jobs=N
over wm-eval instead, both with one thread a process: their ratio of seconds is 1 / N at best, and that of processor
seconds tells what N processes cost that one doesn't. Both make no videos but those that
lerobot-eval always makes of its first ten episodes, which wm-eval is asked for as well (--videos=first:10).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

from lerobot_policy_world_modality.evaluation.tasks import METAWORLD
from world_modality_core.studies.evidence.episode_records import read_episodes

MODULES = {
    "lerobot-eval": "lerobot.scripts.lerobot_eval",
    "wm-eval": "lerobot_policy_world_modality.evaluation.cli",
}


def run(name: str, options: list[str], folder: Path) -> tuple[float, float]:
    """Run a command; its wall and processor seconds."""
    name, *own = name.split()
    own += ["--videos=first:10"] if name == "wm-eval" else []
    command = [sys.executable, "-m", MODULES[name], *options, *own, f"--output_dir={folder}"]
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def results(name: str, folder: Path) -> list[float]:
    """Sum of rewards of each episode, in the order of tasks and seeds."""
    if name.startswith("wm-eval"):
        rows = read_episodes(folder)
        return rows.sort_values(["task", "seed"])["sum_reward"].tolist()
    tasks = json.loads((folder / "eval_info.json").read_text())["per_task"]
    return [
        reward for task in sorted(tasks, key=lambda t: t["task_group"]) for reward in task["metrics"]["sum_rewards"]
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a policy's pretrained_model folder")
    parser.add_argument("--env_type", default="metaworld_light", choices=METAWORLD, help="default: metaworld_light")
    parser.add_argument("--tasks", default="drawer-open-v3,window-open-v3", help="tasks that the policy knows")
    parser.add_argument("--episode_length", type=int, default=250, help="(default: 250)")
    parser.add_argument("--n_episodes", type=int, default=10, help="a task (default: 10)")
    parser.add_argument("--batch_size", type=int, default=5, help="environments (default: 5)")
    parser.add_argument("--repeats", type=int, default=3, help="(default: 3)")
    parser.add_argument("--jobs", type=int, help="compare wm-eval --jobs=N with wm-eval")
    parser.add_argument("--cpu", action="store_true", help="compare processor seconds")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    options = [
        f"--policy.path={args.checkpoint}", f"--env.type={args.env_type}", f"--env.task={args.tasks}",
        f"--env.episode_length={args.episode_length}", f"--eval.n_episodes={args.n_episodes}",
        f"--eval.batch_size={args.batch_size}", "--eval.use_async_envs=false", "--seed=100000",
    ]  # fmt: skip
    first, second = ("wm-eval", f"wm-eval --jobs={args.jobs}") if args.jobs else MODULES
    if args.jobs:
        os.environ["OMP_NUM_THREADS"] = "1"
    seconds: dict[str, list[float]] = {first: [], second: []}
    for repeat in range(args.repeats):
        found = {}
        for name in sorted(seconds, reverse=bool(repeat % 2)):
            with tempfile.TemporaryDirectory() as folder:
                seconds[name].append(run(name, options, Path(folder))[args.cpu])
                found[name] = results(name, Path(folder))
        if found[first] != found[second]:
            print(f"sums of rewards differ: {found}", file=sys.stderr)
    ratio = [ours / theirs for ours, theirs in zip(seconds[second], seconds[first], strict=True)]
    unit = "processor s" if args.cpu else "s"
    title = f"{second} over {first}, {args.n_episodes} episodes of each of {args.tasks}"
    settings = vars(args) | {"checkpoint": Path(args.checkpoint).name}
    target = "<= 1.05" if not args.jobs else "none" if args.cpu else f"<= {1 / (0.9 * args.jobs):.2f}"
    report.report(title, {f"{name} ({unit})": values for name, values in seconds.items()}, ratio, target, settings)


if __name__ == "__main__":
    main()
