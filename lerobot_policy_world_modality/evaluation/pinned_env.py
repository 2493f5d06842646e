"""A vector environment whose scenes are pinned, and which watches the episodes that are run in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from lerobot_policy_world_modality.envs.frame_guard import FrameGuard
from lerobot_policy_world_modality.evaluation.tasks import LIBERO

# Tasks of stock Meta-World whose first picture depends on the episode before: push-v3 draws its goal marker at a height
# that it takes from the object's last position. Of all 50 tasks it is the only one; `metaworld_light` mends it itself.
REMEMBERING = {("metaworld", "push-v3")}

# Environments of MuJoCo whose frames nobody else guards; `metaworld_light` guards its own.
GUARDED = ("metaworld", *LIBERO)


class PinnedEnv:
    """What LeRobot's `rollout` is given in place of a vector environment; everything else is passed on to that.

    A scene is its seed. LIBERO goes by an initial state besides, which moves on by itself with every reset, one by
    autoreset included: it is set before each reset, to the number of the scene.

    Args:
        env: LeRobot's vector environment; used again for each batch.
        env_type: Type of its config.
        task: Its task, for messages.
        start_seed: Seed of scene number 0.
    """

    def __init__(self, env: gym.vector.VectorEnv, env_type: str, task: str, start_seed: int):
        self._env, self._start_seed, self._task = env, start_seed, task
        self._is_libero = env_type in LIBERO
        self._is_guarded = env_type in GUARDED
        self._remembers = (env_type, task) in REMEMBERING
        # Which of the b episodes to film.
        self.filmed = np.zeros(env.num_envs, dtype=bool)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._env, name)

    def reset(self, *, seed: list[int], options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the scenes of `seed`.

        Afterwards `init_hashes` holds the hash of each first observation (b strings), `films` the frames (b lists), and
        `last_action` (b, a) what was executed last.
        """
        if self._is_libero:
            self._pin_init_states([number - self._start_seed for number in seed])
        if self._remembers:
            self._env.reset(seed=seed, options=options)  # now the episode before is this scene's own beginning
        observation, info = self._env.reset(seed=seed, options=options)
        self.init_hashes = [observation_hash(observation, i) for i in range(self.num_envs)]
        self.films: list[list[np.ndarray]] = [[] for _ in range(self.num_envs)]
        self._is_running = np.ones(self.num_envs, dtype=bool)
        self._guards: dict[tuple[int, str], FrameGuard] = {}
        self._step = 0
        self.last_action: np.ndarray | None = None
        self._watch(observation)
        return observation, info

    def step(self, actions: np.ndarray) -> tuple[Any, ...]:
        """Step, and look at the frames of the episodes that still run."""
        observation, reward, terminated, truncated, info = self._env.step(actions)
        self.last_action = actions
        self._step += 1
        self._watch(observation)
        self._is_running &= ~(terminated | truncated)
        return observation, reward, terminated, truncated, info

    def _pin_init_states(self, numbers: list[int]) -> None:
        env = self._env
        if not isinstance(env, gym.vector.VectorEnv):  # LeRobot's lazy one starts its processes on first use
            env._ensure()
            env = env._env
        env.set_attr("init_state_id", numbers)

    def _watch(self, observation: dict[str, Any]) -> None:
        if self._is_guarded:
            self._guard(observation)
        if not (self.filmed & self._is_running).any():
            return
        frames = None if isinstance(self._env, gym.vector.SyncVectorEnv) else self._env.call("render")
        for i in np.flatnonzero(self.filmed & self._is_running):
            self.films[i].append(np.array(self._env.envs[i].render() if frames is None else frames[i]))

    def _guard(self, observation: dict[str, Any]) -> None:
        pixels = observation["pixels"]
        cameras = pixels if isinstance(pixels, dict) else {"": pixels}
        positions = _hand_positions(observation)
        for camera, frames in cameras.items():
            for i in np.flatnonzero(self._is_running):
                name = f"{self._task}, camera {camera}" if camera else self._task
                guard = self._guards.setdefault((i, camera), FrameGuard(name))
                guard.check(frames[i], np.zeros(3) if positions is None else positions[i], self._step)


def observation_hash(observation: dict[str, Any], i: int) -> str:
    """Hash of all that environment `i` of a batch shows: names, types, shapes and bytes of images and states."""
    digest = hashlib.sha256()
    for name, values in _leaves(observation):
        value = np.ascontiguousarray(values[i])
        digest.update(f"{name} {value.dtype} {value.shape} ".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()[:16]


def _leaves(observation: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name in sorted(observation):
        value = observation[name]
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


def _hand_positions(observation: dict[str, Any]) -> np.ndarray | None:
    """(b, 3) in metres, None where the observation has only images."""
    if "agent_pos" in observation:  # Meta-World
        return observation["agent_pos"][:, :3]
    if "robot_state" in observation:  # LIBERO
        return observation["robot_state"]["eef"]["pos"]
    return None
