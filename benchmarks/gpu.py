"""All that a GPU is needed to find out, in one command, the most telling first, a record after each figure.

    python benchmarks/gpu.py --minutes=25                            # any machine with CUDA
    python benchmarks/gpu.py --device=cpu --size=tiny --minutes=5    # that the command works

Parts, in this order or that of --parts, each in a process of its own so that one that fails or runs out of memory costs
only itself:

    equality          closed gates change nothing, cached = live latents, causality, micro-batches; TF32 and bf16
    training          world_F's step over world_A's, and steps a second
    smolvla_world     at 450M, bf16: training step, chunk latency, memory, waits for the device, F1 to F3b
    past              the same with 16 past frames in the memory: training step, chunk latency
    qwen_world_fplus  at 2B, bf16: training step, latency, memory
    precompute        DINOv2-B/L and V-JEPA 2 L at real shapes: batch size found by itself, rate over the bare
                      encoder's, how busy the GPU is
    processes         the real commands: two wm-precompute processes on one GPU
    sharded           lerobot-train of qwen_world_fplus with FSDP, its checkpoint, resumed
    resume            lerobot-train of world_F, resumed
    compilation       torch.compile: graphs made anew, and smolvla_world's step over smolvla's, both compiled

Weights are random and data is made here, so that nothing need be fetched. The figures go to --output, one JSON line
each; a run that finds lines of the same commit there goes on after them. gpu_wheels.py carries what a machine without
a network lacks.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "tests")]
PARTS = (
    "equality", "training", "smolvla_world", "past", "qwen_world_fplus", "precompute", "processes", "sharded", "resume",
    "compilation",
)  # fmt: skip


def run_part(args: argparse.Namespace) -> None:
    """Measure one part, in this process."""
    from gpu_parts.figures import Run

    with tempfile.TemporaryDirectory() as folder:
        run = Run(args.device, args.size, args.output, Path(folder), args.minutes * 60)
        importlib.import_module(f"gpu_parts.{args.part}").measure(run)


def machine(device: str, commit: str) -> dict:
    """Card, commit and versions."""
    import torch
    from provenance import provenance

    found = provenance()
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(device)
        found["machine"] |= {
            "gpu": properties.name,
            "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
            "cuda": torch.version.cuda,
        }
    if commit:
        found["commit"] = commit
    return found | {"cores": len(os.sched_getaffinity(0))}


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--minutes", type=float, default=25, help="stop after so many (default: 25)")
    cli.add_argument("--device", default="cuda")
    cli.add_argument("--size", choices=["real", "tiny"], default="real")
    cli.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    cli.add_argument(
        "--output", type=Path, default=Path("build/gpu.jsonl"), help="the record (default: build/gpu.jsonl)"
    )
    cli.add_argument("--commit", default="", help="of this code, where it was carried without its .git")
    cli.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.part:
        run_part(args)
        return
    if args.device.startswith("cuda"):
        import torch

        if not torch.cuda.is_available():
            sys.exit(
                f"--device={args.device}: torch sees no CUDA device here; --device=cpu --size=tiny tries the command"
            )
    end = time.monotonic() + 60 * args.minutes
    args.output.parent.mkdir(parents=True, exist_ok=True)
    here = machine(args.device, args.commit)
    earlier = lines_of(args.output)
    if any("machine" in line and line["commit"] != here["commit"] for line in earlier):
        sys.exit(f"--output={args.output} holds figures of another commit: move it away, or name another file")
    with args.output.open("a") as file:
        file.write(json.dumps(here) + "\n")
    done = {
        line["part"] for line in earlier if line.get("name") == "seconds of this part" and line.get("value") != "cut"
    }
    for part in args.parts:
        left = end - time.monotonic()
        if part in done or left < 20:
            print(f"\n== {part}: {'done before' if part in done else 'no time left'}", flush=True)
            continue
        print(f"\n== {part}", flush=True)
        start = time.monotonic()
        command = [sys.executable, __file__, f"--part={part}", f"--device={args.device}", f"--size={args.size}",
                   f"--output={args.output}", f"--minutes={left / 60}"]  # fmt: skip
        try:
            code = subprocess.run(command, timeout=left).returncode
            how = round(time.monotonic() - start, 1) if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            how = "cut"
        with args.output.open("a") as file:
            file.write(
                json.dumps({"part": part, "name": "seconds of this part", "unit": "", "n": 1, "value": how}) + "\n"
            )
    from gpu_parts.figures import format_figure

    print("\n" + json.dumps(here["machine"]) + f" at {here['commit']}")
    for line in lines_of(args.output):
        if "name" in line:
            print(format_figure(line))


if __name__ == "__main__":
    main()
