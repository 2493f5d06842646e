"""The demo: record, precompute, train, evaluate and show, by the very commands that a user types (`make demo`).

Everything lands in outputs/demo. A second run skips what is done and continues what was interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from lerobot_policy_world_modality.envs.mujoco_gl import choose_mujoco_gl
from results import read_results
from stages import Stage, StageError, duration, read_stamp, run_stage

# Push defeats a policy without eyes; the other two show what such a policy can do all the same (docs/RESULTS.md).
TASKS = "push-v3,drawer-open-v3,window-open-v3"
N_EPISODES = 32
RECORD_SEED = 0
EVAL_SEED = 100_000  # far above every recorded seed
STEPS = 1500
BATCH_SIZE = 64
EVAL_EPISODES = 12
EPISODE_LENGTH = 250  # about three times what the expert needs
HELD_OUT = 0.05  # share of the recorded episodes that training never sees, for the imagined futures
ENCODER = ["--encoder.family=efficientnet_lite0", "--encoder.pooling=mean@-1+s2d:4x4@10", "--encoder.pca_dim=64"]
# Small enough for two CPU cores; futures 4, 8, 12 and 16 frames ahead, a fifth of a second.
SIZES = [
    "--policy.d_model=192",
    "--policy.per_cell=false",
    "--policy.dropout=0",
    "--policy.n_future_steps=4",
    "--policy.future_stride=4",
]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=Path("outputs/demo"))
    parser.add_argument("--tasks", default=TASKS, help="comma-separated Meta-World tasks")
    parser.add_argument("--n_episodes", type=int, default=N_EPISODES, help="recorded per task")
    parser.add_argument("--steps", type=int, default=STEPS, help="of training")
    parser.add_argument("--eval_episodes", type=int, default=EVAL_EPISODES, help="per task")
    parser.add_argument("--device", default="", help="cpu or cuda; found out by default")
    parser.add_argument("--blind", action="store_true", help="also train and evaluate a policy without images")
    return parser.parse_args()


def program(name: str) -> str:
    """Path of a console script of this environment."""
    return str(Path(sys.executable).parent / name)


def train_stage(name: str, what: str, policy: list[str], options: argparse.Namespace) -> Stage:
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
        "--log_freq=100",
        "--num_workers=1",
    ]

    def resume() -> list[str] | None:
        if not (last / "train_config.json").exists():
            return None
        return [program("lerobot-train"), f"--config_path={last / 'train_config.json'}", "--resume=true"]

    return Stage(name, what, command, [output, Path(f"{output}_metrics.jsonl")], resume)


def eval_stage(name: str, what: str, train: str, options: argparse.Namespace) -> Stage:
    """Closed-loop evaluation by `lerobot-eval` on seeds that were not recorded."""
    command = [
        program("lerobot-eval"),
        f"--policy.path={options.folder / train / 'checkpoints' / 'last' / 'pretrained_model'}",
        f"--policy.device={options.device}",
        "--env.type=metaworld_light",
        f"--env.task={options.tasks}",
        f"--env.episode_length={EPISODE_LENGTH}",
        f"--eval.n_episodes={options.eval_episodes}",
        "--eval.batch_size=4",
        f"--seed={EVAL_SEED}",
        f"--output_dir={options.folder / name}",
    ]
    return Stage(name, what, command, [options.folder / name])


def make_stages(options: argparse.Namespace) -> list[Stage]:
    """The stages in order; each builds on the ones before."""
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
    stages = [
        Stage(
            "record",
            "scripted experts act in Meta-World",
            record,
            [folder / "dataset"],
            resume=lambda: record,
            leftovers=[folder / "dataset.recording"],
        ),
        Stage(
            "precompute",
            "a frozen encoder turns frames into world latents",
            precompute,
            [folder / "companion", folder / "companion_stripped"],
            resume=lambda: precompute,
            leftovers=[folder / "companion.partial"],
        ),
        train_stage("train", "world_F learns to act with a memory of the future", ["--policy.type=world_F"], options),
        eval_stage("eval", "it acts in scenes that were not recorded", "train", options),
    ]
    if options.blind:
        blind = ["--policy.type=world_A", "--policy.use_vision=false"]
        stages += [
            train_stage("train_blind", "the control: the same without images", blind, options),
            eval_stage("eval_blind", "the control acts in the same scenes", "train_blind", options),
        ]
    page = [sys.executable, str(Path(__file__).with_name("page.py")), f"--folder={folder}"]
    source = "".join(path.read_text() for path in sorted(Path(__file__).parent.glob("[ip]*.[pj]*")))
    stages.append(Stage("page", "one HTML page of what happened", page, [folder / "index.html"], extra_key=source))
    return stages


def print_summary(options: argparse.Namespace, stages: list[Stage]) -> None:
    """Success per task with intervals, time per stage, and where the page is."""
    results = {"world_F": read_results(options.folder / "eval")}
    if options.blind:
        results["blind"] = read_results(options.folder / "eval_blind")
    print("\nSuccess on scenes that were not recorded, with Wilson 95 % intervals")
    print(f"  {'':<24}" + "".join(f"{name:<28}" for name in results))
    for rows in zip(*results.values(), strict=True):
        print(f"  {rows[0].task:<24}" + "".join(f"{row.text:<28}" for row in rows))
    seconds = {stage.name: read_stamp(options.folder, stage.name)["seconds"] for stage in stages}
    print("\nTime")
    for name, value in {**seconds, "all": sum(seconds.values())}.items():
        print(f"  {name:<24}{duration(value):>12}")
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
    stages, key = make_stages(options), ""
    print(f"Everything goes to {options.folder} ({options.device}, MUJOCO_GL={renderer or 'unset'}).", flush=True)
    try:
        for stage in stages:
            key = run_stage(stage, options.folder, key, environment)
    except StageError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. The same command goes on from here.", file=sys.stderr)
        return 130
    print_summary(options, stages)
    return 0


if __name__ == "__main__":
    sys.exit(main())
