"""When an episode went wrong, as far as the simulation knows."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv  # noqa: E402

pytestmark = pytest.mark.sim

OPENS_AND_RISES = (0, 0, 1, -1)


@pytest.mark.parametrize(
    ("task", "expert_until", "then", "expected"),
    [
        ("pick-place-v3", 36, OPENS_AND_RISES, (37, "dropped")),
        ("pick-place-v3", 28, (0, 0, 0.5, -1), (31, "contact_lost")),
        ("pick-place-v3", 0, OPENS_AND_RISES, None),  # never touched: nothing is known
        ("pick-place-v3", 90, OPENS_AND_RISES, None),  # the control: the expert succeeds
        ("reach-v3", 0, OPENS_AND_RISES, None),
    ],
)
def test_a_setback_is_dated(task, expert_until, then, expected):
    env = MetaworldLightEnv(task, episode_length=90, camera_period=90, observation_height=32, observation_width=32)
    for _ in range(2):  # an episode before it changes nothing
        env.reset(seed=3)
        done, step = False, 0
        while not done:
            action = env.expert_action() if step < expert_until else np.array(then, dtype=np.float32)
            *_, terminated, truncated, _ = env.step(action)
            done, step = terminated or truncated, step + 1
    assert env.setback() == expected
    env.close()


def test_an_object_out_of_reach_is_a_setback():
    env = MetaworldLightEnv("push-v3", episode_length=40, camera_period=40, observation_height=32, observation_width=32)
    env.reset(seed=3)
    for step in range(40):
        if step == 10:
            joint = env._setbacks._env.model.body_jntadr[env._setbacks._body]
            place = env._env.model.jnt_qposadr[joint]
            env._env.data.qpos[place : place + 2] = (0.0, 1.3)
        env.step(np.zeros(4, dtype=np.float32))
    assert env.setback() == (11, "out_of_reach")
    env.close()
