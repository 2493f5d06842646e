"""`wm-doctor --env=libero` names the objects that move although nobody acts."""

import re

import numpy as np
import pytest

from wm_tools.doctor.libero_checks import settling_row
from wm_tools.doctor.settling import MAX_MOVE_M, N_STEPS, farthest

mujoco = pytest.importorskip("mujoco")

# Equal boxes on a table 40 cm high: one in its middle; one with its centre beyond the edge, which falls; and one that
# starts inside the table, so that it is thrown up and comes down where it was.
SCENE = """
<mujoco><worldbody>
  <geom type="plane" size="2 2 .1"/>
  <geom type="box" pos="0 0 .2" size=".3 .3 .2"/>
  <body name="plate" pos="0 0 .45"><freejoint/><geom type="box" size=".05 .05 .05"/></body>
  <body name="bowl" pos=".32 0 .45"><freejoint/><geom type="box" size=".05 .05 .05"/></body>
  <body name="bottle" pos="0 .2 .42"><freejoint/><geom type="box" size=".05 .05 .05" solref="-20000 -1"/></body>
</worldbody></mujoco>
"""
NAMES = ["plate", "bowl", "bottle"]


@pytest.fixture(scope="module")
def moved():
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return farthest(
        lambda: {name: data.body(name).xpos.copy() for name in NAMES},
        lambda: mujoco.mj_step(model, data, 25),  # LIBERO's control steps are 1/20 s
        N_STEPS,
    )


def test_what_falls_or_is_thrown_is_told_from_what_rests(moved):
    assert moved["plate"] < MAX_MOVE_M and moved["bowl"] > 0.3 and moved["bottle"] > 0.05


def test_a_simulation_that_explodes_counts_as_moved():
    positions = iter([{"bowl": np.zeros(3)}, {"bowl": np.full(3, np.nan)}])
    assert farthest(lambda: next(positions), lambda: None, 1) == {"bowl": float("inf")}


def test_the_row_names_object_task_and_remedy(moved):
    still = {"4 on_the_table": {"moved_m": {"plate": 0.9 * MAX_MOVE_M}, "unseated": {}}}
    slid = {"moved_m": {"bowl": 0.002}, "unseated": {"bowl on ramekin": 3}}
    found = {**still, "5 on_the_ramekin": slid, "6 on_the_edge": {"moved_m": moved, "unseated": {}}}
    row = settling_row("libero_spatial", found, "3.8.1")
    assert row.status == "FAIL" and "MuJoCo 3.8.1" in row.found and "[libero]" in row.remedy
    assert "task 5 on_the_ramekin: bowl on ramekin no longer" in row.found and "plate" not in row.found
    assert re.search(r"task 6 on_the_edge: bowl moves by \d+ cm, bottle moves by \d+ cm$", row.found)
    row = settling_row("libero_spatial", still, "3.3.7")
    assert (row.status, row.remedy) == ("ok", "") and "1 scenes keep still with MuJoCo 3.3.7" in row.found
