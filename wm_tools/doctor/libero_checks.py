"""`wm-doctor --env=libero`: what LIBERO lacks here, how to get it, and which scenes don't stay still."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from lerobot_policy_world_modality.envs.libero_setup import REMEDY, needs, set_up
from wm_tools.doctor.rows import Row
from wm_tools.doctor.settling import MAX_MOVE_M
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.home import how_to_install

# As lerobot-eval does it, up to the first action; prints the contrast of the frame and the seconds since the start.
_RESET = """
import time
start = time.perf_counter()
import numpy as np
from lerobot.envs.libero import LiberoEnv, _get_suite
size = {"observation_width": 64, "observation_height": 64}
env = LiberoEnv(_get_suite("libero_object"), 0, "libero_object", obs_type="pixels_agent_pos", **size)
env.reset(seed=0)
observation = env.step(np.zeros(7, dtype=np.float32))[0]
print("RESULT", int(np.ptp(observation["pixels"]["image"])), f"{time.perf_counter() - start:.0f}")
"""
MIN_CONTRAST = 8
SUITES = ["libero_spatial", "libero_object", "libero_goal", "libero_10"]


def check_libero() -> list[Row]:
    """LIBERO's package, config file and assets; with all of them, a reset and an action without network or terminal."""
    rows = []
    for need in needs():
        remedy = how_to_install("libero") if need.name == "package" else REMEDY
        if need.is_met:
            found = f"hf-libero {metadata.version('hf-libero')}" if need.name == "package" else need.found
            rows.append(Row(f"libero {need.name}", "ok", found))
        else:
            rows.append(Row(f"libero {need.name}", "FAIL", need.found, remedy))
    if all(row.status == "ok" for row in rows):
        rows.append(_reset())
    if rows[-1].status == "ok":
        rows += [_settle(suite) for suite in SUITES]
    return rows


def fix_libero(assets: Path | None) -> list[Row]:
    """Write or fetch what LIBERO lacks."""
    try:
        done = set_up(assets)
    except ConfigError as error:
        return [Row("fix", "FAIL", "LIBERO still lacks something", str(error))]
    return [Row("fix", "ok", sentence) for sentence in done or ["nothing was missing"]]


def _run(*arguments: str) -> tuple[str, str]:
    """Run Python without terminal and network: what it printed after "RESULT", or else its last words of error."""
    environment = {"MUJOCO_GL": "egl", **os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    result = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not result:
        return "", (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
    return result[0], ""


def _reset() -> Row:
    result, error = _run("-c", _RESET)
    if error:
        remedy = "see the row `renderer`; `pip check` finds packages that don't fit"
        return Row("libero reset", "FAIL", error, remedy)
    contrast, seconds = result.split()
    if int(contrast) < MIN_CONTRAST:
        remedy = f"try MUJOCO_GL=osmesa, now {os.environ.get('MUJOCO_GL', 'egl')}"
        return Row("libero reset", "FAIL", "the frame is blank", remedy)
    return Row("libero reset", "ok", f"{seconds} s from the start of a process to the first action's frame")


def _settle(suite: str) -> Row:
    result, error = _run("-m", "wm_tools.doctor.settling", suite)
    if error:
        return Row(f"scenes of {suite}", "FAIL", error, "`pip check` finds packages that don't fit")
    return settling_row(suite, json.loads(result), metadata.version("mujoco"))


def settling_row(suite: str, found: dict[str, dict], mujoco: str) -> Row:
    """Name the objects that don't stay where they are.

    Args:
        suite: Such as "libero_spatial".
        found: From `settle_suite`.
        mujoco: MuJoCo's version.
    """
    loose = []
    for task, scenes in found.items():
        far = {name: metres for name, metres in scenes["moved_m"].items() if metres > MAX_MOVE_M}
        named = [f"{relation} no longer" for relation in scenes["unseated"]]
        named += [f"{name} moves by {metres * 100:.0f} cm" for name, metres in far.items()]
        loose += [f"task {task}: {', '.join(named)}"] * bool(named)
    if loose:
        found_text = f"with MuJoCo {mujoco} objects move by themselves: {'; '.join(loose)}"
        remedy = f"{how_to_install('libero')}, which brings a MuJoCo before 3.4: with those the scenes keep still"
        return Row(f"scenes of {suite}", "FAIL", found_text, remedy)
    return Row(f"scenes of {suite}", "ok", f"{len(found)} scenes keep still with MuJoCo {mujoco}")
