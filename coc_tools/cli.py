"""`coc-label`: read the options and start.

coc-label --dataset.repo_id=lerobot/pusht --labels=outputs/coc/pusht.jsonl --endpoint.model=Qwen/Qwen3-VL-8B-Instruct
"""

from __future__ import annotations

import sys

import draccus
from draccus.utils import ParsingError

from coc_tools.config import LabelConfig
from world_modality_core.io.commands import command_errors


def main() -> None:
    """Console script `coc-label`."""
    flags = {f"--{name}" for name, f in LabelConfig.__dataclass_fields__.items() if f.type in (bool, "bool")}
    # draccus wants --dry_run=true; a bare --dry_run means the same.
    given = sys.argv[1:]
    given = [
        f"{arg}=true" if arg in flags and after.startswith("--") else arg
        for arg, after in zip(given, [*given[1:], "--"], strict=False)
    ]
    with command_errors("coc-label", ParsingError):
        cfg = draccus.parse(LabelConfig, args=given)
        from coc_tools.labelling import label  # LeRobot and torch: not before the options are read

        summary = label(cfg)
    if summary.stopped:
        sys.exit(130 if summary.stopped == "interrupted" else 1)


if __name__ == "__main__":
    main()
