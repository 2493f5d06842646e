"""`wm-doctor --env=libero`: what LIBERO lacks here, and the command that mends it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from lerobot_policy_world_modality.envs.libero_setup import REMEDY, needs, set_up
from wm_tools.doctor.rows import Row, extra
from world_modality_core.io.errors import ConfigError

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


def check_libero() -> list[Row]:
    """LIBERO's package, config file and assets; with all of them, a reset and an action without network or terminal."""
    rows = []
    for need in needs():
        remedy = extra("libero") if need.name == "package" else REMEDY
        if need.is_met:
            found = f"hf-libero {metadata.version('hf-libero')}" if need.name == "package" else need.found
            rows.append(Row(f"libero {need.name}", "ok", found))
        else:
            rows.append(Row(f"libero {need.name}", "FAIL", need.found, remedy))
    if all(row.status == "ok" for row in rows):
        rows.append(_reset())
    return rows


def fix_libero(assets: Path | None) -> list[Row]:
    """Mend what can be mended."""
    try:
        done = set_up(assets)
    except ConfigError as error:
        return [Row("fix", "FAIL", "not mended", str(error))]
    return [Row("fix", "ok", sentence) for sentence in done or ["nothing was missing"]]


def _reset() -> Row:
    environment = {"MUJOCO_GL": "egl", **os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", _RESET]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    result = [line.split() for line in done.stdout.splitlines() if line.startswith("RESULT")]
    if done.returncode or not result:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return Row(
            "libero reset", "FAIL", lines[-1], "see the row `renderer`; `pip check` finds packages that don't fit"
        )
    _, contrast, seconds = result[0]
    if int(contrast) < MIN_CONTRAST:
        return Row(
            "libero reset", "FAIL", "the frame is blank", f"try MUJOCO_GL=osmesa, now {environment['MUJOCO_GL']}"
        )
    return Row("libero reset", "ok", f"{seconds} s from the start of a process to the first action's frame")
