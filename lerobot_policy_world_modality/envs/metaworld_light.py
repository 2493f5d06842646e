"""Meta-World with small, cheap, guarded images: LeRobot's environment with another renderer and a faster start.

Same task, same seed, same actions: the states, rewards and successes are those of `--env.type=metaworld`, bit for bit.
What differs is the picture (size, no shadows, reflections or multisampling), the time that building takes (no benchmark
of 50 resets), truncation at `episode_length`, and that a finished episode is left as it ended until somebody resets it.
"""

from __future__ import annotations

import difflib
import warnings
import zlib
from multiprocessing import forkserver
from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from lerobot.envs import metaworld as stock
from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS, MetaworldEnv
from lerobot.envs.utils import _LazyAsyncVectorEnv, freeze_after_episode_end
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

from world_modality_core.io.errors import ConfigError

from .disturbances import Disturber
from .frame_guard import FrameGuard
from .light_renderer import LightRenderer
from .memory_tasks import MEMORY_TASKS, Touches
from .setbacks import SetbackWatch

# Stock gives push-v3 and push-back-v3 one instruction, so that the text alone doesn't say which is meant.
INSTRUCTIONS = stock.TASK_DESCRIPTIONS | {"push-back-v3": "Pull the puck back to a goal"}
INSTRUCTIONS |= {name: task.instruction for name, task in MEMORY_TASKS.items()}
SUITES = DIFFICULTY_TO_TASKS | {"memory": [*MEMORY_TASKS]}


