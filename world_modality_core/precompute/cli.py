"""`wm-precompute`: the command.

wm-precompute --dataset.repo_id=lerobot/pusht --encoder.family=dinov2 --tokens.n_codes=1024
"""

from __future__ import annotations

import sys

from world_modality_core.io.commands import run_command
from world_modality_core.precompute.precompute_options import PrecomputeConfig


def work(cfg: PrecomputeConfig) -> None:
    """Write what the options ask for, as one of the processes that `accelerate launch` may have started."""
    from accelerate import PartialState

    from world_modality_core.precompute.steps import precompute

    precompute(cfg)
    PartialState().destroy_process_group()


def main() -> int:
    """Console script `wm-precompute`."""
    return run_command("wm-precompute", PrecomputeConfig, work)


if __name__ == "__main__":
    sys.exit(main())
