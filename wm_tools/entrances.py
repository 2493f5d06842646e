"""Console scripts of the plugin, whose import takes ten seconds: what needs no LeRobot is answered before it."""

from __future__ import annotations

from world_modality_core.io.commands import answer_early

PLUGIN = "lerobot_policy_world_modality"


def wm_eval() -> int:
    """Console script `wm-eval`."""
    answer_early("wm-eval", f"{PLUGIN}.evaluation.configuration", "WorldEvalConfig")
    from lerobot_policy_world_modality.evaluation.cli import main

    return main()


def wm_intervene() -> int:
    """Console script `wm-intervene`."""
    answer_early("wm-intervene", f"{PLUGIN}.intervention.cli", "InterveneConfig")
    from lerobot_policy_world_modality.intervention.cli import main

    return main()


def wm_record() -> int:
    """Console script `wm-record`."""
    answer_early("wm-record", f"{PLUGIN}.record.record_options", "RecordConfig")
    from lerobot_policy_world_modality.record.cli import main

    return main()
