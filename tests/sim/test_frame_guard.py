"""The guard where frames are born: what it stops, and above all what it must not stop."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot.envs.utils import freeze_after_episode_end  # noqa: E402

from lerobot_policy_world_modality.envs.frame_guard import (  # noqa: E402
    BlankFrameError,
    FrameGuard,
    FrozenFrameError,
)
from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv  # noqa: E402

pytestmark = pytest.mark.sim

SIZE = 64
RIGHT = np.array([1, 0, 0, 0], dtype=np.float32)
REST = np.zeros(4, dtype=np.float32)


class FaultyRenderer:
    """Stands in for `LightRenderer`: good frames of the real one until `fault` is set."""

    def __init__(self, real):
        self.real, self.fault, self.last = real, None, None

    def render(self, render_mode="rgb_array"):
        if self.fault == "blank":
            return np.full_like(self.last, 77)
        if self.fault == "frozen":
            return self.last
        self.last = self.real.render(render_mode)
        return self.last

    def show_ball(self, position, radius=0.0):
        self.real.show_ball(position, radius)

    def forget(self):
        self.real.forget()

    def close(self):
        self.real.close()


@pytest.fixture
def env():
    env = MetaworldLightEnv(task="reach-v3", observation_height=SIZE, observation_width=SIZE)
    env.reset(seed=0)
    env._env.mujoco_renderer = FaultyRenderer(env._env.mujoco_renderer)
    env.reset(seed=0)
    yield env
    env.close()


def picture(value: int = 0) -> np.ndarray:
    frame = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    frame[20:40, 20:40] = 200
    frame[0, 0, 0] = value
    return frame


def test_good_frames_pass_and_a_blank_one_stops_the_episode(env):
    for _ in range(5):
        env.step(RIGHT)
    env._env.mujoco_renderer.fault = "blank"
    with pytest.raises(BlankFrameError, match="reach-v3, step 6, MUJOCO_GL=.*blank frame.*fresh process"):
        env.step(RIGHT)


def test_a_frozen_frame_stops_the_episode_once_the_hand_has_moved(env):
    for _ in range(3):
        env.step(RIGHT)
    env._env.mujoco_renderer.fault = "frozen"
    with pytest.raises(FrozenFrameError, match="reach-v3, step .*frozen frame.*has moved 0.0[4-9]"):
        for _ in range(40):
            env.step(RIGHT)
    assert env._env.curr_path_length < 30  # 4 cm (two pixels of 64) at up to 1 cm a step


def test_a_frozen_frame_is_no_fault_while_the_robot_rests(env):
    env._env.mujoco_renderer.fault = "frozen"
    for _ in range(60):
        env.step(REST)


def test_a_reset_forgets_the_last_frame(env):
    for _ in range(20):
        env.step(RIGHT)
    env._env.mujoco_renderer.fault = "frozen"
    env.reset(seed=0)  # the hand is back, 15 cm away, and the picture is the old one
    env._env.mujoco_renderer.fault = None
    env.step(REST)


def test_slow_motion_adds_up():
    guard = FrameGuard("push-v3", min_motion_m=0.02)
    for step in range(4):
        guard.check(picture(), np.array([0.005 * step, 0, 0]), step)  # 1.5 cm in all
    with pytest.raises(FrozenFrameError, match="0.020 m since"):
        guard.check(picture(), np.array([0.02, 0, 0]), 4)


def test_any_changed_pixel_clears_the_suspicion():
    guard = FrameGuard("push-v3", min_motion_m=0.02)
    for step in range(40):
        guard.check(picture(step // 3), np.array([0.009 * step, 0, 0]), step)


@pytest.mark.parametrize("is_colourful", [False, True])
def test_a_constant_image_is_blank_whatever_its_colour(is_colourful):
    frame = np.full((SIZE, SIZE, 3), (10, 130, 250) if is_colourful else 0, dtype=np.uint8)
    with pytest.raises(BlankFrameError):
        FrameGuard("push-v3").check(frame, np.zeros(3), 0)


@pytest.mark.filterwarnings("ignore:.*ERROR")  # gymnasium tells what it is about to raise
def test_the_error_arrives_through_synchronous_and_asynchronous_vector_environments():
    class GoesBlank(MetaworldLightEnv):  # local, so that it travels to the worker process by value
        def step(self, action):
            if self._env.curr_path_length == 3:
                self._env.mujoco_renderer.render = lambda mode: np.zeros((64, 64, 3), dtype=np.uint8)
            return super().step(action)

    def maker():
        return GoesBlank(task="reach-v3", observation_height=64, observation_width=64)

    vectors = [
        gym.vector.SyncVectorEnv([freeze_after_episode_end(maker)]),
        gym.vector.AsyncVectorEnv([freeze_after_episode_end(maker)], context="forkserver"),
    ]
    for vector in vectors:
        vector.reset(seed=[0])
        with pytest.raises(BlankFrameError, match="reach-v3, step 4"):
            for _ in range(6):
                vector.step(RIGHT[None])
        vector.close()
