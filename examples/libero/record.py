"""Record a LeRobotDataset of LIBERO with the scripted expert of `controller.py`, without a download.

    python examples/libero/record.py --tasks=libero_object:3,libero_object:7 --n_episodes=25 --root=data/libero/dataset

Frames, names and orientation are those that a policy meets under `--env.type=libero`: observations go through LeRobot's
own environment and processors. An episode starts from one of the 50 initial states that LIBERO has for each task;
recordings count up from `--first_init_state`, and evaluations from 0. Killed, it goes on with the same command.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import torch
from controller import PickAndPlace
from filelock import FileLock, Timeout
from lerobot.datasets import LeRobotDataset
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.utils import preprocess_observation
from lerobot.utils.constants import ACTION, OBS_STATE
from tqdm import tqdm

from lerobot_policy_world_modality.envs.frame_guard import FrameGuard
from lerobot_policy_world_modality.envs.libero_setup import check_libero_is_set_up
from lerobot_policy_world_modality.envs.mujoco_gl import choose_mujoco_gl
from lerobot_policy_world_modality.record.attempts import Attempts
from lerobot_policy_world_modality.record.merging import merge_episodes
from lerobot_policy_world_modality.record.record_options import RecordConfig
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import read_json, write_text

CAMERAS = ("observation.images.image", "observation.images.image2")
INIT_STATE = "init_state"
N_INIT_STATES = 50
STATE_NAMES = ["x", "y", "z", "axis_angle_x", "axis_angle_y", "axis_angle_z", "finger_1", "finger_2"]
ACTION_NAMES = ["dx", "dy", "dz", "drx", "dry", "drz", "gripper"]


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", default="libero_object:3,libero_object:7", help="SUITE:TASK_ID, comma-separated")
    parser.add_argument("--n_episodes", type=int, default=25, help="successful ones to keep, per task")
    parser.add_argument("--first_init_state", type=int, default=10, help="those before are for evaluation")
    parser.add_argument("--action_noise", type=float, default=0.2, help="on executed translations; labels stay clean")
    parser.add_argument("--episode_length", type=int, default=200, help="steps after which an attempt has failed")
    parser.add_argument("--size_px", type=int, default=128, help="height and width of both cameras")
    parser.add_argument("--repo_id", default="local/libero_scripted")
    parser.add_argument("--root", type=Path, default=Path("data/libero/dataset"))
    return parser.parse_args()


class Scene:
    """One task of LIBERO as a policy sees it, and its expert.

    Args:
        suite: Such as `libero_object`.
        task_id: Number of the task in the suite.
        size_px: Height and width of the images.
    """

    def __init__(self, suite: str, task_id: int, size_px: int):
        config = LiberoEnvConfig(
            task=suite, task_ids=[task_id], observation_height=size_px, observation_width=size_px, episode_length=1000
        )
        self._env = config.create_envs(n_envs=1, use_async_envs=False)[suite][task_id]
        self._processor = config.get_env_processors()[0]
        self.fps, self.instruction = config.fps, self._env.call("task_description")[0]

    def reset(self, init_state: int) -> dict[str, np.ndarray]:
        """Start from one of LIBERO's initial states; returns the observation."""
        self._env.set_attr("init_state_id", [init_state])
        observation, _ = self._env.reset(seed=[init_state])
        simulator = self._env.envs[0]._env.env
        thing, target = simulator.obj_of_interest
        self.expert = PickAndPlace(simulator, thing, target)
        return self._seen(observation)

    def step(self, action: np.ndarray) -> tuple[dict[str, np.ndarray], bool]:
        """Act; returns the next observation, and whether the task is solved."""
        observation, _, terminated, _, _ = self._env.step(action[None])
        return self._seen(observation), bool(terminated[0])

    def close(self) -> None:
        self._env.close()

    def _seen(self, observation: dict[str, Any]) -> dict[str, np.ndarray]:
        """What a policy's preprocessor gets, as a dataset holds it: (h, w, c) uint8 images and a float32 state."""
        batch = self._processor(preprocess_observation(observation))
        images = {name: (batch[name][0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy() for name in CAMERAS}
        return {**images, OBS_STATE: batch[OBS_STATE][0].numpy()}


def features(size_px: int) -> dict[str, dict[str, Any]]:
    """The dataset's features, named as LeRobot names those of `--env.type=libero`."""
    image = {"dtype": "video", "shape": (size_px, size_px, 3), "names": ["height", "width", "channels"]}
    return {
        **{name: image for name in CAMERAS},
        OBS_STATE: {"dtype": "float32", "shape": (8,), "names": STATE_NAMES},
        ACTION: {"dtype": "float32", "shape": (7,), "names": ACTION_NAMES},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        INIT_STATE: {"dtype": "int64", "shape": (1,), "names": None},
    }


def record_episode(scene: Scene, init_state: int, root: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let the expert act once; a dataset of one episode appears at `root` if it succeeds.

    What is executed is noisy and what is recorded is not, so that the labels show how to recover (DART, Laskey et al.
    2017, with white noise).

    Returns:
        {"seed": init_state, "success", "n_frames"}
    """
    partial = root.with_suffix(".partial")
    for left_over in (partial, root):
        shutil.rmtree(left_over, ignore_errors=True)
    dataset = LeRobotDataset.create(
        options.repo_id,
        fps=scene.fps,
        features=features(options.size_px),
        root=partial,
        rgb_encoder=RecordConfig().video,
        encoder_threads=1,
        streaming_encoding=True,
        encoder_queue_maxsize=options.episode_length + 1,  # a full queue would drop frames
    )
    noise = np.random.default_rng(init_state)
    observation, is_solved, n_frames = scene.reset(init_state), False, 0
    guards = {camera: FrameGuard(f"{scene.instruction}, {camera}") for camera in CAMERAS}
    while not is_solved and n_frames < options.episode_length:
        for camera, guard in guards.items():
            guard.check(observation[camera], observation[OBS_STATE][:3], n_frames)
        label = scene.expert.act()
        executed = label.copy()
        executed[:3] = np.clip(label[:3] + noise.normal(0.0, options.action_noise, 3), -1.0, 1.0)
        following, is_solved = scene.step(executed)
        rest = {"next.success": np.array([is_solved]), INIT_STATE: np.array([init_state]), "task": scene.instruction}
        dataset.add_frame({**observation, ACTION: label, **rest})
        observation, n_frames = following, n_frames + 1
    if is_solved:
        dataset.save_episode()
    else:
        dataset.clear_episode_buffer()
    dataset.finalize()
    if is_solved:
        os.replace(partial, root)
    else:
        shutil.rmtree(partial)
    return {"seed": init_state, "success": is_solved, "n_frames": n_frames}


def record_task(task: str, folder: Path, options: argparse.Namespace) -> Attempts:
    """Record what of a task the folder does not hold yet; each attempt's JSON appears last."""
    attempts = Attempts(task, options.first_init_state, options.n_episodes)
    for path in folder.glob("*.json"):
        attempts.add(read_json(path, dict))
    if not attempts.missing():
        return attempts
    suite, task_id = task.split(":")
    scene = Scene(suite, int(task_id), options.size_px)
    with tqdm(total=options.n_episodes, initial=len(attempts.kept()), unit="episode", desc=task) as bar:
        while missing := attempts.missing():
            if missing[0] >= N_INIT_STATES:
                raise ConfigError(
                    f"task {task}: the initial states up to {N_INIT_STATES - 1} gave {len(attempts.kept())} successes; "
                    "lower --n_episodes, --first_init_state or --action_noise"
                )
            name = f"{missing[0]:02d}"
            outcome = record_episode(scene, missing[0], folder / name, options)
            write_text(folder / f"{name}.json", json.dumps(outcome))
            attempts.add(outcome)
            bar.n = len(attempts.kept())
            bar.set_postfix(failed=len(attempts.failed()), frames=outcome["n_frames"])
    scene.close()
    return attempts


def record(options: argparse.Namespace) -> None:
    """Record the dataset, or the rest of it.

    Raises:
        ConfigError: something else is there, the expert fails too often, or LIBERO is not set up.
    """
    check_libero_is_set_up()
    choose_mujoco_gl()
    root = options.root.resolve()  # a folder can't take the place of a link
    staging = root.with_name(root.name + ".recording")
    request = {name: value for name, value in vars(options).items() if name != "root"}
    record_file = Path("meta") / "libero_record.json"
    lasting = {name: value for name, value in request.items() if name != "n_episodes"}  # more may be asked for later
    for folder, path, wanted in ((root, root / record_file, request), (staging, staging / "request.json", lasting)):
        known = {name: read_json(path, dict).get(name) for name in wanted} if path.exists() else None
        if folder.exists() and any(folder.iterdir()) and known != wanted:
            raise ConfigError(f"{folder} was recorded with other options ({known}): choose another --root or delete it")
    if root.exists():
        print(f"{root} holds this recording already.")
        return
    staging.mkdir(parents=True, exist_ok=True)
    with FileLock(staging.with_name(staging.name + ".lock"), timeout=0):
        write_text(staging / "request.json", json.dumps(lasting))
        av.logging.set_libav_level(av.logging.ERROR)  # x264 reports on every file
        all_attempts = []
        for task in options.tasks.split(","):
            folder = staging / task.replace(":", "_")
            folder.mkdir(exist_ok=True)
            all_attempts.append((folder, record_task(task, folder, options)))
        sources = [folder / f"{state:02d}" for folder, attempts in all_attempts for state in attempts.kept()]
        merged = merge_episodes(sources, options.repo_id, staging / "merged")
        init_states = {a.task: {"kept": a.kept(), "failed": a.failed()} for _, a in all_attempts}
        write_text(merged / record_file, json.dumps({**request, "init_states": init_states}, indent=1))
        os.replace(merged, root)
        shutil.rmtree(staging)
    for _, attempts in all_attempts:
        n_frames = sum(attempts.outcomes[state]["n_frames"] for state in attempts.kept())
        n_kept, n_failed = len(attempts.kept()), len(attempts.failed())
        print(f"{attempts.task}: {n_kept} kept, {n_failed} failed, {n_frames / n_kept:.0f} frames each")
    print(f"Recorded into {root}")


def main() -> None:
    datasets.disable_progress_bars()
    try:
        record(parse_arguments())
    except Timeout:
        sys.exit("record.py: another one is writing there: wait, or choose another --root")
    except UserError as error:
        sys.exit(f"record.py: {error}")
    except KeyboardInterrupt:
        sys.exit("record.py: stopped; the same command goes on from here")


if __name__ == "__main__":
    main()
