"""qwen_world_fplus at Qwen3-VL-2B's shape: E2 (memory and alignment) over E0 (none), step, latency and memory."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from bench_qwen import ACTION, CAMERA, LATENT, STATE, TEXT_2B, VISION_2B, build
from random_latents import random_companion

from gpu_parts.figures import Run
from gpu_parts.timing import autocast, milliseconds, peak_gib, percentile, waits
from wm_tools.doctor.qwen_backbone import make_qwen

PART = "qwen_world_fplus"


def make_backbone(run: Run) -> Path:
    """A folder with the shape of Qwen3-VL-2B-Instruct and a small tokenizer; weights are drawn when it is built."""
    sizes = {"d": 2048, "n_layers": 28, "n_heads": 16, "d_vision": 1024, "n_vision_layers": 24, "patch_px": 16,
             "vocab_size": TEXT_2B["vocab_size"]} if run.is_real else {}  # fmt: skip
    folder = make_qwen(run.folder / "vlm", save_weights=False, **sizes)
    if run.is_real:
        path = folder / "config.json"
        config = json.loads(path.read_text())
        for name, exact in (("text_config", TEXT_2B), ("vision_config", VISION_2B)):
            config[name] |= exact
        path.write_text(json.dumps(config))
    return folder


def measure(run: Run) -> None:
    vlm = make_backbone(run)
    companion = random_companion(run.folder, 50, 100, LATENT)
    b, device, repeats = (8 if run.is_real else 2), run.device, (20 if run.is_real else 2)
    torch.manual_seed(0)
    batch = {
        CAMERA: torch.rand(b, 3, 256, 256, device=device), "task": ["push the puck"] * b,
        "observation.state": torch.randn(b, STATE, device=device),
        "index": (torch.arange(b) * 131 + 20).to(device), "action": torch.randn(b, 8, ACTION, device=device),
    }  # fmt: skip
    say = {"part": PART, "batch_size": b}
    steps, plans = {}, {}
    # One at a time: two with gradients and AdamW's moments don't fit 80 GB. E0 again at the end shows the drift.
    for name in ("E0", "E2", "E0 again"):
        steps[name], plans[name] = one_policy(run, name, vlm, companion, batch, repeats, say)
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
    for what, taken, most in (("training step", steps, 1.02), ("chunk latency", plans, 1.05)):
        base = np.median(taken["E0"] + taken["E0 again"])
        drift = float(np.median(taken["E0 again"]) / np.median(taken["E0"]))
        run.figure(
            f"E2 over E0: {what}", [value / base for value in taken["E2"]], most=most, e0_again_over_e0=drift, **say
        )


def one_policy(run: Run, name: str, vlm: Path, companion, batch: dict, repeats: int, say: dict) -> tuple[list, list]:
    """Milliseconds of training steps and of plans."""
    args = SimpleNamespace(device=run.device)
    policy, optimizer = build(args, vlm, companion, has_world=name == "E2")
    if name == "E0":
        n = sum(p.numel() for p in policy.backbone.parameters())
        run.figure("qwen_world_fplus: parameters of the backbone", n, **say)

    def forward_backward() -> torch.Tensor:
        with autocast(run.device):
            loss, _ = policy.forward(dict(batch))
        loss.backward()
        policy.update()
        return loss

    def step() -> None:
        loss = forward_backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    for _ in range(3):
        step()
    steps = [milliseconds(step, run.device) for _ in range(repeats)]
    run.figure(f"qwen_world_fplus {name}: training step", steps, "ms", **say)
    if run.device.startswith("cuda"):
        run.figure(f"qwen_world_fplus {name}: peak of a training step", peak_gib(step), "GiB", **say)
        run.figure(
            f"qwen_world_fplus {name}: waits for the device, forward and backward", waits(forward_backward), **say
        )
    optimizer.zero_grad(set_to_none=True)
    policy.eval()
    one = {key: value[:1] for key, value in batch.items() if key != "action"}
    with torch.no_grad(), autocast(run.device):
        for _ in range(3):
            policy.plan_recorded(dict(one))
        plans = [milliseconds(lambda: policy.plan_recorded(dict(one)), run.device) for _ in range(3 * repeats)]
    run.figure(f"qwen_world_fplus {name}: chunk latency", plans, "ms", p99=round(percentile(plans, 0.99), 2), **say)
    return steps, plans
