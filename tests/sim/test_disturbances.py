"""Disturbances of `metaworld_light`: at their step, by the scene's seed, gone in the next episode."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot_policy_world_modality.envs.configuration_metaworld_light import (  # noqa: E402
    Disturbance,
    MetaworldLightEnvConfig,
)
from lerobot_policy_world_modality.envs.disturbances import DELAY_STEPS  # noqa: E402
from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv  # noqa: E402
from world_modality_core.io.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.sim

AT, AFTER = 4, 14
KINDS = get_args(Disturbance)[1:]
PICTURES = ("light_changes", "camera_moves", "distractor_enters")
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (AT + AFTER, 4)).astype(np.float32)
ACTIONS[:, 3] = 1.0  # the gripper closes: a slip is a change


def run(env, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions (steps + 1, n) of everything and pictures (steps + 1, h, w, 3), the first before any action."""
    pixels = [env.reset(seed=seed)[0]["pixels"]]
    states = [env._env.data.qpos.copy()]
    for action in ACTIONS:
        pixels.append(env.step(action)[0]["pixels"])
        states.append(env._env.data.qpos.copy())
    return np.stack(states), np.stack(pixels)


def make(kind: str = "", task: str = "push-v3") -> MetaworldLightEnv:
    return MetaworldLightEnv(task, observation_height=64, observation_width=64, disturbance=kind, disturb_at=AT)


@pytest.fixture(scope="module")
def undisturbed():
    env = make()
    found = {seed: run(env, seed) for seed in (3, 4)}
    env.close()
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_disturbance_comes_at_its_step_by_its_seed_and_goes_with_the_episode(kind, undisturbed):
    env = make(kind)
    states, pixels = run(env, 3)
    other = run(env, 4)
    again = run(env, 3)
    env._disturber.kind = ""
    calm = run(env, 3)
    env.close()
    expected, expected_pixels = undisturbed[3]
    np.testing.assert_array_equal(states[: AT + 1], expected[: AT + 1])
    np.testing.assert_array_equal(pixels[: AT + 1], expected_pixels[: AT + 1])
    if kind in PICTURES:
        np.testing.assert_array_equal(states, expected)
    else:
        assert not np.array_equal(states[-1], expected[-1])
    assert not np.array_equal(pixels[-1], expected_pixels[-1])
    np.testing.assert_array_equal(again[0], states)  # nothing of the episodes between is left
    np.testing.assert_array_equal(again[1], pixels)
    np.testing.assert_array_equal(calm[1], expected_pixels)  # nor of the disturbance
    assert not np.array_equal(other[1][-1], undisturbed[4][1][-1])


def moved(kind: str, undisturbed, seed: int = 3) -> np.ndarray:
    """(steps + 1, 3) of the object, and of the same without the disturbance, as a difference in metres."""
    env = make(kind)
    states, _ = run(env, seed)
    place = env._env.model.jnt_qposadr[env._disturber._joint]
    env.close()
    return states[:, place : place + 3] - undisturbed[seed][0][:, place : place + 3]


def test_objects_are_moved_at_once_and_pushed_on_and_on(undisturbed):
    jump = np.linalg.norm(moved("move_object", undisturbed)[:, :2], axis=1)
    assert jump[AT] == 0 and 0.05 < jump[AT + 1] < 0.11
    slide = np.linalg.norm(moved("push_object", undisturbed)[:, :2], axis=1)
    assert slide[AT] == 0 < slide[AT + 1] < slide[AT + 4] and slide[AT + 4] > 0.01


def test_delayed_actions_are_the_policy_s_own_a_little_later():
    env = make("actions_delayed")
    env.reset(seed=3)
    executed = [env._disturber.before_step(step, action) for step, action in enumerate(ACTIONS)]
    env.close()
    np.testing.assert_array_equal(executed[:AT], ACTIONS[:AT])
    assert not np.any(executed[AT : AT + DELAY_STEPS])
    np.testing.assert_array_equal(executed[AT + DELAY_STEPS :], ACTIONS[AT : AT + AFTER - DELAY_STEPS])


def test_a_task_without_a_free_object_is_refused():
    with pytest.raises(ConfigError, match="env.disturbance='move_object': this task has no object that lies free"):
        make("move_object", "drawer-open-v3").build()


@pytest.mark.parametrize(
    ("given", "said"), [({"disturbance": "quake"}, "env.disturbance='quake'"), ({"disturb_at": 0}, "env.disturb_at=0")]
)
def test_wrong_options_are_refused_by_name(given, said):
    with pytest.raises(ConfigError, match=said):
        MetaworldLightEnvConfig(**given)
