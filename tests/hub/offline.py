"""What the reader of reader.py can still load when HF_HUB_OFFLINE is set; see test_hub.py."""

from __future__ import annotations

from pathlib import Path

from coc_tools.label_lines import iter_lines
from tests.conftest import TinyCompanion
from tests.hub.machine import command, refusal
from tests.hub.reader import LABELS, companion, policies
from wm_tools.push import cli as wm_push
from world_modality_core.latents.companion import open_companion
from world_modality_core.studies.evidence.checkpoint import checkpoint_folder


def main(tiny: list[str], shared: str) -> dict:
    tiny = TinyCompanion(tiny[0], Path(tiny[1]), Path(tiny[2]))
    return {
        "differences": policies(tiny, Path(shared), ["world_F"]),
        "companion": companion(tiny, "me/source_world"),
        "labels": len(list(iter_lines(LABELS))),
        "checkpoint": str(checkpoint_folder("me/acting")),
        "refused": {
            "companion": refusal(open_companion, "me/source_world_private"),
            "checkpoint": refusal(checkpoint_folder, "me/never"),
            "labels": refusal(list, iter_lines("hf://datasets/me/never/labels.jsonl")),
            "push": command(wm_push.main, f"{shared}/acting", "--repo_id=me/refused")["error"],
        },
    }
