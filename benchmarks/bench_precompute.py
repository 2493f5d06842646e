"""Throughput of `wm-precompute` over what the bare encoder and sequential decoding alone allow together.

Three things are measured in turn, on the same frames, in one process; encoding before and after the pipeline, so that a
drift of the machine cancels out:

    decode     decoding every episode from front to back, one process, nothing else (wall and CPU time)
    encode     the encoder on the same frames, already in memory, in the same batches (wall and CPU time)
    pipeline   what the command does between reading and assembly: background decoding, encoding, staging to disk

No schedule can be faster than the slowest part alone, nor than all CPU work spread evenly over the cores, so the time
that the parts allow together is

    bound = max(encode wall, decode wall / decoding processes, (encode CPU + decode CPU) / cores)

and the figure is bound / pipeline wall. On an accelerator the CPU work of encoding is not the limit: with --device=cuda
the bound is the encode wall alone. Starting the decoding processes is part of the pipeline's time.

Wall times need a quiet machine. "CPU work ratio" does not: it is the CPU time of the parts over the CPU time of the
pipeline, decoding processes included.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from fixtures_datasets import make_dataset
from report import report

from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.encode import encode_episodes, stage_latents
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging


def clock() -> np.ndarray:
    """(wall, CPU) seconds so far; CPU counts all threads of this process and its ended children."""
    times = os.times()
    return np.array([time.perf_counter(), times.user + times.system + times.children_user + times.children_system])


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--root", type=Path, help="local LeRobotDataset; one is made up if not given")
    cli.add_argument("--episodes", type=int, default=8, help="episodes of the made-up dataset")
    cli.add_argument("--length", type=int, default=120, help="their frames")
    cli.add_argument("--size", type=int, default=128, help="their height and width")
    cli.add_argument("--images", action="store_true", help="store images in parquet rather than videos")
    cli.add_argument("--family", default="efficientnet_lite0")
    cli.add_argument("--model_id", default="")
    cli.add_argument("--height_px", type=int, default=0)
    cli.add_argument("--dtype", default="float32")
    cli.add_argument("--batch_size", type=int, default=64)
    cli.add_argument("--num_workers", type=int, default=1)
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--repeats", type=int, default=5)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = args.root or Path(folder) / "source"
        if args.root is None:
            lengths, cameras = [args.length] * args.episodes, ["observation.image"]
            make_dataset(root, lengths=lengths, cameras=cameras, size=args.size, use_videos=not args.images)
        measure(args, SourceDataset("bench/source", str(root)), Path(folder))


def measure(args: argparse.Namespace, source: SourceDataset, folder: Path) -> None:
    """Run the repeats and report them."""
    cameras, episodes = source.cameras([]), range(source.meta.total_episodes)
    spec = EncoderSpec(args.family, args.model_id, cameras=cameras, height_px=args.height_px, width_px=args.height_px,
                       dtype=args.dtype)  # fmt: skip
    encoder = make_world_encoder(spec, device=args.device)
    n_images = source.meta.total_frames * len(cameras)
    frames = list(source.chunks(episodes, spec, args.batch_size, 0))

    def encode_all() -> None:
        for _, _, latents in encode_episodes(iter(frames), encoder):
            if latents is not None:
                latents.cpu()

    encode_all()  # warm
    rows = {"decode": [], "encode": [], "pipeline": []}
    bounds, cpu_ratios = [], []
    for repeat in range(args.repeats):
        start = clock()
        for _ in source.chunks(episodes, spec, args.batch_size, 0):
            pass
        decode = clock() - start
        start = clock()
        encode_all()
        encode_before = clock() - start
        staging = Staging(folder / f"staging-{repeat}")
        staging.begin({}).release()
        start = clock()
        stage_latents(source, encoder, staging, episodes, args.batch_size, args.num_workers)
        pipeline = clock() - start
        start = clock()
        encode_all()
        encode = (encode_before + clock() - start) / 2
        cpu_ratios.append((encode[1] + decode[1]) / pipeline[1])
        spread = (encode[1] + decode[1]) / len(os.sched_getaffinity(0))
        alone = max(encode[0], decode[0] / max(1, args.num_workers), spread)
        bounds.append(alone if args.device == "cpu" else encode[0])
        for name, value in (("decode", decode), ("encode", encode), ("pipeline", pipeline)):
            rows[name].append(value[0])
    report(
        f"precompute over encoder and decoding ({args.device}, {torch.get_num_threads()} threads)",
        {f"{name} alone (images/s)": [n_images / t for t in rows[name]] for name in ("decode", "encode")}
        | {"allowed together (images/s)": [n_images / t for t in bounds]}
        | {"pipeline (images/s)": [n_images / t for t in rows["pipeline"]], "CPU work ratio": cpu_ratios},
        ratio=[bound / t for bound, t in zip(bounds, rows["pipeline"], strict=True)],
        target=">= 0.95",
        settings=vars(args),
    )


if __name__ == "__main__":
    main()
