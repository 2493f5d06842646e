"""The suite `memory`: the expert solves it, and no frame after the cue tells what it asked for."""

import json

import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot.envs.factory import make_env, make_env_config  # noqa: E402
from lerobot.envs.utils import close_envs  # noqa: E402

from lerobot_policy_world_modality.envs.memory_tasks import MEMORY_TASKS, Touches  # noqa: E402
from lerobot_policy_world_modality.envs.metaworld_light import SUITES, make_light_env, resolve_tasks  # noqa: E402
from lerobot_policy_world_modality.record.expert_episode import EpisodeJob, record_episode  # noqa: E402
from lerobot_policy_world_modality.record.record_options import RecordConfig  # noqa: E402

pytestmark = pytest.mark.sim

ANSWERS = {
    "recall-cover": [(0,), (1,), (2,)],
    "recall-highlight": [(0,), (1,), (2,)],
    "recall-order": [(0, 1, 2), (2, 0, 1)],
    "recall-count": [(0,), (0, 0), (0, 0, 0)],
}
LENGTH = 300


def light(task, **kwargs):
    return make_light_env(task, observation_height=64, observation_width=64, episode_length=LENGTH, **kwargs)


def run(env, act, n=LENGTH, **reset):
    """Frames, states and whether an episode succeeded."""
    observation, _ = env.reset(**reset)
    seen = [observation]
    for t in range(n):
        observation, reward, terminated, truncated, info = env.step(act(t))
        seen.append(observation)
        if terminated or truncated:
            break
    assert reward == float(info["is_success"]) == float(terminated)
    return seen, info["is_success"]


@pytest.mark.parametrize("task", MEMORY_TASKS)
def test_the_expert_solves_it_and_one_who_missed_the_cue_does_not(task):
    env = light(task, camera_period=8)
    draw = MEMORY_TASKS[task].draw
    solved = [run(env, lambda t: env.expert_action(), seed=seed)[1] for seed in range(6)]
    guessed = []
    for seed in range(6):  # an expert that was told the answer of another scene
        places, answer = draw(np.random.default_rng([seed + 50, 0]))

        def act(t, places=places, answer=answer):
            if t == 0:
                act.other = Touches(MEMORY_TASKS[task], env._touches.places if len(places) > 1 else places, answer)
            elif t > MEMORY_TASKS[task].cue_steps:
                act.other.note(env._raw_obs[:3])
            real, env._touches = env._touches, act.other
            action = env.expert_action()
            env._touches = real
            return action

        guessed.append(run(env, act, seed=seed)[1])
    env.close()
    assert all(solved)
    assert sum(guessed) <= 4  # chance: 1/3, 1/3, 1/6, 1/3; a place, hardly ever


@pytest.mark.parametrize("task, period", [*((task, 1) for task in ANSWERS), ("recall-highlight", 7)])
def test_a_single_frame_tells_nothing_once_the_robot_may_move(task, period):
    env = light(task, camera_period=period)
    cue = -(-MEMORY_TASKS[task].cue_steps // period) * period
    moves = np.random.default_rng(0).uniform(-1, 1, (cue + 12, 4)).astype(np.float32)
    episodes = [
        run(env, lambda t: moves[t], len(moves), seed=3, options={"answer": answer})[0] for answer in ANSWERS[task]
    ]
    still = run(env, lambda t: np.zeros(4, np.float32), len(moves), seed=3)[0]
    env.close()
    moved = [not np.array_equal(a["agent_pos"], b["agent_pos"]) for a, b in zip(episodes[0], still, strict=True)]
    assert moved.index(True) > cue
    for other in episodes[1:]:
        for t, (a, b) in enumerate(zip(episodes[0], other, strict=True)):
            np.testing.assert_array_equal(a["agent_pos"], b["agent_pos"])
            if t >= cue:
                np.testing.assert_array_equal(a["pixels"], b["pixels"])
        # The control: during the cue the difference is to be seen.
        assert any(not np.array_equal(a["pixels"], b["pixels"]) for a, b in zip(episodes[0][:cue], other, strict=False))


def test_a_place_that_was_shown_is_gone():
    env = light("recall-place")
    still = lambda t: np.zeros(4, np.float32)  # noqa: E731
    seen, _ = run(env, still, 26, seed=1)
    env._memory_task = MEMORY_TASKS["recall-count"]  # draws the place throughout
    drawn, _ = run(env, still, 26, seed=1)
    env.close()
    differs = [not np.array_equal(a["pixels"], b["pixels"]) for a, b in zip(seen, drawn, strict=True)]
    assert differs[24:] == [True] * 3


@pytest.mark.parametrize("task", ["recall-cover", "recall-highlight", "recall-order"])
def test_every_place_is_seen(task):
    env = light(task)
    for seed in range(4):
        full = env.reset(seed=seed)[0]["pixels"].astype(int)
        marks = list(env._env.mujoco_renderer.marks)
        for i in range(3):
            env._env.mujoco_renderer.marks = marks[:i] + marks[i + 1 :]
            env._env.mujoco_renderer.forget()
            without = np.flip(env._env.mujoco_renderer.render(), (0, 1))
            assert (np.abs(full - without).max(-1) > 20).sum() >= 4, (seed, i)
    env.close()


def test_touching_what_was_not_asked_for_fails_for_good():
    task = MEMORY_TASKS["recall-highlight"]
    places = np.array([[0.0, 0, 0], [1, 0, 0], [2, 0, 0]])
    touches = Touches(task, places, (1,))
    for hand in (places[0], [0.5, 0, 0], places[1]):
        touches.note(np.array(hand, dtype=float))
    assert touches.touched == [0, 1] and touches.has_failed and not touches.has_succeeded


@pytest.mark.parametrize("presses, succeeds", [(1, False), (2, True), (3, False)])
def test_counting_too_few_or_too_often_fails(presses, succeeds):
    task = MEMORY_TASKS["recall-count"]
    touches = Touches(task, np.zeros((1, 3)), (0, 0))
    for _ in range(presses):
        touches.note(np.zeros(3))
        touches.note(np.array([0, 0, 1.0]))
    for _ in range(task.settle_steps + 5):
        touches.note(np.array([0, 0, 1.0]))
    touches.note(np.zeros(3))  # an afterthought changes nothing
    assert touches.has_succeeded == succeeds


def test_the_suite_is_recorded_and_evaluated_by_its_name(tmp_path):
    assert resolve_tasks("memory") == {"memory": SUITES["memory"]} and len(SUITES["memory"]) == 5
    options = {"observation_height": 64, "observation_width": 64, "episode_length": LENGTH, "camera_period": 8}
    video = RecordConfig().video
    outcome = record_episode(EpisodeJob("recall-highlight", 3, options, 0.0, 5, tmp_path, video))
    assert outcome["success"] and outcome["n_frames"] > MEMORY_TASKS["recall-highlight"].cue_steps
    info = json.loads((tmp_path / "recall-highlight" / "000003" / "meta" / "info.json").read_text())
    assert info["total_episodes"] == 1

    envs = make_env(make_env_config("metaworld_light", task="memory", **options), n_envs=2)
    vector = envs["memory"][3]
    vector.reset(seed=[1, 2])
    assert [each.unwrapped.task for each in vector.unwrapped.envs] == ["recall-order"] * 2
    places = [each.unwrapped._touches.places for each in vector.unwrapped.envs]
    assert not np.array_equal(*places)
    close_envs(envs)
