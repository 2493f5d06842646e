"""`metaworld_light` against stock: same states, another renderer; and contexts that survive each other."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

pytest.importorskip("metaworld")

import torch  # noqa: E402
from lerobot.configs import FeatureType, PolicyFeature  # noqa: E402
from lerobot.envs import metaworld as stock  # noqa: E402
from lerobot.envs.factory import make_env, make_env_config, make_env_pre_post_processors  # noqa: E402
from lerobot.envs.metaworld import MetaworldEnv  # noqa: E402
from lerobot.envs.utils import NEW_ROLLOUT_OPTION, close_envs, env_to_policy_features  # noqa: E402
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE  # noqa: E402

from lerobot_policy_world_modality.envs.configuration_metaworld_light import (  # noqa: E402
    Camera,
    MetaworldLightEnvConfig,
)
from lerobot_policy_world_modality.envs.memory_tasks import MEMORY_TASKS  # noqa: E402
from lerobot_policy_world_modality.envs.metaworld_light import INSTRUCTIONS, MetaworldLightEnv, resolve_tasks  # noqa: E402
from world_modality_core.io.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.sim

NEW = {NEW_ROLLOUT_OPTION: True}
SIZE = 48
TWELVE_TASKS = [
    "push-v3",
    "reach-v3",
    "drawer-open-v3",
    "window-open-v3",
    "door-open-v3",
    "button-press-topdown-v3",
    "pick-place-v3",
    "assembly-v3",
    "basketball-v3",
    "hammer-v3",
    "sweep-v3",
    "lever-pull-v3",
]
ACTIONS = np.random.default_rng(0).uniform(-1, 1, (20, 4)).astype(np.float32)


class NoRenderer:
    """For stock environments whose picture does not matter: theirs costs 0.1 s and more."""

    def render(self, render_mode):
        return np.zeros((480, 480, 3), dtype=np.uint8)

    def close(self):
        pass


def light(task="push-v3", size=SIZE, **kwargs) -> MetaworldLightEnv:
    return MetaworldLightEnv(task=task, observation_height=size, observation_width=size, **kwargs)


def trajectory(env, seed: int) -> list[np.ndarray]:
    """Everything but the picture: observation, positions and velocities of all bodies, reward, flags."""
    observation, _ = env.reset(seed=seed)
    states = [np.concatenate([observation["agent_pos"], env._env._last_rand_vec, env._env.data.qpos])]
    for action in ACTIONS:
        observation, reward, terminated, truncated, info = env.step(action)
        flags = [reward, terminated, truncated, info["is_success"]]
        states.append(np.concatenate([observation["agent_pos"], env._env.data.qpos, env._env.data.qvel, flags]))
    return states


@pytest.mark.parametrize("task", ["push-v3", "pick-place-v3", "drawer-open-v3", "door-open-v3", "assembly-v3"])
def test_states_equal_stock_bit_for_bit(task):
    stock = MetaworldEnv(task=task, obs_type="pixels_agent_pos")
    stock._ensure_env()
    stock._env.mujoco_renderer = NoRenderer()
    ours = light(task)
    trajectory(ours, seed=3)  # what came before must not matter
    expected, got = trajectory(stock, seed=7), trajectory(ours, seed=7)
    other = trajectory(ours, seed=8)
    ours.close()
    assert len(got) == 21
    for theirs, own in zip(expected, got, strict=True):
        np.testing.assert_array_equal(own, theirs)
    assert not np.array_equal(other[0], got[0])  # the comparison can tell scenes apart
    assert ours.task_description == stock.task_description


def test_a_slow_camera_changes_nothing_but_the_pictures_in_between():
    every, slow = light(), light(camera_period=4)
    seen = {}
    for name, env in (("every", every), ("slow", slow)):
        frames = [env.reset(seed=5)[0]] + [env.step(action)[0] for action in ACTIONS[:10]]
        frames += [env.reset(seed=6)[0]]  # a new episode starts with a picture of its own
        seen[name] = frames
        env.close()
    for step, (full, sparse) in enumerate(zip(seen["every"], seen["slow"], strict=True)):
        np.testing.assert_array_equal(sparse["agent_pos"], full["agent_pos"])
        last = step if step == 11 else step // 4 * 4
        np.testing.assert_array_equal(sparse["pixels"], seen["every"][last]["pixels"])
        assert step in (0, 11) or not np.array_equal(full["pixels"], seen["every"][step - 1]["pixels"])


@pytest.mark.parametrize("task", ["reach-v3", "push-v3"])
def test_a_hidden_goal_is_seen_first_and_gone_later(task):
    shown, hidden = light(task, size=96), light(task, size=96, hide_goal_after=3)
    for _ in range(2):  # the second episode shows it again
        pairs = [(shown.reset(seed=5)[0], hidden.reset(seed=5)[0])]
        pairs += [(shown.step(action)[0], hidden.step(action)[0]) for action in ACTIONS[:5]]
        same = [np.array_equal(a["pixels"], b["pixels"]) for a, b in pairs]
        assert same == [True, True, True, False, False, False]
        assert all(np.array_equal(a["agent_pos"], b["agent_pos"]) for a, b in pairs)
    # What is missing is the marker: a few saturated pixels, not the scene.
    changed = np.abs(pairs[-1][0]["pixels"].astype(int) - pairs[-1][1]["pixels"]).max(-1) > 8
    assert 0 < changed.mean() < 0.05
    shown.close()
    hidden.close()


def test_a_robot_that_is_held_still_stays_and_then_moves():
    held, free = light("reach-v3", size=64, hold_still_for=4), light("reach-v3", size=64)
    for _ in range(2):  # in the second episode too
        first = held.reset(seed=5)[0]["agent_pos"]
        free.reset(seed=5)
        there = [held.step(np.ones(4, np.float32))[0]["agent_pos"] for _ in range(8)]
        still = [free.step(np.zeros(4, np.float32))[0]["agent_pos"] for _ in range(4)]
        np.testing.assert_array_equal(there[:4], still)
        assert np.abs(there[3] - first)[:3].max() < 0.01 < np.abs(there[7] - there[3])[:3].max()
    held.close()
    free.close()


@pytest.mark.parametrize("task", ["push-v3", "peg-insert-side-v3"])
def test_a_hidden_robot_acts_unseen(task):
    seen, unseen = light(task, size=96), light(task, size=96, hide_robot=True)
    pairs = [(seen.reset(seed=5)[0], unseen.reset(seed=5)[0])]
    down = np.array([0, 0, -1, 0], np.float32)
    pairs += [(seen.step(down)[0], unseen.step(down)[0]) for _ in range(25)]
    assert all(np.array_equal(a["agent_pos"], b["agent_pos"]) for a, b in pairs)  # the same physics
    moved = [np.abs(pairs[-1][i]["pixels"].astype(int) - pairs[0][i]["pixels"]).max(-1) > 8 for i in (0, 1)]
    assert moved[0].mean() > 0.02 and moved[1].mean() < 0.001  # only the robot moves, and it isn't drawn
    without = np.abs(pairs[0][0]["pixels"].astype(int) - pairs[0][1]["pixels"]).max(-1) > 8
    assert 0.05 < without.mean() < 0.5  # the table, the object and the goal are there as before
    seen.close()
    unseen.close()


def test_a_bad_camera_period_and_a_goal_that_cannot_be_hidden_are_refused():
    with pytest.raises(ConfigError, match="hide_goal_after=3: button-press-v3 has no goal marker"):
        light("button-press-v3", hide_goal_after=3).build()
    with pytest.raises(ConfigError, match="camera_name='corner9'.*corner2"):
        MetaworldLightEnvConfig(camera_name="corner9")
    with pytest.raises(ConfigError, match="camera_period=0"):
        MetaworldLightEnvConfig(camera_period=0)
    with pytest.raises(ConfigError, match="hold_still_for=-1"):
        MetaworldLightEnvConfig(hold_still_for=-1)
    assert MetaworldLightEnvConfig(hide_goal_after=9).gym_kwargs["hide_goal_after"] == 9


def test_twelve_tasks_opened_and_closed_while_another_goes_on():
    survivor = light()
    alone = [survivor.reset(seed=1)[0]["pixels"]] + [survivor.step(a)[0]["pixels"] for a in ACTIONS[:12]]
    now = [survivor.reset(seed=1)[0]["pixels"]]
    for task, action in zip(TWELVE_TASKS, ACTIONS, strict=False):
        env = light(task)
        frames = [env.reset(seed=0)[0]["pixels"]] + [env.step(a)[0]["pixels"] for a in ACTIONS[:3]]
        if task == "drawer-open-v3":
            del env  # dropped, not closed
            gc.collect()
        else:
            env.close()
        now.append(survivor.step(action)[0]["pixels"])
        assert min(f.std() for f in frames) > 20, task
        assert all(not np.array_equal(a, b) for a, b in zip(frames, frames[1:], strict=False)), task
    survivor.close()
    # Not only is there a picture: it is this task's, with its own meshes and textures.
    np.testing.assert_array_equal(np.stack(now), np.stack(alone))


def test_tasks_alive_together_do_not_draw_into_each_other():
    def frames(env):
        yield env.reset(seed=2)[0]["pixels"]
        for action in ACTIONS[:4]:
            yield env.step(action)[0]["pixels"]

    alone = {}
    for task in ("push-v3", "door-open-v3"):
        env = light(task)
        alone[task] = np.stack(list(frames(env)))
        env.close()
    envs = {task: light(task) for task in alone}
    together = list(zip(*(frames(env) for env in envs.values()), strict=True))
    for i, (task, env) in enumerate(envs.items()):
        np.testing.assert_array_equal(np.stack([pair[i] for pair in together]), alone[task])
        env.close()
    assert not np.array_equal(alone["push-v3"], alone["door-open-v3"])


def test_threads_render_and_another_one_closes():
    """`--env.max_parallel_tasks=2`: worker threads evaluate, the main thread closes; nothing may stay bound."""
    expected = {}
    for task in ("push-v3", "reach-v3"):
        env = light(task)
        expected[task] = env.reset(seed=0)[0]["pixels"]
        env.close()
    envs = {task: light(task) for task in expected}
    with ThreadPoolExecutor(2) as pool:
        frames = dict(zip(envs, pool.map(lambda env: env.reset(seed=0)[0]["pixels"], envs.values()), strict=True))
        envs["reach-v3"].close()  # while the thread that rendered is idle, not gone
        again = pool.submit(lambda: envs["push-v3"].reset(seed=0)[0]["pixels"]).result()
    envs["push-v3"].close()
    for task, frame in frames.items():
        np.testing.assert_array_equal(frame, expected[task])
    np.testing.assert_array_equal(again, expected["push-v3"])


def test_an_environment_renders_again_after_close():
    env = light()
    before = env.reset(seed=0)[0]["pixels"]
    env.close()
    np.testing.assert_array_equal(env.reset(seed=0)[0]["pixels"], before)
    env.close()


def test_the_picture_is_the_observations_and_has_the_chosen_size():
    env = MetaworldLightEnv(task="push-v3", observation_height=40, observation_width=72)
    observation, _ = env.reset(seed=0)
    assert observation["pixels"].shape == (40, 72, 3)
    assert env.observation_space.contains(observation)
    np.testing.assert_array_equal(env.render(), observation["pixels"])
    following = env.step(ACTIONS[0])[0]["pixels"]
    np.testing.assert_array_equal(env.render(), following)
    assert not np.array_equal(following, observation["pixels"])
    env.close()


def test_success_terminates_and_leaves_the_scene_as_it_ended():
    env = light("reach-v3")
    env.reset(seed=0)
    terminated = False
    while not terminated:
        action = env.expert_action()
        assert action.dtype == np.float32 and np.abs(action).max() <= 1
        observation, _, terminated, truncated, info = env.step(action)
        assert not truncated
    assert info["final_info"]["is_success"]
    np.testing.assert_array_equal(env.render(), observation["pixels"])
    assert env.step(env.expert_action())[4]["is_success"]  # it goes on from there; stock would be in the next scene
    env.close()


def test_truncation_at_episode_length():
    env = light(episode_length=5)
    env.reset(seed=0)
    truncations = [env.step(ACTIONS[i])[3] for i in range(5)]
    assert truncations == [False] * 4 + [True]
    assert env._max_episode_steps == 5
    env.close()


def test_longer_than_stocks_500_steps():
    env = light(episode_length=502)
    env.reset(seed=0)
    env._env.curr_path_length = 499
    assert [env.step(ACTIONS[0])[3] for _ in range(3)] == [False, False, True]
    env.close()


def test_building_leaves_numpys_generator_alone_and_unseeded_scenes_differ():
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    envs = [light(), light()]
    for env in envs:
        env.reset()
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    assert not np.array_equal(envs[0]._env._last_rand_vec, envs[1]._env._last_rand_vec)
    for env in envs:
        env.close()


def test_an_unknown_camera_is_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="camera_name='corner9'.*corner2"):
        light(camera_name="corner9").reset(seed=0)


def test_no_two_tasks_have_one_instruction_and_the_others_are_stock_s():
    assert len(set(INSTRUCTIONS.values())) == len(INSTRUCTIONS) == 50 + len(MEMORY_TASKS)
    changed = {task for task in stock.TASK_DESCRIPTIONS if INSTRUCTIONS[task] != stock.TASK_DESCRIPTIONS[task]}
    assert changed == {"push-back-v3"}
    assert light("push-back-v3").task_description == INSTRUCTIONS["push-back-v3"]


def test_every_model_has_the_cameras_that_may_be_chosen():
    for task in ("push-v3", "door-open-v3", "coffee-pull-v3"):
        env = light(task)
        env.build()
        model = env._env.model
        assert {model.camera(i).name for i in range(model.ncam)} == set(get_args(Camera))


def test_task_lists_and_tiers():
    assert resolve_tasks("push-v3, metaworld-reach-v3") == {"push-v3": ["push-v3"], "reach-v3": ["reach-v3"]}
    assert len(resolve_tasks("very_hard")["very_hard"]) == 5
    with pytest.raises(ConfigError, match="push-v4.*did you mean.*push-v3"):
        resolve_tasks("push-v4")
    with pytest.raises(ConfigError, match="names push-v3 twice"):
        resolve_tasks("push-v3,push-v3")
    with pytest.raises(ConfigError, match="at least one"):
        resolve_tasks(" ,")


@pytest.mark.parametrize(
    "options", [{"obs_type": "state"}, {"fps": 30}, {"episode_length": 0}, {"observation_width": 8}]
)
def test_options_that_make_no_sense_are_named(options):
    with pytest.raises(ConfigError, match=f"env.{next(iter(options))}={next(iter(options.values()))!r}"):
        MetaworldLightEnvConfig(**options)


def make(task: str, n_envs: int, use_async_envs: bool = False, **kwargs):
    cfg = make_env_config("metaworld_light", task=task, observation_height=SIZE, observation_width=SIZE, **kwargs)
    return cfg, make_env(cfg, n_envs=n_envs, use_async_envs=use_async_envs)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_policy_features():
    cfg, _ = make("push-v3", 1)
    features = env_to_policy_features(cfg)
    assert features == {
        ACTION: PolicyFeature(FeatureType.ACTION, (4,)),
        OBS_IMAGE: PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
        OBS_STATE: PolicyFeature(FeatureType.STATE, (4,)),
    }


def test_make_env_groups_tasks_and_async_equals_sync():
    _, sync = make("push-v3,very_hard", 2, episode_length=6)
    assert list(sync) == ["push-v3", "very_hard"]
    assert list(sync["very_hard"]) == [0, 1, 2, 3, 4]
    _, asynchronous = make("push-v3", 2, use_async_envs=True, episode_length=6)
    runs = []
    for vector in (sync["push-v3"][0], asynchronous["push-v3"][0]):
        assert vector.call("_max_episode_steps")[0] == 6
        assert vector.call("task_description") == ("Push the puck to a goal",) * 2
        observation, _ = vector.reset(seed=[5, 6], options=NEW)
        run = [observation]
        ends = []
        for action in ACTIONS[:8]:
            observation, _, terminated, truncated, _ = vector.step(np.stack([action, -action]))
            run.append(observation)
            ends.append((terminated | truncated).tolist())
        assert ends[4:6] == [[False, False], [True, True]]
        runs.append(run)
    # Its processes were forked from one that has imported LeRobot, which takes 7 CPU-seconds.
    for process in asynchronous["push-v3"][0]._env.processes:
        assert "libtorch" in Path(f"/proc/{parent_of(process.pid)}/maps").read_text()
        assert parent_of(process.pid) != os.getpid()
    close_envs(sync)
    close_envs(asynchronous)
    for one, other in zip(*runs, strict=True):
        for key in ("pixels", "agent_pos"):
            np.testing.assert_array_equal(one[key], other[key])
    assert not np.array_equal(runs[0][0]["pixels"][0], runs[0][0]["pixels"][1])


def test_a_finished_environment_costs_nothing_until_the_next_rollout():
    _, envs = make("push-v3", 1, episode_length=3)
    vector = envs["push-v3"][0]
    vector.reset(seed=[0], options=NEW)
    for action in ACTIONS[:3]:
        last, *_ = vector.step(action[None])
    simulation = vector.envs[0].unwrapped._env
    time_at_end = simulation.data.time
    for action in ACTIONS[:3]:
        observation, *_ = vector.step(action[None])
        np.testing.assert_array_equal(observation["pixels"], last["pixels"])
    assert simulation.data.time == time_at_end
    observation, _ = vector.reset(seed=[0], options=NEW)
    assert not np.array_equal(observation["pixels"], last["pixels"])
    close_envs(envs)


def test_lerobot_eval_drives_it(tmp_path):
    """LeRobot's own evaluation loop, over two tasks, with its own policy: success rates, seeds and videos come out."""
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy_all

    cfg, envs = make("push-v3,reach-v3", 2, episode_length=8)
    features = env_to_policy_features(cfg)
    torch.manual_seed(0)
    policy = ACTPolicy(
        ACTConfig(
            input_features={key: ft for key, ft in features.items() if key != ACTION},
            output_features={ACTION: features[ACTION]},
            pretrained_backbone_weights=None,
            dim_model=16,
            n_heads=2,
            dim_feedforward=16,
            n_encoder_layers=1,
            n_vae_encoder_layers=1,
            chunk_size=4,
            n_action_steps=4,
            device="cpu",
        )
    )
    policy.eval()  # as lerobot-eval does; restoring the mode is its own business
    preprocessor, postprocessor = make_pre_post_processors(policy.config)
    env_preprocessor, env_postprocessor = make_env_pre_post_processors(cfg, policy.config)
    info = eval_policy_all(
        envs,
        policy,
        env_preprocessor,
        env_postprocessor,
        preprocessor,
        postprocessor,
        n_episodes=2,
        max_episodes_rendered=1,
        videos_dir=tmp_path,
        start_seed=100_000,
    )
    close_envs(envs)
    assert info["overall"]["n_episodes"] == 4
    assert {row["task_group"] for row in info["per_task"]} == {"push-v3", "reach-v3"}
    assert len(list(tmp_path.rglob("*.mp4"))) == 2
