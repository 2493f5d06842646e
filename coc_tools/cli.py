"""`coc-label`: read the options and start.

coc-label --dataset.repo_id=lerobot/pusht --labels=outputs/coc/pusht.jsonl --endpoint.model=Qwen/Qwen3-VL-8B-Instruct
"""

from __future__ import annotations

import sys

from coc_tools.config import LabelConfig
from world_modality_core.io.commands import INTERRUPTED, run_command


def work(cfg: LabelConfig) -> int:
    """Label; the exit status says whether it came to its end."""
    from coc_tools.labelling import label  # LeRobot and torch: not before the options are read

    stopped = label(cfg).stopped
    return 0 if not stopped else INTERRUPTED if stopped == "interrupted" else 1


def main() -> int:
    """Console script `coc-label`."""
    return run_command("coc-label", LabelConfig, work)


if __name__ == "__main__":
    sys.exit(main())