class MetaworldLightEnv(MetaworldEnv):
    """One Meta-World task as LeRobot sees it, with a `LightRenderer` and a `FrameGuard`.

    Args:
        task: for instance `push-v3`.
        episode_length: steps until `truncated`; also `_max_episode_steps`, which `lerobot-eval` reads.
        observation_height, observation_width, camera_name, obs_type, camera_period, hide_goal_after, hold_still_for,
            hide_robot, disturbance, disturb_at: as in `MetaworldLightEnvConfig`.

    Raises:
        ConfigError: when it is built, if the goal is to be hidden and the task's model has no goal marker.
    """

    def __init__(
        self,
        task: str,
        episode_length: int = 500,
        obs_type: str = "pixels_agent_pos",
        camera_name: str = "corner2",
        observation_height: int = 128,
        observation_width: int = 128,
        camera_period: int = 1,
        hide_goal_after: int = 0,
        hold_still_for: int = 0,
        hide_robot: bool = False,
        disturbance: str = "",
        disturb_at: int = 40,
    ):
        super().__init__(
            task=task,
            camera_name=camera_name,
            obs_type=obs_type,
            observation_height=observation_height,
            observation_width=observation_width,
        )
        self.task_description = INSTRUCTIONS[self.task]
        self._max_episode_steps = episode_length
        # Where the robot isn't drawn, pictures of it moving may be the same.
        self._guard = FrameGuard(self.task, min_motion_m=float("inf") if hide_robot else None)
        self._model_task = self.task
        self._raw_obs: np.ndarray | None = None
        self._is_stepping = False
        self._camera_period, self._hide_goal_after = camera_period, hide_goal_after
        self._hold_still_for, self._hide_robot = hold_still_for, hide_robot
        self._goal_markers: list[int] = []
        self._disturbance, self._disturb_at = disturbance, disturb_at

    def build(self) -> None:
        """Build the simulation now, and not at the first reset: what can't be built is known then."""
        self._ensure_env()

    def _ensure_env(self) -> None:
        """Build the simulation on first use, in the process that will run it (as stock does, without its benchmark).

        Stock builds `MT1`, which makes another environment and resets it 50 times, for one number that the first
        seeded reset overwrites. All 50 tasks were compared: states equal bit for bit, 0.02 s instead of 0.6 s.
        """
        if self._env is not None:
            return
        build = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{self._model_task}-goal-observable"]
        env = build(seed=0, render_mode="rgb_array")  # with a seed it leaves numpy's global generator alone
        env.np_random = np.random.default_rng()  # unseeded resets differ between environments, as stock's do
        env._freeze_rand_vec = False
        env.seeded_rand_vec = True
        env.max_path_length = self._max_episode_steps
        if self.camera_name == "corner2":
            env.model.cam_pos[2] = [0.75, 0.075, 0.7]  # stock LeRobot's view
        env.mujoco_renderer = LightRenderer(
            env.model, env.data, self.observation_height, self.observation_width, self.camera_name
        )
        markers = [i for i in range(env.model.nsite) if "goal" in env.model.site(i).name]
        if self._hide_goal_after and not markers:
            raise ConfigError(
                f"env.hide_goal_after={self._hide_goal_after}: {self.task} has no goal marker; use 0, or another task"
            )
        if self._hide_robot:
            hide_robot(env.model)
        self._goal_markers = markers
        self._disturber = Disturber(self._disturbance, self._disturb_at, env, self.camera_name)
        self._setbacks = SetbackWatch(env)
        self._goal_opacity = env.model.site_rgba[markers, 3].copy()
        self._env = env

    def _picture_is_due(self) -> bool:
        """Show or hide the goal marker, and tell whether the camera takes a picture at this step."""
        step = self._env.curr_path_length
        if self._hide_goal_after:
            is_hidden = step >= self._hide_goal_after
            self._env.model.site_rgba[self._goal_markers, 3] = 0.0 if is_hidden else self._goal_opacity
        return step % self._camera_period == 0

    def reset(self, seed: int | None = None, **kwargs) -> tuple[dict, dict[str, Any]]:
        """Start an episode. Nothing but the seed decides its scene, however many episodes came before."""
        if self._is_stepping:
            # Stock resets inside step() as soon as a task succeeds. The vector environment resets anyway, and here the
            # scene stays: render() shows the episode that ended, and a recording may go on after success.
            return {}, {}
        self._ensure_env()
        self._env.mujoco_renderer.forget()
        self._guard.start_episode()
        self._disturber.start(seed)
        self._setbacks.start()
        return super().reset(seed=seed, **kwargs)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        """One step of 1/80 s, as stock; `truncated` at `episode_length`.

        Raises:
            BlankFrameError, FrozenFrameError: the renderer stopped working.
        """
        self._ensure_env()
        if self._env.curr_path_length < self._hold_still_for:
            action = np.zeros_like(action)
        action = self._disturber.before_step(self._env.curr_path_length, action)
        self._is_stepping = True
        try:
            return super().step(action)
        finally:
            self._is_stepping = False
            self._setbacks.after_step()

    def setback(self) -> tuple[int, str] | None:
        """When the episode went wrong, and how, as far as the simulation knows (`SetbackWatch.found`)."""
        return self._setbacks.found()

    def _format_raw_obs(self, raw_obs: np.ndarray) -> dict[str, np.ndarray]:
        # Called once the simulation has moved on (or was reset), with the picture of the step before still in hand.
        is_due = self._picture_is_due()
        if is_due:
            self._env.mujoco_renderer.forget()
        if self._env.curr_path_length == 0:
            # A reset moves the goal after positions were last computed: stock draws the marker of push, reach,
            # pick-place, ... where an earlier scene had it. Positions only; the physics reads nothing of this.
            mujoco.mj_kinematics(self._env.model, self._env.data)
        observation = super()._format_raw_obs(raw_obs)
        if is_due:
            self._guard.check(observation["pixels"], position=raw_obs[:3], step=self._env.curr_path_length)
        self._raw_obs = raw_obs
        return observation

    def expert_action(self) -> np.ndarray:
        """What Meta-World's scripted expert would do now, (4,) float32 clipped to [-1, 1] as the simulator clips it."""
        if self._raw_obs is None:
            raise RuntimeError(f"task {self.task}: reset() the environment before asking for the expert's action")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Constant(s) may be too high": its raw output exceeds 1 by design
            action = self.expert_policy.get_action(self._raw_obs)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    def close(self) -> None:
        super().close()
        self._env = None


