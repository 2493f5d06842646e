"""`wm-monitor attach`: a policy's checkpoint with a monitor among its processors, so that LeRobot's programs run it.

Written as data: the class that LeRobot will build is named, not imported.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import move_durably, read_json, write_text, writing
from world_modality_core.monitor.saved_monitor import Monitor

STEP = "lerobot_policy_world_modality.live_monitor.monitor_step.MonitorStep"
PREPROCESSOR = "policy_preprocessor.json"
STATE_FILE = "policy_preprocessor_world_monitor.safetensors"


def attach(given: argparse.Namespace) -> Path:
    """Copy a checkpoint and put a monitor before its other processors.

    Returns:
        The copy.

    Raises:
        ConfigError: naming option and remedy.
    """
    source, target = Path(given.policy), Path(given.output_dir).resolve()
    if not (source / PREPROCESSOR).is_file():
        raise ConfigError(
            f"policy={given.policy!r} has no {PREPROCESSOR}; name a folder `checkpoints/last/pretrained_model`"
        )
    if target.exists():
        raise ConfigError(f"output_dir={given.output_dir!r} exists; name a new folder")
    monitor = Monitor.load(given.monitor)
    config = read_json(source / PREPROCESSOR, dict)
    steps = [step for step in config["steps"] if step.get("class") != STEP]
    step = {
        "class": STEP,
        "config": {"description": asdict(monitor.description), "reaction": given.reaction, "clock": given.clock},
        "state_file": STATE_FILE,
    }
    aside = target.with_name(f"{target.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    shutil.copytree(source, aside, ignore=shutil.ignore_patterns(STATE_FILE))
    with writing(aside / STATE_FILE) as file:
        save_file({name: value.contiguous() for name, value in monitor.state_dict().items()}, file)
    write_text(aside / PREPROCESSOR, json.dumps(config | {"steps": [step, *steps]}, indent=2) + "\n")
    move_durably(aside, target)
    use = shlex.quote(f"--policy.path={target}")
    print(f"{target}: at an alarm it will {given.reaction}\n  lerobot-rollout {use} ...")
    return target
