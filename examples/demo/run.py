"""The demo: record, precompute, train, evaluate and show, by the very commands that a user types (`make demo`).

Everything lands in outputs/demo. A second run skips what is done and continues what was interrupted.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from lerobot_policy_world_modality.envs.mujoco_gl import choose_mujoco_gl
from results import read_results
from stages import Stage, StageError, duration, read_stamp, run_stages

# Push defeats a policy without images; drawer-open shows what such a policy can do all the same (docs/RESULTS.md).
TASKS = "push-v3,drawer-open-v3"
N_EPISODES = 24
RECORD_SEED = 0
EVAL_SEED = 100_000  # far above every recorded seed
# With 850, or with history and camera 4 frames apart, it acts as well in less time, but the memory shows less: 10 of 16
# in push-v3 with the gate closed, not 7 (one run each).
STEPS = 1000
BATCH_SIZE = 32
EVAL_EPISODES = 16
EPISODE_LENGTH = 160  # about twice what the expert needs
HELD_OUT = 0.05  # share of the recorded episodes that training never sees, for the imagined futures
ENCODER = ["--encoder.family=efficientnet_lite0", "--encoder.pooling=mean@-1+s2d:4x4@10", "--encoder.pca_dim=64"]
# Small enough for two CPU cores.
SIZES = ["--policy.d_model=192", "--policy.per_cell=false", "--policy.dropout=0"]
# Futures 4, 8, 12 and 16 frames ahead, a fifth of a second.
WORLD_F = ["--policy.type=world_F", "--policy.n_future_steps=4", "--policy.future_stride=4", "--num_workers=1"]
# The control, beside it, starts no processes: each would import LeRobot, for 8 CPU-seconds.
BLIND = ["--policy.type=world_A", "--policy.use_vision=false", "--num_workers=0"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--tasks", default=TASKS, help="comma-separated Meta-World tasks")
    parser.add_argument("--n_episodes", type=int, default=N_EPISODES, help="recorded per task")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--eval_episodes", type=int, default=EVAL_EPISODES, help="per task")
    parser.add_argument("--device", default="", help="cpu or cuda; found out by default")
    return parser.parse_args()


def program(name: str) -> str:
    """Path of a console script of this environment."""
    return str(Path(sys.executable).parent / name)


def train_stage(name: str, what: str, about: str, policy: list[str], options: argparse.Namespace) -> Stage:
    """Training by `lerobot-train`, continued from the last checkpoint when interrupted."""
    output = options.folder / name
    last = output / "checkpoints" / "last" / "pretrained_model"
    command = [
        program("lerobot-train"),
        *policy,
        *SIZES,
        "--policy.optimizer_lr=1e-3",
        "--policy.scheduler_warmup_steps=100",
        f"--policy.scheduler_decay_steps={options.steps}",
        f"--policy.companion.root={options.folder / 'companion'}",
        f"--policy.metrics_file={options.folder / name}_metrics.jsonl",
        f"--policy.metrics_every={max(options.steps // 100, 1)}",
        f"--policy.device={options.device}",
        "--policy.push_to_hub=false",
        "--dataset.repo_id=demo/metaworld_stripped",
        f"--dataset.root={options.folder / 'companion_stripped'}",
        f"--dataset.eval_split={HELD_OUT}",
        f"--output_dir={output}",
        f"--batch_size={BATCH_SIZE}",
        f"--steps={options.steps}",
        f"--save_freq={max(options.steps // 5, 1)}",
        "--env_eval_freq=0",
        f"--log_freq={max(options.steps // 20, 1)}",
    ]

    def resume() -> list[str] | None:
        if not (last / "train_config.json").exists():
            return None
        return [program("lerobot-train"), f"--config_path={last / 'train_config.json'}", "--resume=true"]

    return Stage(name, what, command, [output, Path(f"{output}_metrics.jsonl")], resume, about=about)


def eval_stage(
    name: str, what: str, about: str, train: str, model: str, choices: list[str], options: argparse.Namespace
) -> Stage:
    """Closed-loop evaluation by `wm-eval` on seeds that were not recorded."""
    command = [
        program("wm-eval"),
        f"--policy.path={options.folder / train / 'checkpoints' / 'last' / 'pretrained_model'}",
        f"--policy.device={options.device}",
        f"--model={model}",
        *choices,
        "--env.type=metaworld_light",
        f"--env.task={options.tasks}",
        f"--env.episode_length={EPISODE_LENGTH}",
        f"--eval.n_episodes={options.eval_episodes}",
        "--eval.batch_size=4",
        f"--seed={EVAL_SEED}",
        "--videos=first:4",
        f"--output_dir={options.folder / name}",
    ]
    return Stage(name, what, command, [options.folder / name], resume=lambda: command, about=about)


def make_steps(options: argparse.Namespace) -> list[list[list[Stage]]]:
    """The steps in order; each is one or more lanes of stages, which run at the same time."""
    folder = options.folder
    record = [
        program("wm-record"),
        f"--tasks={options.tasks}",
        f"--n_episodes={options.n_episodes}",
        f"--start_seed={RECORD_SEED}",
        "--action_noise=0.1",
        "--output.repo_id=demo/metaworld",
        f"--output.root={folder / 'dataset'}",
    ]
    precompute = [
        program("wm-precompute"),
        "--dataset.repo_id=demo/metaworld",
        f"--dataset.root={folder / 'dataset'}",
        "--output.repo_id=demo/metaworld_world",
        f"--output.root={folder / 'companion'}",
        *ENCODER,
        f"--device={options.device}",
        "--strip_images",
    ]
    recording = Stage(
        "record",
        "scripted experts act in Meta-World",
        record,
        [folder / "dataset"],
        resume=lambda: record,
        leftovers=[folder / "dataset.recording"],
        about="1 min",
    )
    encoding = Stage(
        "precompute",
        "a frozen encoder turns frames into world latents",
        precompute,
        [folder / "companion", folder / "companion_stripped"],
        resume=lambda: precompute,
        leftovers=[folder / "companion.partial"],
        about="1 min",
    )
    policy = [
        train_stage("train", "world_F learns to act with a memory of the future", "2 min", WORLD_F, options),
        eval_stage(
            "eval", "it acts in scenes that were not recorded, with its memory and without", "2 min",
            "train", "world_F", ["--arms=intact,gate_closed"], options,
        ),
    ]  # fmt: skip
    control = [
        train_stage("train_blind", "the control, at the same time: a policy without images", "1 min", BLIND, options),
        eval_stage(
            "eval_blind", "the control acts in the same scenes", "1 min",
            "train_blind", "blind", ["--eval.use_async_envs=false"], options,
        ),
    ]  # fmt: skip
    evaluations = [str(folder / "eval"), str(folder / "eval_blind")]
    compare = [program("wm-compare"), *evaluations, "--baseline=blind", f"--json={folder / 'compare.json'}"]
    report = [program("wm-report"), *evaluations, "--baseline=blind", f"--output={folder / 'report.html'}"]
    answers = [
        [Stage("compare", "what the evaluations allow to be said", compare, [folder / "compare.json"])],
        [Stage("report", "the same, episode by episode", report, [folder / "report.html"])],
    ]
    return [[[recording]], [[encoding]], [policy, control], answers]


def page_stage(options: argparse.Namespace) -> Stage:
    """The page of all that there is."""
    page = [sys.executable, str(Path(__file__).with_name("page.py")), f"--folder={options.folder}"]
    source = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("[ip]*.[pj]*")))
    return Stage("page", "one HTML page of what happened", page, [], extra_key=source)


def print_summary(options: argparse.Namespace, names: list[str]) -> None:
    """Success per task with intervals, time per stage, and where the page is."""
    results = {
        "world_F": read_results(options.folder / "eval"),
        "without its memory": read_results(options.folder / "eval", "gate_closed"),
        "without images": read_results(options.folder / "eval_blind"),
    }
    print("\nSuccess on scenes that were not recorded, with Wilson 95 % intervals")
    print(f"  {'':<20}" + "".join(f"{name:<24}" for name in results))
    for rows in zip(*results.values(), strict=True):
        print(f"  {rows[0].task:<20}" + "".join(f"{row.text:<24}" for row in rows))
    print("\nTime (train and eval ran beside train_blind and eval_blind)")
    for name in names:
        print(f"  {name:<20}{duration(read_stamp(options.folder, name)['seconds']):>12}")
    print(f"\nOpen {(options.folder / 'index.html').resolve().as_uri()}")


def main() -> int:
    options = parse_arguments()
    try:
        renderer = choose_mujoco_gl()
    except RuntimeError as error:
        print(f"make demo: {error}", file=sys.stderr)
        return 1
    if not options.device:
        import torch

        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    # OpenMP's threads wait by spinning: beside another busy process on two cores, steps took 3 times as long and more.
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    print(f"Everything goes to {options.folder} ({options.device}, MUJOCO_GL={renderer or 'unset'}).", flush=True)
    page = options.folder / "index.html"

    def show() -> None:
        """Fill the page with what there is by now."""
        is_new = not page.exists()
        subprocess.run([sys.executable, Path(__file__).with_name("page.py"), f"--folder={options.folder}", "--so_far"])
        if is_new and page.exists():
            print(f"Open {page.resolve().as_uri()} (it fills while the rest runs)", flush=True)

    key, names = "", []
    try:
        for lanes in make_steps(options):
            one_thread = {"OMP_NUM_THREADS": environment.get("OMP_NUM_THREADS", "1")} if len(lanes) > 1 else {}
            key = run_stages(lanes, options.folder, key, environment | one_thread, show)
            names += [stage.name for lane in lanes for stage in lane]
        run_stages([[page_stage(options)]], options.folder, key, environment)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    print_summary(options, [*names, "page"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
