"""Tiny real LeRobotDatasets, made with LeRobot's own writer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from lerobot.datasets import LeRobotDataset

CAMERAS = ("observation.images.top", "observation.images.wrist")
TASKS = ("push the puck", "open the drawer")
FPS = 10


def solid_frame(episode: int, t: int, camera: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8 of one colour that names the frame: (10 * t, 40 * episode, 100 * camera)."""
    return np.full((size, size, 3), (10 * t, 40 * episode, 100 * camera), dtype=np.uint8)


def scene_frame(episode: int, t: int, camera: int, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a bright square that moves to the right over a background of the episode's colour."""
    rng = np.random.default_rng(100 * episode + camera)
    frame = np.empty((size, size, 3), dtype=np.uint8)
    frame[:] = rng.integers(30, 120, 3)
    frame += rng.integers(0, 20, (size, size, 1), dtype=np.uint8)
    side, x = size // 4, (3 * t) % (size * 3 // 4)
    frame[size // 3 : size // 3 + side, x : x + side] = (240, 200, 40 + 60 * camera)
    return frame


def make_dataset(
    root: Path,
    repo_id: str = "tests/source",
    lengths: Sequence[int] = (12, 17, 14, 20),
    cameras: Sequence[str] = CAMERAS,
    use_videos: bool = True,
    size: int = 64,
    draw: Callable[[int, int, int, int], np.ndarray] = scene_frame,
    seed: int = 0,
) -> LeRobotDataset:
    """Record a dataset: action (4,), observation.state (4,), cameras; the task alternates between episodes.

    Args:
        root: Folder, which must not exist.
        repo_id: Repository id.
        lengths: Frames of each episode.
        cameras: Image feature keys.
        use_videos: Videos, or images in parquet.
        size: Height and width of the frames.
        draw: (episode, t, camera, size) -> frame.
        seed: Seed of states and actions.
    """
    vector = {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "grip"]}
    names = ["height", "width", "channels"]
    image = {"dtype": "video" if use_videos else "image", "shape": (size, size, 3), "names": names}
    features = {"action": vector, "observation.state": vector} | {camera: image for camera in cameras}
    dataset = LeRobotDataset.create(
        repo_id, FPS, features, root=root, use_videos=use_videos, image_writer_threads=2, batch_encoding_size=1
    )
    rng = np.random.default_rng(seed)
    for episode, length in enumerate(lengths):
        state = rng.normal(size=4)
        for t in range(length):
            action = rng.normal(size=4).clip(-1, 1)
            dataset.add_frame(
                {"action": action.astype(np.float32), "observation.state": state.astype(np.float32)}
                | {camera: draw(episode, t, v, size) for v, camera in enumerate(cameras)}
                | {"task": TASKS[episode % len(TASKS)]}
            )
            state = state + 0.1 * action
        dataset.save_episode()
    dataset.finalize()
    return LeRobotDataset(repo_id, root=root)
