"""How long `wm-report` takes and how large its page is, over synthetic records of many runs.

Each run has an evaluation of --episodes rows (5 arms, 10 tasks), a training curve and a job's record; each model has
an intervention. Timed is the command in a process of its own, with the start of Python: processor seconds, which others
on the machine hardly lengthen, and by the clock.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(REPO), str(REPO / "tests/studies/report")]

TASKS = [f"task-{i}-v3" for i in range(10)]
ARMS = {"intact": 0.75, "shuffle_within_task": 0.5, "copy_current": 0.5, "gate_closed": 0.5, "zero": 0.4}
FIGURES = {"seconds": 10, "MB": 20}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--models", type=int, default=20)
    cli.add_argument("--seeds", type=int, default=5, help="training seeds of each model")
    cli.add_argument("--episodes", type=int, default=1000, help="of each run")
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    from report import report

    with tempfile.TemporaryDirectory() as name:
        study, page = Path(name) / "study", Path(name) / "report.html"
        write(study, args)
        command = [sys.executable, "-m", "world_modality_core.studies.report.cli", str(study), "--baseline=model_00"]
        seconds, cpu_seconds = [], []
        for _ in range(args.repeats):
            start, before = time.perf_counter(), os.times()
            subprocess.run([*command, f"--output={page}"], check=True, cwd=REPO)
            seconds.append(time.perf_counter() - start)
            after = os.times()
            spent = (after.children_user - before.children_user, after.children_system - before.children_system)
            cpu_seconds.append(sum(spent))
        size = page.stat().st_size / 1e6
    report(
        f"wm-report on {args.models * args.seeds} runs x {args.episodes} episodes",
        {"page (MB)": [size], "wm-report (CPU s)": cpu_seconds, "wm-report (s)": seconds},
        ratio=[max(each / FIGURES["seconds"], size / FIGURES["MB"]) for each in cpu_seconds],
        target="<= 1: the worse of CPU seconds over 10 and MB over 20",
        settings=vars(args),
    )


def write(study: Path, args: argparse.Namespace) -> None:
    """The study's folder."""
    from synthetic import write_eval, write_intervention, write_job, write_training

    n_scenes = args.episodes // (len(ARMS) * len(TASKS))
    if n_scenes < 1:
        sys.exit(f"--episodes={args.episodes}: expected at least {len(ARMS) * len(TASKS)}")
    for i in range(args.models):
        for seed in range(args.seeds):
            model = f"model_{i:02d}"
            train, evaluation = study / f"train-{model}-{seed}", study / f"eval-{model}-{seed}"
            write_job(train, "train", model, seed, ["lerobot-train", "--policy.type=world_F", f"--seed={seed}"])
            write_training(train / "metrics.jsonl", gate=0.1, n=200, seed=seed)
            write_job(evaluation, "eval", model, seed, ["wm-eval", f"--model={model}"])
            write_eval(evaluation / "eval", model, seed, ARMS, TASKS, n_scenes, gate=0.1)
            if seed == 0:
                write_intervention(study / f"intervene-{model}" / "interventions.json", model, seed)


if __name__ == "__main__":
    main()
