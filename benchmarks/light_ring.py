"""A dataset in which to act well is to know what comes next: a light runs round a ring, and the arm aims ahead of it.

The light moves by `STEP` a frame, one way round or the other, and turns round at random moments. The action at frame t
points at where the light will be `LEAD` frames later. One frame shows where the light is but not which way it runs, so
what a policy that sees one frame can do is to guess. Two frames show which way, unless the light turns in between; only
the future itself tells the turns. The robot's state is noise and the instruction never changes.

    SmolVLA alone            sees one frame           the way is a coin toss
    predicted memory         seen by the Prophet      right as long as the light doesn't turn
    oracle memory            holds the future         always right
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lerobot.datasets import LeRobotDataset

CAMERA = "observation.images.top"
TASK = "follow the light"
FPS = 10
STEP = np.pi / 12  # radians a frame
TURN = 0.02  # probability of turning round at a frame
LEAD = 6  # frames that the action is ahead: a quarter turn, where the two ways are farthest from agreeing


@dataclass(frozen=True)
class Episode:
    """The light of one episode.

    Attributes:
        angle: (length + ahead,) radians, of the recorded frames and those after them.
        way: (length + ahead,) +1 or -1: the motion that led to each frame.
        length: Recorded frames.
    """

    angle: np.ndarray
    way: np.ndarray
    length: int

    def aim(self, t: int, n: int) -> np.ndarray:
        """(n, 2) actions from frame t on: unit vectors."""
        return unit(self.angle[t + LEAD : t + LEAD + n])

    def straight_aim(self, t: int, n: int, way: int) -> np.ndarray:
        """(n, 2) actions from frame t on if the light ran that way and never turned."""
        return unit(self.angle[t] + way * STEP * (LEAD + np.arange(n)))

    def turns_near(self, t: int, n_before: int, n_after: int) -> bool:
        """Whether the light turns between the history that starts `n_before` frames ago and `n_after` frames on."""
        return bool(np.ptp(self.way[max(t - n_before, 0) + 1 : t + n_after + 1]))


def unit(angle: np.ndarray) -> np.ndarray:
    """(..., 2) points of the unit circle."""
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1)


def run(rng: np.random.Generator, length: int, ahead: int = 64) -> Episode:
    """Let the light run for an episode and `ahead` frames more."""
    n = length + ahead
    turns = np.where(rng.random(n) < TURN, -1, 1)
    turns[0] = rng.choice([-1, 1])
    way = np.cumprod(turns)
    return Episode(rng.uniform(0, 2 * np.pi) + STEP * np.cumsum(way), way, length)


def draw(angle: float, rng: np.random.Generator, size: int) -> np.ndarray:
    """(size, size, 3) uint8: a disc on a ring, its hue naming its place, before dim noise."""
    y, x = np.mgrid[:size, :size] / (size - 1) * 2 - 1
    is_light = (x - 0.6 * np.cos(angle)) ** 2 + (y - 0.6 * np.sin(angle)) ** 2 < 0.3**2
    frame = rng.integers(0, 40, (size, size, 3)).astype(np.uint8)
    frame[is_light] = np.multiply(255, colorsys.hsv_to_rgb(angle / (2 * np.pi) % 1, 1, 1)).astype(np.uint8)
    return frame


def simulate(n_episodes: int, length: int, seed: int) -> list[Episode]:
    """Let the light run for some episodes."""
    rng = np.random.default_rng(seed)
    return [run(rng, length) for _ in range(n_episodes)]


def record(root: Path, repo_id: str, episodes: list[Episode], size: int, seed: int) -> None:
    """Write the dataset: lossless images of `size` px, action (2,), state (2,) of noise."""
    vector = {"dtype": "float32", "shape": (2,), "names": ["x", "y"]}
    image = {"dtype": "image", "shape": (size, size, 3), "names": ["height", "width", "channels"]}
    features = {"action": vector, "observation.state": vector, CAMERA: image}
    dataset = LeRobotDataset.create(repo_id, FPS, features, root=root, use_videos=False, image_writer_threads=2)
    rng = np.random.default_rng(seed)
    for episode in episodes:
        for t in range(episode.length):
            dataset.add_frame({
                "action": episode.aim(t, 1)[0].astype(np.float32),
                "observation.state": rng.normal(size=2).astype(np.float32),
                CAMERA: draw(episode.angle[t], rng, size),
                "task": TASK,
            })  # fmt: skip
        dataset.save_episode()
    dataset.finalize()
