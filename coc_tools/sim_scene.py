"""Meta-World without pictures: an episode played again from its seed and actions, and what its physics did.

Needs the package `metaworld` (extra `metaworld`). No OpenGL context is made: a step costs 0.3 ms.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE

from coc_tools.sim_words import words_of

LEFT, RIGHT, HAND = "left finger", "right finger", "hand"
GRIPPER = (LEFT, RIGHT, HAND)
HINGE_RADIUS_M = 0.1
"""Turns one radian of a hinge into metres of travel: doors, faucets, dials and levers are 5 to 25 cm long."""
MIN_FORCE_N = 0.1
"""Normal force from which two things touch; MuJoCo also lists pairs that are only near."""
_KINDS = {
    int(mujoco.mjtJoint.mjJNT_FREE): "free",
    int(mujoco.mjtJoint.mjJNT_SLIDE): "slide",
    int(mujoco.mjtJoint.mjJNT_HINGE): "hinge",
}


@dataclass
class SceneTrace:
    """What the simulator knew at each moment of an episode of n frames: n + 1 moments, the last one after the end.

    Moment i is what frame i shows, before action i.

    Attributes:
        tcp: (n + 1, 3) m, the point between the fingertips.
        opening: (n + 1,) distance of the fingers, 1 is 0.1 m.
        is_closing: (n + 1,) bool, whether the action at that moment closes the fingers; the last one repeats.
        is_success: (n + 1,) Meta-World's own criterion, as of the action that led here; False at the start.
        objects: words of the things that can move, in the model's order.
        position: object -> (n + 1, 3) m, its centre of mass.
        joint: object -> what holds it: nothing ("free": it can be lifted), a "slide" or a "hinge".
        travel: object -> (n + 1,) m, how far its joints moved since the moment before (a hinge: on a circle of 0.1 m).
        pinched: object -> (n + 1,) bool, whether the fingers press on it from both sides.
        touches: (thing, thing) in sorted order -> (n + 1,) bool, whether they press on each other. The parts of the
            gripper are `LEFT`, `RIGHT` and `HAND`; what can't move has its word too ("table", "wall").
    """

    tcp: np.ndarray
    opening: np.ndarray
    is_closing: np.ndarray
    is_success: np.ndarray
    objects: list[str]
    position: dict[str, np.ndarray]
    joint: dict[str, Literal["free", "slide", "hinge"]]
    travel: dict[str, np.ndarray]
    pinched: dict[str, np.ndarray]
    touches: dict[tuple[str, str], np.ndarray]

    def touching(self, one: str, other: str) -> np.ndarray:
        """(n + 1,) bool."""
        pair = (one, other) if one <= other else (other, one)
        return self.touches.get(pair, np.zeros(len(self.opening), bool))

    def touched(self, thing: str) -> np.ndarray:
        """(n + 1,) bool: whether any part of the gripper touches it."""
        return np.any([self.touching(part, thing) for part in GRIPPER], axis=0)


class Scene:
    """One Meta-World task's physics. Building takes about 50 ms; an episode starts with `reset`."""

    def __init__(self, task: str):
        build = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"]
        self.task = task
        self.env = build(seed=0)  # with a seed it leaves numpy's global generator alone
        # As LeRobot sets it up, so that the seed of an episode decides its scene.
        self.env._freeze_rand_vec = False
        self.env.seeded_rand_vec = True
        self._names = _geom_names(self.env.model, task)
        self._joints = _object_joints(self.env.model, task)

    def reset(self, seed: int) -> np.ndarray:
        """Start the episode of a seed: (39,) observation."""
        self.env.seed(seed)
        observation, _ = self.env.reset(seed=seed)
        return observation

    def play(self, seed: int, actions: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, SceneTrace]:
        """Execute an episode's actions.

        Args:
            seed: of the scene.
            actions: n times (4,), as executed; may be a generator that looks at `self.observation`.

        Returns:
            States (n + 1, 4) as LeRobot's `observation.state` (hand x, y, z, opening), rewards (n,), and the trace.
        """
        self.observation = self.reset(seed)
        moments = [self._moment(False)]
        states, rewards, closing = [self.observation[:4]], [], []
        for action in actions:
            self.observation, reward, _, _, info = self.env.step(action)
            moments.append(self._moment(bool(info["success"])))
            states.append(self.observation[:4])
            rewards.append(reward)
            closing.append(bool(action[-1] > 0))
        return np.array(states), np.array(rewards), self._trace(moments, closing)

    def _moment(self, success: bool) -> dict:
        data = self.env.data
        touches, pushes = set(), {}
        closing = data.body("leftpad").xpos - data.body("rightpad").xpos
        closing = closing / np.linalg.norm(closing)
        force = np.zeros(6)
        for i in range(data.ncon):
            one, other = (self._names[geom] for geom in data.contact.geom[i])
            if one == other:
                continue
            mujoco.mj_contactForce(self.env.model, data, i, force)
            if force[0] < MIN_FORCE_N:
                continue
            touches.add(tuple(sorted((one, other))))
            along = closing @ data.contact.frame[i][:3]  # the normal points from the first geom to the second
            if one in (LEFT, RIGHT):
                pushes.setdefault(other, {})[one] = along
            if other in (LEFT, RIGHT):
                pushes.setdefault(one, {})[other] = -along
        return {
            "tcp": self.env.tcp_center.copy(),
            "opening": self.observation[3],
            "success": success,
            "qpos": data.qpos.copy(),
            "position": {name: data.xipos[bodies].mean(axis=0) for name, (bodies, _) in self._joints.items()},
            "touches": touches,
            "pinched": {thing for thing, by in pushes.items() if by.get(LEFT, 0) < -0.5 and by.get(RIGHT, 0) > 0.5},
        }

    def _trace(self, moments: list[dict], closing: list[bool]) -> SceneTrace:
        qpos = np.stack([m["qpos"] for m in moments])
        return SceneTrace(
            tcp=np.stack([m["tcp"] for m in moments]),
            opening=np.array([m["opening"] for m in moments]),
            is_closing=np.array([*closing, closing[-1]]),
            is_success=np.array([m["success"] for m in moments]),
            objects=list(self._joints),
            position={name: np.stack([m["position"][name] for m in moments]) for name in self._joints},
            joint={name: _KINDS[self.env.model.jnt_type[joints[0]]] for name, (_, joints) in self._joints.items()},
            travel={name: self._travel(qpos, joints) for name, (_, joints) in self._joints.items()},
            pinched={name: np.array([name in m["pinched"] for m in moments]) for name in self._joints},
            touches={
                pair: np.array([pair in m["touches"] for m in moments])
                for pair in sorted(set().union(*(m["touches"] for m in moments)))
            },
        )

    def _travel(self, qpos: np.ndarray, joints: list[int]) -> np.ndarray:
        model, squares = self.env.model, np.zeros(len(qpos))
        for joint in joints:
            start = model.jnt_qposadr[joint]
            kind = _KINDS[model.jnt_type[joint]]
            width = 3 if kind == "free" else 1  # of a free joint the position, not the turning
            scale = HINGE_RADIUS_M if kind == "hinge" else 1.0
            step = np.diff(qpos[:, start : start + width], axis=0, prepend=qpos[:1, start : start + width])
            squares += scale**2 * (step**2).sum(axis=1)
        return np.sqrt(squares)


