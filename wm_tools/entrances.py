"""Console scripts of the plugin, whose import takes ten seconds: what needs no LeRobot is answered before it."""

from __future__ import annotations

from world_modality_core.io.commands import answer_early

PLUGIN = "lerobot_policy_world_modality"
# What must be given.
EVAL = {
    "policy.path": "the checkpoint to evaluate with --policy.path=FOLDER",
    "env.type": "the simulator, for instance --env.type=metaworld_light --env.task=push-v3",
}
INTERVENE = {"policy.path": "the checkpoint to examine", "output_dir": "the folder of the record"}
RECORD = {
    "tasks": "tasks to record, for instance --tasks=push-v3",
    "output.repo_id": "the dataset, for instance --output.repo_id=me/metaworld",
}


def wm_eval() -> int:
    """Console script `wm-eval`."""
    answer_early("wm-eval", f"{PLUGIN}.evaluation.configuration", "WorldEvalConfig", EVAL)
    from lerobot_policy_world_modality.evaluation.cli import main

    return main()


def wm_intervene() -> int:
    """Console script `wm-intervene`."""
    answer_early("wm-intervene", f"{PLUGIN}.intervention.cli", "InterveneConfig", INTERVENE)
    from lerobot_policy_world_modality.intervention.cli import main

    return main()


def wm_record() -> int:
    """Console script `wm-record`."""
    answer_early("wm-record", f"{PLUGIN}.record.record_options", "RecordConfig", RECORD)
    from lerobot_policy_world_modality.record.cli import main

    return main()
