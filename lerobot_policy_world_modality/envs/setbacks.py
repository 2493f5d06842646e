"""When a Meta-World episode went wrong, as far as the simulation knows: the object was dropped, or is out of reach."""

from __future__ import annotations

from typing import Any

import mujoco
import numpy as np

# Steps of 1/80 s without contact after which it is lost (0.2 s, as in coc_tools.sim_trace).
LOST_STEPS = 16
# Rise from which an object is lifted.
LIFT_M = 0.03


class SetbackWatch:
    """Remembers of each step whether the gripper touches the free object, and where that is.

    Args:
        env: Meta-World's own environment.
    """

    def __init__(self, env: Any):
        self._env, model = env, env.model
        free = np.flatnonzero(model.jnt_type == mujoco.mjtJoint.mjJNT_FREE)
        self._body = int(model.jnt_bodyid[free[0]]) if len(free) else None
        root = model.body_rootid[model.geom_bodyid]
        self._is_object = root == self._body
        self._is_robot = root == model.body_rootid[model.body("hand").id]
        self.start()

    def start(self) -> None:
        """Begin an episode."""
        self._touched: list[bool] = []
        self._places: list[np.ndarray] = []

    def after_step(self) -> None:
        """Look at what a step led to."""
        if self._body is None:
            return
        data = self._env.data
        pairs = data.contact.geom[data.contact.dist < 0]
        one, other = pairs[:, 0], pairs[:, 1]
        of_both = (self._is_robot[one] & self._is_object[other]) | (self._is_object[one] & self._is_robot[other])
        self._touched.append(bool(of_both.any()))
        self._places.append(data.xpos[self._body].copy())

    def found(self) -> tuple[int, str] | None:
        """Step of the episode's setback, and which; None where it had none.

        `out_of_reach`: from then on the object lay outside the space that the hand can reach. `dropped` and
        `contact_lost`: the gripper never touched it again; lifted at that moment, or not. What came first counts.
        """
        if not self._touched:
            return None
        places, steps = np.array(self._places), len(self._touched)
        low, high = self._env.mocap_low[:2], self._env.mocap_high[:2]
        is_out = ((places[:, :2] < low) | (places[:, :2] > high)).any(axis=1)
        found = []
        if is_out[-1]:
            found.append((_last(~is_out) + 2, "out_of_reach"))
        last = _last(np.array(self._touched))
        if 0 <= last < steps - LOST_STEPS:
            is_lifted = places[last, 2] - places[0, 2] > LIFT_M
            found.append((last + 2, "dropped" if is_lifted else "contact_lost"))
        return min(found) if found else None


def _last(mask: np.ndarray) -> int:
    """Place of the last True; -1 without one."""
    where = np.flatnonzero(mask)
    return int(where[-1]) if len(where) else -1