def _ancestors(model: mujoco.MjModel, body: int) -> list[int]:
    """The body and those that carry it, without the world."""
    chain = []
    while body != 0:
        chain.append(body)
        body = model.body_parentid[body]
    return chain


def _is_robot(model: mujoco.MjModel, body: int) -> bool:
    return any(model.body(b).name in ("base", "hand", "mocap") for b in _ancestors(model, body))


def _name(model: mujoco.MjModel, body: int, task: str) -> str:
    """The task's word for a body: all that moves with a joint is one thing, named like its carriers if need be."""
    chain = _ancestors(model, body)
    jointed = [i for i, b in enumerate(chain) if model.body_jntnum[b] > 0]
    names = [model.body(b).name for b in chain[jointed[0] if jointed else 0 :]]
    words = words_of(task).bodies
    known = [words[name] for name in names if name in words]
    named = [name for name in names if name]
    return known[0] if known else (named[0].replace("_", " ") if named else "table")


def _geom_names(model: mujoco.MjModel, task: str) -> list[str]:
    parts = {"leftclaw": LEFT, "leftpad": LEFT, "rightclaw": RIGHT, "rightpad": RIGHT}
    names = []
    for body in model.geom_bodyid:
        if _is_robot(model, body):
            names.append(parts.get(model.body(body).name, HAND))
        else:
            names.append(_name(model, body, task))
    return names


def _object_joints(model: mujoco.MjModel, task: str) -> dict[str, tuple[list[int], list[int]]]:
    """Object -> (its bodies that have joints, the joints)."""
    found: dict[str, tuple[list[int], list[int]]] = {}
    for joint in range(model.njnt):
        body = int(model.jnt_bodyid[joint])
        if not _is_robot(model, body):
            bodies, joints = found.setdefault(_name(model, body, task), ([], []))
            bodies.append(body)
            joints.append(joint)
    return found
