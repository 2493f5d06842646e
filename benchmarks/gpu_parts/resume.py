"""lerobot-train of world_F: a run of 20 steps, and one that goes on from its 10th."""

from __future__ import annotations

from gpu_parts.commands import Commands, go_on, make_data, train
from gpu_parts.figures import Run


def measure(run: Run) -> None:
    commands = Commands(run, "resume")
    source, companion = make_data(run)
    whole, resumed = run.folder / "whole", run.folder / "resumed"
    options = ["--policy.type=world_F", f"--policy.companion.root={companion}", "--policy.dropout=0.0",
               "--policy.d_model=64"]  # fmt: skip
    if train(commands, "lerobot-train world_F", source, whole, *options):
        go_on(commands, "lerobot-train world_F, resumed", whole, resumed)
