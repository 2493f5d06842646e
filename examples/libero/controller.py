"""A scripted pick-and-place expert for LIBERO: a small state machine over the simulator's own object poses.

LIBERO comes with human demonstrations (on the Hub) and no scripted experts. This one needs neither: it reads where the
objects are, which no policy may, and answers with the 7 numbers that a policy gives: deltas of robosuite's OSC_POSE
controller, and the gripper. It turns nothing: objects are taken from above, with the gripper as it hangs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

# One unit of an OSC_POSE action moves the goal of the hand by 5 cm (robosuite's `output_max`).
METRES_PER_UNIT = 0.05
OPEN, CLOSE = -1.0, 1.0
STAGES = ("hover", "descend", "close", "lift", "carry", "lower", "open")
GRASP_M = 0.02  # of the fingertips over the object's origin; holds boxes and bottles of libero_object
HOVER_M = 0.12  # over the place of the grasp
CARRY_M = 0.27  # over the target's origin: what hangs in the gripper clears the basket's rim
DROP_M = 0.22
N_CLOSING = 8  # steps until the fingers hold


class PickAndPlace:
    """Take one object from above and let it fall into another.

    Args:
        env: robosuite's environment, reset.
        thing: What to take, by its name in the task's BDDL file, for instance `milk_1`.
        target: Where to drop it.
    """

    def __init__(self, env: Any, thing: str, target: str):
        self._env, self._thing, self._target = env, thing, target
        self._stage, self._n_in_stage = STAGES[0], 0
        self._grasp_z = self._position(thing)[2] + GRASP_M
        self._carry_z, self._drop_z = (self._position(target)[2] + height for height in (CARRY_M, DROP_M))

    def act(self) -> np.ndarray:
        """(7,) float32 in [-1, 1]: what to do in the state that the simulator is in now."""
        hand = np.array(self._env.sim.data.site_xpos[self._env.robots[0].eef_site_id])
        thing, target = self._position(self._thing), self._position(self._target)
        over_target = target + hand - thing  # what hangs in the gripper must be over it, not the gripper
        goal = {
            "hover": [*thing[:2], self._grasp_z + HOVER_M],
            "descend": [*thing[:2], self._grasp_z],
            "close": hand,
            "lift": [*hand[:2], self._carry_z],
            "carry": [*over_target[:2], self._carry_z],
            "lower": [*over_target[:2], self._drop_z],
            "open": hand,
        }[self._stage] - hand
        action = np.zeros(7, dtype=np.float32)
        action[:3] = np.clip(goal / METRES_PER_UNIT, -1.0, 1.0)
        action[6] = CLOSE if self._stage in ("close", "lift", "carry", "lower") else OPEN
        self._advance(goal)
        return action

    def _advance(self, goal: np.ndarray) -> None:
        """Go to the next stage if the hand is near the goal (3,) of this one, which is seen from the hand."""
        self._n_in_stage += 1
        aside, height = np.linalg.norm(goal[:2]), abs(goal[2])
        is_done = {
            "hover": aside < 0.012 and height < 0.03,
            "descend": height < 0.01,
            "close": self._n_in_stage >= N_CLOSING,
            "lift": height < 0.03,
            "carry": aside < 0.015,
            "lower": height < 0.015,
            "open": False,
        }[self._stage]
        if is_done:
            self._stage, self._n_in_stage = STAGES[STAGES.index(self._stage) + 1], 0

    def _position(self, name: str) -> np.ndarray:
        """(3,) of an object's origin in metres."""
        return np.array(self._env.sim.data.body_xpos[self._env.obj_body_id[name]])
