"""Console scripts of the plugin, whose import takes ten seconds: what needs no LeRobot is answered before it."""

from __future__ import annotations

import sys

from world_modality_core.io.commands import command_errors
from world_modality_core.io.first_look import look_first


def _look(command: str) -> None:
    with command_errors(command):
        look_first(sys.argv[1:])


def wm_eval() -> int:
    """Console script `wm-eval`."""
    _look("wm-eval")
    from lerobot_policy_world_modality.evaluation.cli import main

    return main()


def wm_intervene() -> int:
    """Console script `wm-intervene`."""
    _look("wm-intervene")
    from lerobot_policy_world_modality.intervention.cli import main

    return main()
