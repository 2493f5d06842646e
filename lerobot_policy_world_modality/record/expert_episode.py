"""One expert episode: act, and write it as a LeRobotDataset of its own, all or nothing.

Runs in the recorder's worker processes; `jobs.py` decides which episodes there are, `merging.py` merges them.
"""

from __future__ import annotations

import json
import shutil
import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

import av
import numpy as np
from lerobot.configs.video import RGBEncoderConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv, make_light_env
from lerobot_policy_world_modality.record.attempts import episode_folder
from world_modality_core.io.files import move_durably, write_text

EPISODE_SEED = "episode_seed"
"""Feature that repeats the seed of the episode on each of its frames."""


@dataclass(frozen=True)
class EpisodeJob:
    """What to record, and where to.

    Attributes:
        task: Meta-World's name, for instance `push-v3`.
        seed: of the scene, and together with the task of the action noise.
        gym_kwargs: of `MetaworldLightEnv`, without the task.
        action_noise: standard deviation of the noise on the executed action, in action units (the range is [-1, 1]).
        n_frames_after_success: frames recorded after the one that succeeded.
        folder: staging folder of the recording.
        video: encoder settings.
    """

    task: str
    seed: int
    gym_kwargs: dict
    action_noise: float
    n_frames_after_success: int
    folder: Path
    video: RGBEncoderConfig

    @property
    def dataset_root(self) -> Path:
        return episode_folder(self.folder, self.task, self.seed)

    @property
    def outcome_path(self) -> Path:
        return self.dataset_root.with_suffix(".json")


class Outcome(TypedDict):
    """What became of an attempt. `n_frames` is also that of a failed episode, which is not kept."""

    task: str
    seed: int
    success: bool
    n_frames: int


def record_episode(job: EpisodeJob) -> Outcome:
    """Let the scripted expert act in one scene; keep the episode if it succeeds.

    The outcome's JSON appears last, so that an episode without one was interrupted and is recorded again.
    """
    av.logging.set_libav_level(av.logging.ERROR)  # x264 reports on every file
    partial = job.dataset_root.with_suffix(".partial")
    for left_over in (partial, job.dataset_root):
        if left_over.exists():
            shutil.rmtree(left_over)
    env = _environment(job.task, tuple(sorted(job.gym_kwargs.items())))
    dataset = LeRobotDataset.create(
        repo_id=f"recording/{job.task}",
        fps=env.metadata["render_fps"],
        features=_features(env),
        root=partial,
        rgb_encoder=job.video,
        encoder_threads=1,
        streaming_encoding=True,
        encoder_queue_maxsize=env._max_episode_steps + 1,  # a full queue would drop frames
    )
    succeeded, n_frames = _act(env, dataset, job)
    if succeeded:
        dataset.save_episode()
    else:
        dataset.clear_episode_buffer()
    dataset.finalize()
    if succeeded:
        move_durably(partial, job.dataset_root)
    else:
        shutil.rmtree(partial)
    outcome = Outcome(task=job.task, seed=job.seed, success=succeeded, n_frames=n_frames)
    job.outcome_path.parent.mkdir(parents=True, exist_ok=True)
    write_text(job.outcome_path, json.dumps(outcome, indent=1))
    return outcome


def _act(env: MetaworldLightEnv, dataset: LeRobotDataset, job: EpisodeJob) -> tuple[bool, int]:
    """Roll the expert out, adding frames.

    The label is what the expert would do in the state that it is in, clipped as the simulator clips; what is executed
    may be noisy, so that labels show how to recover (DART, Laskey et al. 2017, with white noise).
    """
    noise = np.random.default_rng([job.seed, zlib.crc32(job.task.encode())])
    observation, _ = env.reset(seed=job.seed)
    n_frames, n_left = 0, None
    truncated = False
    while not truncated and n_left != 0:
        label = env.expert_action()
        executed = label
        if job.action_noise > 0:
            executed = np.clip(label + noise.normal(0.0, job.action_noise, label.shape), -1.0, 1.0).astype(np.float32)
        following, reward, _, truncated, info = env.step(executed)
        dataset.add_frame(
            {
                OBS_IMAGE: observation["pixels"],
                OBS_STATE: observation["agent_pos"].astype(np.float32),
                ACTION: label,
                "next.reward": np.array([reward], dtype=np.float32),
                "next.success": np.array([info["is_success"]], dtype=bool),
                EPISODE_SEED: np.array([job.seed], dtype=np.int64),
                "task": env.task_description,
            }
        )
        n_frames += 1
        observation = following
        if n_left is not None:
            n_left -= 1
        elif info["is_success"]:
            n_left = job.n_frames_after_success
    return n_left is not None, n_frames


def _features(env: MetaworldLightEnv) -> dict[str, dict]:
    image_shape = (env.observation_height, env.observation_width, 3)
    return {
        OBS_IMAGE: {"dtype": "video", "shape": image_shape, "names": ["height", "width", "channels"]},
        OBS_STATE: {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "gripper"]},
        ACTION: {"dtype": "float32", "shape": (4,), "names": ["dx", "dy", "dz", "gripper"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
        EPISODE_SEED: {"dtype": "int64", "shape": (1,), "names": None},
    }


@lru_cache(maxsize=1)  # jobs come task by task; the environment that leaves the cache frees its OpenGL context
def _environment(task: str, gym_kwargs: tuple) -> MetaworldLightEnv:
    return make_light_env(task, **dict(gym_kwargs))
