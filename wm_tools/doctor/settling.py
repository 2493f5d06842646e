"""Which objects of a scene move by themselves: the simulation runs for a while without actions.

`python -m wm_tools.doctor.settling SUITE` does so with each scene of a LIBERO suite, and prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Callable

import numpy as np

N_SETTLING_STEPS = 10
"""LeRobot's, of 1/20 s: what comes to rest in them does so before a policy sees the scene. Objects start up to 16 cm
above what they stand on."""
N_STEPS = 50
N_INIT_STATES = 3
"""The first ones of a task's 50."""
MAX_MOVE_M = 0.01
"""With MuJoCo 3.3.7 the objects of the 40 scenes moved by 2 mm at most; where 3.8.1 flings some into the air, by 17 to
54 cm."""


def farthest(
    positions: Callable[[], dict[str, np.ndarray]], step: Callable[[], None], n_steps: int
) -> dict[str, float]:
    """How far each object gets from where it is, while the simulation runs on.

    Args:
        positions: Gives the objects' positions now, each (3,) in metres.
        step: Lets the simulation go on by one step.
        n_steps: How often.

    Returns:
        Metres, by object. An object whose position is no longer finite is infinitely far.
    """
    start = positions()
    most = dict.fromkeys(start, 0.0)
    for _ in range(n_steps):
        step()
        for name, now in positions().items():
            metres = float(np.linalg.norm(now - start[name]))
            most[name] = max(most[name], metres if np.isfinite(metres) else float("inf"))
    return most


def settle_suite(suite_name: str, n_init_states: int = N_INIT_STATES) -> dict[str, dict[str, float]]:
    """What doesn't stay where it is in the scenes of a LIBERO suite. Nothing is rendered.

    Args:
        suite_name: Such as "libero_spatial".
        n_init_states: How many of each task's initial states.

    Returns:
        By "number name" of each task: {"moved_m": {object: metres, at most over the initial states}, "unseated":
        {"bowl on ramekin": initial states}}, the second being what the task says is so at its start and LIBERO's own
        test then denies.
    """
    from lerobot.envs.libero import _get_suite, get_libero_dummy_action, get_libero_path, get_task_init_states
    from libero.libero.envs.env_wrapper import ControlEnv

    suite, found = _get_suite(suite_name), {}
    for number, task in enumerate(suite.tasks):
        file = os.path.join(get_libero_path("bddl_files"), task.problem_folder, task.bddl_file)
        env = ControlEnv(file, use_camera_obs=False, has_offscreen_renderer=False)
        env.reset()

        def step(env=env) -> None:
            env.step(get_libero_dummy_action())

        def positions(scene=env.env) -> dict[str, np.ndarray]:
            return {name: np.array(scene.sim.data.body_xpos[body]) for name, body in scene.obj_body_id.items()}

        moved, unseated = dict.fromkeys(positions(), 0.0), Counter()
        for state in get_task_init_states(suite, number)[:n_init_states]:
            env.set_init_state(state)
            for _ in range(N_SETTLING_STEPS):
                step()
            for name, metres in farthest(positions, step, N_STEPS).items():
                moved[name] = max(moved[name], metres)
            # Not of regions: whether an object is within one depends on more than whether it stays.
            pairs = [p for p in env.env.parsed_problem["initial_state"] if len(p) == 3 and {p[1], p[2]} <= set(moved)]
            unseated.update(f"{p[1]} {p[0]} {p[2]}" for p in pairs if not env.env._eval_predicate(p))
        found[f"{number} {task.name}"] = {"moved_m": moved, "unseated": unseated}
        env.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suite")
    print("RESULT", json.dumps(settle_suite(parser.parse_args().suite)))


if __name__ == "__main__":
    main()
