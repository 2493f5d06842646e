"""What a deployment may meet in the middle of an episode, in Meta-World: each decided by the scene's seed alone."""

from __future__ import annotations

from collections import deque
from typing import Any

import mujoco
import numpy as np

from world_modality_core.io.errors import ConfigError

# Steps of 1/80 s.
SLIP_STEPS = 20
DELAY_STEPS = 8
ENTRY_STEPS = 16
# Metres, metres per second, degrees, factors.
MOVED_BY_M = (0.06, 0.10)
PUSHED_AT_M_S = (0.6, 1.0)
CAMERA_BY_M, CAMERA_BY_DEG = 0.04, 4.0
DARKER = (0.35, 0.5)
SLOWER = (0.3, 0.5)
DISTRACTOR_M = 0.035

OF_OBJECT = ("move_object", "push_object")


class Disturber:
    """Disturbs one simulation from a step on, and puts everything back for the next episode.

    Args:
        kind: One of `Disturbance`; "" for none.
        at: Step before which it happens.
        env: Meta-World's own environment.
        camera_name: The camera that is rendered.

    Raises:
        ConfigError: if the task has no free object to move.
    """

    def __init__(self, kind: str, at: int, env: Any, camera_name: str):
        self.kind, self.at, self._env = kind, at, env
        model = env.model
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        if kind in OF_OBJECT and not len(free):
            raise ConfigError(
                f"env.disturbance={kind!r}: this task has no object that lies free; choose another of either"
            )
        self._joint = int(free[0]) if len(free) else None
        self._camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, camera_name)
        headlight = model.vis.headlight
        # (where, what it was) of all that may be changed in the model; physics reads nothing of it.
        self._changed = [
            (part, part.copy())
            for part in (
                model.cam_pos, model.cam_quat, model.light_diffuse, model.light_ambient, headlight.diffuse,
                headlight.ambient,
            )
        ]  # fmt: skip

    def start(self, seed: int | None) -> None:
        """Begin an episode: everything as it was, and the draws of this scene."""
        for part, value in self._changed:
            part[:] = value
        self._env.mujoco_renderer.show_ball(None)
        self._rng = np.random.default_rng(None if seed is None else [seed, sum(map(ord, self.kind))])
        self._angle, self._size = self._rng.uniform(0, 2 * np.pi), self._rng.uniform()
        self._late: deque[np.ndarray] = deque()

    def before_step(self, step: int, action: np.ndarray) -> np.ndarray:
        """Do what is due before a step; returns the action that is executed in place of the policy's."""
        since = step - self.at
        if not self.kind or since < 0:
            return action
        if self.kind == "gripper_slips" and since < SLIP_STEPS:
            return np.append(action[:3], -1.0).astype(action.dtype)
        if self.kind == "actions_delayed":
            self._late.append(action)
            return self._late.popleft() if len(self._late) > DELAY_STEPS else np.zeros_like(action)
        if self.kind == "actions_scaled":
            return np.append(action[:3] * self._between(SLOWER), action[3]).astype(action.dtype)
        if self.kind == "distractor_enters":
            self._show_distractor(min(1.0, since / ENTRY_STEPS))
        elif since == 0:
            self._once()
        return action

    def _once(self) -> None:
        model, data = self._env.model, self._env.data
        direction = np.array([np.cos(self._angle), np.sin(self._angle), 0.0])
        if self.kind == "move_object":
            place, speed = model.jnt_qposadr[self._joint], model.jnt_dofadr[self._joint]
            data.qpos[place : place + 3] += direction * self._between(MOVED_BY_M)
            data.qvel[speed : speed + 6] = 0.0
            mujoco.mj_forward(model, data)
        elif self.kind == "push_object":
            speed = model.jnt_dofadr[self._joint]
            data.qvel[speed : speed + 3] += direction * self._between(PUSHED_AT_M_S)
        elif self.kind == "light_changes":
            for part, _ in self._changed[2:]:
                part *= self._between(DARKER)
        elif self.kind == "camera_moves":
            model.cam_pos[self._camera] += np.append(direction[:2], 0.0) * CAMERA_BY_M
            turn, turned = np.zeros(4), np.zeros(4)
            mujoco.mju_axisAngle2Quat(turn, direction, np.deg2rad(CAMERA_BY_DEG))
            mujoco.mju_mulQuat(turned, turn, model.cam_quat[self._camera])
            model.cam_quat[self._camera] = turned

    def _show_distractor(self, share: float) -> None:
        """A ball that rolls in from the side and stays; it is drawn, and touches nothing."""
        side = 1.0 if self._angle < np.pi else -1.0
        target = np.array([side * (0.1 + 0.1 * self._size), 0.45 + 0.3 * self._size, DISTRACTOR_M])
        start = target + np.array([side * 0.5, 0.0, 0.0])
        self._env.mujoco_renderer.show_ball(start + share * (target - start), DISTRACTOR_M)

    def _between(self, bounds: tuple[float, float]) -> float:
        return bounds[0] + self._size * (bounds[1] - bounds[0])
