"""Who opens a checkpoint of somebody else's by its name on the Hub; see tests/security/test_checkpoints.py."""

from __future__ import annotations

from lerobot_policy_world_modality.evaluation import cli as wm_eval
from lerobot_policy_world_modality.intervention import cli as wm_intervene
from tests.hub.machine import command


def main(path: str, revision: str) -> dict:
    named = [f"--policy.path={path}", f"--policy.pretrained_revision={revision}"]
    return {
        "wm-eval": command(wm_eval.main, *named, "--train_seed=0", "--env.type=metaworld_light", "--seed=1")["error"],
        "wm-intervene": command(wm_intervene.main, *named, "--output_dir=record")["error"],
    }