class MemoryTaskEnv(MetaworldLightEnv):
    """A task of the suite `memory`: Meta-World's `reach-v3`, and what a cue asks to touch (`memory_tasks`).

    `reset(options={"answer": (2,)})` sets the answer that the seed would draw.

    Args:
        task: Such as `recall-order`.
        kwargs: As for `MetaworldLightEnv`.
    """

    def __init__(self, task: str, **kwargs: Any):
        super().__init__("reach-v3", **kwargs)
        self.task, self.task_description = task, INSTRUCTIONS[task]
        self._guard = FrameGuard(task)
        self._memory_task = MEMORY_TASKS[task]
        # Until there is a picture without the cue: a slow camera goes on showing the last one.
        n_pictures = -(-self._memory_task.cue_steps // self._camera_period)
        self._hold_still_for = max(self._hold_still_for, n_pictures * self._camera_period)

    def reset(self, seed: int | None = None, **kwargs) -> tuple[dict, dict[str, Any]]:
        if not self._is_stepping:
            rng = np.random.default_rng(None if seed is None else [seed, zlib.crc32(self.task.encode())])
            places, answer = self._memory_task.draw(rng)
            answer = (kwargs.get("options") or {}).get("answer", answer)
            self._touches = Touches(self._memory_task, places, answer)
        return super().reset(seed=seed, **kwargs)

    def step(self, action: np.ndarray) -> tuple[dict, float, bool, bool, dict[str, Any]]:
        """As `MetaworldLightEnv.step`; success is the task's own, and the reward 1 at success."""
        observation, _, _, truncated, info = super().step(action)
        if self._env.curr_path_length > self._memory_task.cue_steps:
            self._touches.note(self._raw_obs[:3])
        is_success = self._touches.has_succeeded
        info = {key: value for key, value in info.items() if key != "final_info"} | {"is_success": is_success}
        if is_success:
            info["final_info"] = {"task": self.task, "done": True, "is_success": True}
        return observation, float(is_success), is_success, truncated, info

    def _picture_is_due(self) -> bool:
        is_due = super()._picture_is_due()
        self._env.model.site_rgba[self._goal_markers, 3] = 0.0  # reach-v3's own goal means nothing here
        step = self._env.curr_path_length
        self._env.mujoco_renderer.marks = self._memory_task.marks(self._touches.places, self._touches.answer, step)
        return is_due

    def expert_action(self) -> np.ndarray:
        seen = self._raw_obs
        self._raw_obs = np.concatenate([seen[:-3], self._touches.aim()])
        try:
            return super().expert_action()
        finally:
            self._raw_obs = seen


def hide_robot(model: mujoco.MjModel) -> None:
    """Draw the robot no more; physics reads nothing of colours."""
    roots = {model.body(name).id for name in ("base", "mocap")}
    for bodies, colours in ((model.geom_bodyid, model.geom_rgba), (model.site_bodyid, model.site_rgba)):
        colours[np.isin(model.body_rootid[bodies], list(roots)), 3] = 0.0


def make_light_env(task: str, **kwargs: Any) -> MetaworldLightEnv:
    """The environment of a Meta-World task or of one of the suite `memory`; arguments of `MetaworldLightEnv`."""
    return (MemoryTaskEnv if task in MEMORY_TASKS else MetaworldLightEnv)(task, **kwargs)


def resolve_tasks(task: str, option: str = "env.task") -> dict[str, list[str]]:
    """Read an option that names tasks and difficulty tiers, comma-separated.

    Returns:
        {group: [task, ...]}, a group being a tier or a single task, in the order given (LeRobot's grouping).

    Raises:
        ConfigError: nothing was named, something twice, or something that does not exist (close matches are named).
    """
    names = [name.strip().removeprefix("metaworld-") for name in task.split(",") if name.strip()]
    if not names:
        raise ConfigError(f"{option}={task!r}: name at least one Meta-World task or difficulty tier")
    groups = {}
    for name in names:
        if name not in SUITES and name not in INSTRUCTIONS:
            known = [*INSTRUCTIONS, *SUITES]
            close = difflib.get_close_matches(name, known, n=4, cutoff=0.4)
            hint = f"did you mean {', '.join(close)}?" if close else f"known: {', '.join(sorted(known))}"
            raise ConfigError(f"{option}={task!r}: {name!r} is not a Meta-World task or difficulty tier; {hint}")
        if name in groups:
            raise ConfigError(f"{option}={task!r} names {name} twice")
        groups[name] = list(SUITES.get(name, [name]))
    return groups


def create_metaworld_light_envs(
    task: str, n_envs: int, gym_kwargs: dict[str, Any], use_async_envs: bool = False
) -> dict[str, dict[int, Any]]:
    """Vector environments in the shape and grouping of LeRobot's `create_metaworld_envs`.

    An environment whose episode has ended repeats its last observation, without simulating or rendering, until a reset
    that carries LeRobot's `NEW_ROLLOUT_OPTION` (as `lerobot-eval` sends); stock does so only when asynchronous.

    Args:
        task: as in `MetaworldLightEnvConfig`.
        n_envs: environments per task; one is always synchronous, as in LeRobot.
        gym_kwargs: of `MetaworldLightEnv`, without the task.
        use_async_envs: one process per environment, started when first used.

    Returns:
        {group: {task_id: vector env}}.
    """
    if use_async_envs and n_envs > 1:
        # One import of LeRobot and MuJoCo for all processes, while the caller goes on.
        forkserver.set_forkserver_preload([__name__])
        forkserver.ensure_running()
    envs: dict[str, dict[int, Any]] = {}
    spaces = (None, None, None)
    for group, tasks in resolve_tasks(task).items():
        envs[group] = {}
        for task_id, name in enumerate(tasks):
            makers = [lambda name=name: make_light_env(name, **gym_kwargs) for _ in range(n_envs)]
            if use_async_envs and n_envs > 1:
                vector = _LazyAsyncVectorEnv(makers, *spaces)
                spaces = (vector.observation_space, vector.action_space, vector.metadata)
            else:
                vector = gym.vector.SyncVectorEnv([freeze_after_episode_end(make) for make in makers])
            envs[group][task_id] = vector
    return envs
