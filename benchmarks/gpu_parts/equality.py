"""What must be equal on the device: the tests of the policy types, run there, and the arithmetic of latents."""

from __future__ import annotations

import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import torch

from gpu_parts.figures import Run
from gpu_parts.precompute import make_weights
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec

PART = "equality"
HERE = Path(__file__).parents[2]
FILES = ("test_policies", "test_smolvla_world", "test_qwen_policy")
# What the issue of equality on a GPU is made of, by the names of the tests that hold it.
TOPICS = {
    "at closed gates loss, gradients and actions are the plain policy's (torch.equal)": (
        "at_gate_zero", "at_closed_gates", "no_memory_does_harm", "under_autocast"),
    "live frames give the actions of recorded latents": ("live_frames_give", "live_plans_are_recorded"),
    "no action depends on the future, no sample on another": (
        "no_action_depends", "no_sample_touches", "windows_are_the_table_s", "latents_on_the_device"),
    "micro-batches and checkpointing give the batch's gradient": ("micro_batches", "gradient_checkpointing"),
    "saved and loaded it acts the same; draws repeat": ("saved_and_loaded", "draws_depend"),
}  # fmt: skip


def measure(run: Run) -> None:
    arithmetic(run)
    report = run.folder / "tests.xml"
    files = FILES if run.is_real else FILES[:1]
    wanted = [] if run.is_real else ["-k", "at_gate_zero or no_action_depends"]
    command = [
        sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", "-n",
        str(min(8, len(os.sched_getaffinity(0)))) if run.is_real else "0",
        *(f"tests/plugin/{name}.py" for name in files), *wanted,
    ]  # fmt: skip
    environment = os.environ | {"WM_TEST_DEVICE": run.device, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    subprocess.run(command, cwd=HERE, env=environment, check=False)
    cases = {}
    for case in ET.parse(report).iter("testcase"):
        bad = case.find("failure") if case.find("failure") is not None else case.find("error")
        if case.find("skipped") is None:
            cases[case.get("name")] = None if bad is None else (bad.get("message") or "").splitlines()[0][:200]
    for topic, words in TOPICS.items():
        of_topic = {name: bad for name, bad in cases.items() if any(word in name for word in words)}
        failed = {name: bad for name, bad in of_topic.items() if bad is not None}
        if of_topic:
            run.figure(topic, len(failed), f"of {len(of_topic)} tests failed", equals=0, failed=failed, part=PART)
    failed = {name: bad for name, bad in cases.items() if bad is not None}
    run.figure("all tests of the policy types", len(failed), f"of {len(cases)} tests failed", equals=0, failed=failed,
               part=PART)  # fmt: skip


def arithmetic(run: Run) -> None:
    """How far DINOv2's latents move by batch size, TF32 around them, and bf16; relative to their spread."""
    px, size = (224, "B") if run.is_real else (28, "tiny")
    weights = make_weights(run, "dinov2", size)
    frames = torch.rand(16, 1, 3, px, px, generator=torch.Generator().manual_seed(0))
    frames = (255 * frames).round().to(torch.uint8).to(run.device)

    def latents(dtype: str, batch: int) -> torch.Tensor:
        spec = EncoderSpec("dinov2", weights, cameras=["c"], height_px=px, width_px=px, dtype=dtype)
        encoder = make_world_encoder(spec, device=run.device)
        return torch.cat([encoder.encode({"c": part}) for part in frames.split(batch)]).float()

    exact = latents("float32", 16)
    spread = exact.std().item()

    def off(other: torch.Tensor) -> float:
        return (other - exact).abs().max().item() / spread

    run.figure("latents one frame at a time, as live, against batches of 16: largest difference over their spread",
               off(latents("float32", 1)), most=1e-3, part=PART)  # fmt: skip
    stored = (latents("float32", 1).half() == exact.half()).float().mean().item()
    run.figure("share of their float16 values, as stored, that are equal", stored, part=PART)
    if run.device.startswith("cuda"):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        same = torch.equal(latents("float32", 16), exact)
        run.figure("latents with TF32 switched on around them are equal", same, equals=True, part=PART)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    run.figure("latents in bfloat16: largest difference over their spread", off(latents("bfloat16", 16)), part=PART)
