"""Pinned scenes and watched frames, on LeRobot's own LIBERO class and on a camera that fails."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import yaml

from lerobot_policy_world_modality.envs.frame_guard import BlankFrameError, FrozenFrameError
from lerobot_policy_world_modality.evaluation.pinned_env import PinnedEnv, observation_hash

ACTIONS = np.zeros((2, 7), dtype=np.float32)


class StillSimulator:
    """Stands for LIBERO's simulator, whose meshes are large: shows a picture of the state that it was set to."""

    robots = [SimpleNamespace(controller=SimpleNamespace(ee_ori_mat=np.eye(3), use_delta=None))]

    def __init__(self, n_steps: int):
        self.n_steps, self.state = n_steps, np.zeros(1)

    def seed(self, seed):
        pass

    def reset(self):
        self.steps = 0
        return self.show()

    def set_init_state(self, state):
        self.steps, self.state = -10, state  # ten steps pass while objects settle
        return self.show()

    def step(self, action):
        self.steps += 1
        return self.show(), 0.0, self.steps >= self.n_steps, {}

    def check_success(self):
        return False

    def show(self):
        image = np.random.default_rng(int(self.state.sum() * 1e6) % 2**32).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        names = {"eef_pos": 3, "eef_quat": 4, "gripper_qpos": 2, "gripper_qvel": 2, "joint_pos": 7, "joint_vel": 7}
        return {"agentview_image": image} | {f"robot0_{name}": np.full(n, 0.5) for name, n in names.items()}


@pytest.fixture(scope="module")
def libero_env(tmp_path_factory):
    """Makes LeRobot's LiberoEnv, with its real tasks and init states, on a `StillSimulator`."""
    pytest.importorskip("robosuite")
    package = Path(importlib.util.find_spec("libero").submodule_search_locations[0]) / "libero"
    with pytest.MonkeyPatch.context() as patch:
        if not (Path.home() / ".libero" / "config.yaml").exists():  # else LIBERO asks for one on the terminal
            folder = tmp_path_factory.mktemp("libero")
            paths = {name: str(package / name) for name in ("bddl_files", "assets", "datasets")}
            paths |= {"benchmark_root": str(package), "init_states": str(package / "init_files")}
            (folder / "config.yaml").write_text(yaml.safe_dump(paths))
            patch.setenv("LIBERO_CONFIG_PATH", str(folder))
        from lerobot.envs.libero import LiberoEnv, _get_suite

        class StillLibero(LiberoEnv):
            def _ensure_env(self):
                self._env = self._env or StillSimulator(n_steps=2 + 3 * self.episode_index)

        suite = _get_suite("libero_goal")
        options = {"camera_name": "agentview_image", "obs_type": "pixels_agent_pos", "n_envs": 2}
        options |= {"observation_width": 16, "observation_height": 16}
        yield lambda i: StillLibero(suite, 0, "libero_goal", episode_index=i, **options)


def vectorise(make):
    makers = [lambda i=i: make(i) for i in range(2)]
    return gym.vector.SyncVectorEnv(makers, autoreset_mode=gym.vector.AutoresetMode.NEXT_STEP)


@pytest.mark.sim
def test_libero_scenes_are_init_states_whenever_episodes_end(libero_env):
    """The first environment ends early, and is reset by itself meanwhile; LIBERO's own count moves on."""
    images = {}
    for name in ("pinned", "plain"):
        env = vectorise(libero_env)
        env = PinnedEnv(env, "libero", "open_drawer", start_seed=100) if name == "pinned" else env
        images[name] = []
        for seeds in ([100, 101], [102, 103], [100, 101]):
            images[name].append(env.reset(seed=seeds)[0]["pixels"]["image"].copy())
            for _ in range(6):
                env.step(ACTIONS)
        if name == "pinned":
            assert env.init_hashes[0] != env.init_hashes[1]
    pinned, plain = images["pinned"], images["plain"]
    np.testing.assert_array_equal(pinned[0], pinned[2])
    assert not np.array_equal(pinned[0], pinned[1])
    np.testing.assert_array_equal(plain[0], pinned[0])  # lerobot-eval's first batch shows the same states
    assert not np.array_equal(plain[1], pinned[1]) and not np.array_equal(plain[2], plain[0])


def do_nothing(*_):
    """In place of what makes `metaworld_light` draw the goal where it is, so that it draws as stock does."""


