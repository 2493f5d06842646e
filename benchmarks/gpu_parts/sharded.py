"""FSDP with one process, as docs/qwen_world_fplus.md says for full fine-tuning: train, save, go on."""

from __future__ import annotations

from gpu_parts.commands import Commands, go_on, make_data, train
from gpu_parts.figures import Run
from wm_tools.doctor.qwen_backbone import make_qwen


def measure(run: Run) -> None:
    if not run.device.startswith("cuda"):
        return
    commands = Commands(run, "sharded")
    source, companion = make_data(run)
    fsdp = commands.launcher(1, "--use_fsdp", "--fsdp_auto_wrap_policy=TRANSFORMER_BASED_WRAP")
    options = [
        "--policy.type=qwen_world_fplus", f"--policy.companion.root={companion}",
        f"--policy.vlm_backbone={make_qwen(run.folder / 'qwen')}", "--policy.train_backbone=full",
        "--policy.chunk_size=4", "--policy.n_action_steps=2", "--policy.max_pixels=1024", "--policy.prophet.d_model=32",
        "--policy.head.d_model=32",
    ]  # fmt: skip
    whole, resumed = run.folder / "fsdp", run.folder / "fsdp_resumed"
    if train(commands, "lerobot-train qwen_world_fplus, FSDP", source, whole, *options, launcher=fsdp, steps=6):
        go_on(commands, "lerobot-train qwen_world_fplus, FSDP, resumed", whole, resumed, launcher=fsdp, steps=6)
