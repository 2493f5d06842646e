"""Stock `metaworld` over `metaworld_light`: a frame, and building an environment up to its first observation.

A: stock LeRobot's environment, 480 px (its only size). B: ours at `--size` px. In turn, in one process, each closed
before the other is built, since stock's OpenGL contexts do not survive each other; ratios are taken round by round.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from lerobot.envs.metaworld import MetaworldEnv

sys.path.insert(0, str(Path(__file__).parent))
from report import report

from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv


def measure(make_env, n_frames: int, clock) -> tuple[float, float, float]:
    """Seconds until the first observation of a new environment, median ms of a step, and of its physics alone."""
    start = clock()
    env = make_env()
    env.reset(seed=0)
    build_s = clock() - start
    actions = np.random.default_rng(0).uniform(-1, 1, (n_frames, 4)).astype(np.float32)
    step_ms, physics_ms = [], []
    for action in actions:
        start = clock()
        env.step(action)
        step_ms.append(1e3 * (clock() - start))
    for action in actions:
        start = clock()
        env._env.step(action)
        physics_ms.append(1e3 * (clock() - start))
    env.close()
    return build_s, float(np.median(step_ms)), float(np.median(physics_ms))


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--task", default="drawer-open-v3")
    cli.add_argument("--size", type=int, default=128, help="height and width of the light image, in pixels")
    cli.add_argument("--n_frames", type=int, default=30, help="per round")
    cli.add_argument("--repeats", type=int, default=7, help="rounds")
    cli.add_argument("--json", type=Path, help="also write the figures here")
    cli.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: for a machine that is busy")
    args = cli.parse_args()
    clock = time.perf_counter if args.clock == "wall" else time.process_time

    def stock():
        return MetaworldEnv(task=args.task, obs_type="pixels_agent_pos")

    def light():
        return MetaworldLightEnv(task=args.task, observation_height=args.size, observation_width=args.size)

    measure(light, 2, clock)  # imports, file cache
    rounds = [(measure(stock, args.n_frames, clock), measure(light, args.n_frames, clock)) for _ in range(args.repeats)]
    settings = vars(args)
    json_path = settings.pop("json")
    for i, (title, unit, target) in enumerate(
        [("build and first observation", "s", "none"), ("step with picture", "ms", "none")]
    ):
        theirs, ours = [r[0][i] for r in rounds], [r[1][i] for r in rounds]
        measured = {f"stock, 480 px ({unit})": theirs, f"light, {args.size} px ({unit})": ours}
        if i == 1:
            measured["physics alone (ms)"] = [r[1][2] for r in rounds]
        path = json_path and json_path.with_stem(f"{json_path.stem}_{('build', 'step')[i]}")
        report(
            f"stock over light: {title}",
            measured,
            [a / b for a, b in zip(theirs, ours, strict=True)],
            target,
            {**settings, "json": path},
        )


if __name__ == "__main__":
    main()