@pytest.mark.sim
@pytest.mark.parametrize(
    ("env_type", "kinematics", "is_pinned"),
    [
        ("metaworld_light", mujoco.mj_kinematics, True),
        ("metaworld", do_nothing, True),  # reset twice
        ("metaworld_light", do_nothing, False),  # else neither is needed any more
    ],
)
def test_the_first_picture_of_push_does_not_depend_on_the_episode_before(env_type, kinematics, is_pinned, monkeypatch):
    from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv

    def push(env):
        """Let the expert solve a scene, so that the object ends somewhere else; steps and rewards until then."""
        rewards = []
        for _ in range(90):
            _, reward, is_solved, *_ = env.step(env.expert_action())
            rewards.append(reward)
            if is_solved:
                return rewards
        raise AssertionError("the expert failed")

    def vector():
        return gym.vector.SyncVectorEnv([lambda: MetaworldLightEnv("push-v3", camera_period=1000)])

    monkeypatch.setattr(mujoco, "mj_kinematics", kinematics)
    env = PinnedEnv(vector(), env_type, "push-v3", start_seed=100_000)
    hashes, rewards = [], []
    for _ in range(2):
        env.reset(seed=[100_000])
        hashes.append(env.init_hashes[0])
        rewards.append(push(env.envs[0]))
    env.close()
    assert (hashes[0] == hashes[1]) is is_pinned
    assert rewards[0] == rewards[1] and len(set(rewards[0])) > 10  # the physics remembers nothing either


def model_fields(model) -> dict[str, np.ndarray]:
    """All that a compiled model holds: where its fixtures are, besides what never changes."""
    raw = getattr(model, "_model", model)  # robosuite's wrapper
    values = {name: getattr(raw, name) for name in dir(raw) if not name.startswith("_")}
    # Without NaN, which is equal to nothing: MuJoCo's normals of a mesh's flat polygons.
    return {name: np.nan_to_num(value) for name, value in values.items() if isinstance(value, np.ndarray)}


@pytest.mark.sim
@pytest.mark.parametrize("task", ["drawer-open-v3", "door-open-v3", "button-press-topdown-v3", "push-v3"])
def test_a_scene_s_fixtures_are_where_they_were(task):
    """Of an environment that is used again: fixtures lie in the model, which a simulator's state doesn't hold."""
    from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv

    env = PinnedEnv(
        gym.vector.SyncVectorEnv([lambda: MetaworldLightEnv(task, camera_period=1000)]),
        "metaworld_light",
        task,
        100_000,
    )
    models = []
    for number in (0, 1, 2, 0):
        env.reset(seed=[100_000 + number])
        models.append(model_fields(env.envs[0]._env.model))
        for _ in range(5):
            env.step(np.ones((1, 4), np.float32))
    env.close()
    first, other, _, again = models
    assert len(first) > 100 and [name for name in first if not np.array_equal(first[name], again[name])] == []
    assert [name for name in first if not np.array_equal(first[name], other[name])]  # scenes differ in it


class FilmEnv(gym.Env):
    """Meta-World's observation, from a list of frames; the hand moves 5 cm a step."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 80}
    observation_space = gym.spaces.Dict(
        pixels=gym.spaces.Box(0, 255, (32, 32, 3), np.uint8), agent_pos=gym.spaces.Box(-9, 9, (4,), np.float64)
    )
    action_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    render_mode = "rgb_array"

    def __init__(self, frames, n_steps):
        self.frames, self.n_steps = frames, n_steps

    def observe(self):
        frame = self.frames[min(self.steps, len(self.frames) - 1)]
        return {"pixels": frame, "agent_pos": np.full(4, 0.05 * self.steps)}

    def reset(self, seed=None, options=None):
        self.steps = 0
        return self.observe(), {}

    def step(self, action):
        self.steps += 1
        return self.observe(), 0.0, self.steps >= self.n_steps, False, {}

    def render(self):
        return self.observe()["pixels"]


def film(n, last=None):
    frames = list(np.random.default_rng(0).integers(0, 255, (n, 32, 32, 3), dtype=np.uint8))
    return frames if last is None else [*frames, last]


def run(frames, n_running=6, env_type="metaworld"):
    """Five steps of two environments, the first of which ends after two."""
    makers = [lambda: FilmEnv(film(9), 2), lambda: FilmEnv(frames, n_running)]
    env = PinnedEnv(gym.vector.SyncVectorEnv(makers), env_type, "push-v3", start_seed=0)
    env.filmed[:] = True
    env.reset(seed=[0, 1])
    for _ in range(5):
        env.step(np.zeros((2, 4), dtype=np.float32))
    return env


def test_a_camera_that_fails_stops_the_run():
    good = run(film(9))
    assert [len(frames) for frames in good.films] == [3, 6]  # the first observation, and until done
    np.testing.assert_array_equal(good.films[1], film(9)[:6])
    with pytest.raises(BlankFrameError, match="task push-v3, step 4"):
        run(film(4, np.zeros((32, 32, 3), np.uint8)))
    with pytest.raises(FrozenFrameError, match="task push-v3"):
        run(film(3))
    run(film(4), n_running=3)  # an episode that has ended may stand still
    run(film(3), env_type="metaworld_light")  # which guards its own frames


def test_the_hash_is_of_everything_that_is_shown():
    observation = {"pixels": {"a": np.zeros((2, 4, 4, 3), np.uint8)}, "agent_pos": np.zeros((2, 4))}
    base = observation_hash(observation, 0)
    assert observation_hash(observation, 1) == base
    observation["pixels"]["a"][1, 3, 3, 2] = 1
    observation["agent_pos"][0, 3] = 1e-12
    assert len({base, observation_hash(observation, 0), observation_hash(observation, 1)}) == 3
