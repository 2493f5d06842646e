"""Two wm-precompute processes that share one device encode what one does."""

from __future__ import annotations

import numpy as np

from gpu_parts.commands import Commands, make_data
from gpu_parts.figures import Run
from world_modality_core.latents.companion import open_companion

PART = "processes"


def measure(run: Run) -> None:
    commands = Commands(run, PART)
    source, one = make_data(run)
    two = run.folder / "two"
    fine = commands(
        "wm-precompute, two processes on one device", "world_modality_core.precompute.cli", f"--dataset.root={source}",
        "--dataset.repo_id=bench/source", "--encoder.family=efficientnet_lite0", "--encoder.height_px=64",
        "--encoder.width_px=64", "--batch_size=8", f"--output.root={two}", f"--device={run.device}",
        launcher=commands.launcher(2),
    )  # fmt: skip
    if fine:
        rows = [np.array(open_companion("x", str(root)).table.latents) for root in (one, two)]
        run.figure("latents of two processes equal those of one", bool(np.array_equal(*rows)), equals=True, part=PART)
