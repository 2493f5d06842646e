"""A small environment without a simulator, for tests of many episodes: a dot that the action moves to an edge."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import gymnasium as gym
import numpy as np
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.envs.utils import freeze_after_episode_end
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

SIZE = 32


class DotsEnv(gym.Env):
    """Solved when the dot reaches an edge, which ends the episode: scenes end at different times."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    render_mode = "rgb_array"
    observation_space = gym.spaces.Dict(
        pixels=gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8),
        agent_pos=gym.spaces.Box(-np.inf, np.inf, (4,), np.float64),
    )
    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)

    def __init__(self, task: str, episode_length: int):
        self.task, self.task_description, self._max_episode_steps = task, f"move the dot ({task})", episode_length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-0.7, 0.7, 2)
        self.colour = self.np_random.integers(60, 255, 3, dtype=np.uint8)
        return self._observe(), {"is_success": False}

    def step(self, action):
        self.position = np.clip(self.position + 0.4 * np.clip(action[:2], -1, 1), -1, 1)
        is_success = bool((np.abs(self.position) == 1).any())
        info = {"is_success": is_success}
        if is_success:
            info["final_info"] = {"is_success": True}
        return self._observe(), -float(np.abs(self.position).sum()), is_success, False, info

    def render(self):
        image = np.full((SIZE, SIZE, 3), 0 if self.task == "dark" else 120, np.uint8)
        row, column = ((self.position + 1) / 2 * (SIZE - 8)).astype(int)
        image[row : row + 8, column : column + 8] = self.colour
        return image

    def _observe(self):
        return {"pixels": self.render(), "agent_pos": np.r_[self.position, 0, 0]}


@EnvConfig.register_subclass("dots")
@dataclass
class DotsConfig(EnvConfig):
    """`--env.type=dots`; tasks `dark` and `bright`."""

    task: str = "dark,bright"
    fps: int = 10
    episode_length: int = 12
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            ACTION: PolicyFeature(FeatureType.ACTION, (4,)),
            "pixels": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (4,)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}
    )

    @property
    def gym_kwargs(self) -> dict:
        return {"episode_length": self.episode_length}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict:
        def make(task: str):
            one = freeze_after_episode_end(partial(DotsEnv, task, **self.gym_kwargs))
            return gym.vector.SyncVectorEnv([one] * n_envs)

        return {task: {0: make(task)} for task in self.task.split(",")}
