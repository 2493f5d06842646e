"""What `--encoder.every=N` saves: processor seconds of reading, encoding and staging an episode's frames, by N.

    python benchmarks/bench_every.py --json=benchmarks/records/every.json

One thread, the embedded encoder, videos as LeRobot writes them (a key frame every 2 frames) and images in parquet. The
values of N take turns, so that a drift of the machine touches all; seconds are of the processor, which others on the
machine don't lengthen.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fixtures_datasets import make_dataset
from provenance import provenance

from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.encode import stage_latents
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging

CAMERA, LENGTHS, BATCH_SIZE = "observation.image", [120] * 4, 64
SOURCES = {"videos, 128 px": (True, 128), "videos, 480 px": (True, 480), "images, 128 px": (False, 128)}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--every", type=int, nargs="+", default=[1, 2, 4, 8])
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    torch.set_num_threads(1)
    record = provenance() | {"frames": sum(LENGTHS), "figures": {}}
    for name, (use_videos, size) in SOURCES.items():
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "source"
            make_dataset(root, lengths=LENGTHS, cameras=[CAMERA], size=size, use_videos=use_videos)
            record["figures"][name] = measure(args, SourceDataset("bench/source", str(root)), Path(folder))
        for every, row in record["figures"][name].items():
            print(f"{name}, every {every}: " + ", ".join(f"{what} {value:.3f}" for what, value in row.items()))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1))


def measure(args: argparse.Namespace, source: SourceDataset, folder: Path) -> dict[int, dict[str, float]]:
    """Median processor seconds of decoding alone and of everything, and everything's share of that of all frames."""
    episodes, rows = range(source.meta.total_episodes), {every: ([], []) for every in args.every}
    for repeat in range(args.repeats):
        for every, (decoding, all_of_it) in rows.items():
            encoder = make_world_encoder(EncoderSpec("efficientnet_lite0", cameras=[CAMERA], every=every), device="cpu")
            start = time.process_time()
            for _ in source.chunks(episodes, encoder.spec, BATCH_SIZE, 0):
                pass
            decoding.append(time.process_time() - start)
            staging = Staging(folder / f"staging-{every}-{repeat}")
            staging.begin({}).release()
            start = time.process_time()
            stage_latents(source, encoder, staging, episodes, BATCH_SIZE, 0)
            all_of_it.append(time.process_time() - start)
    whole = statistics.median(rows[args.every[0]][1])
    return {
        every: {
            "decoding_cpu_s": statistics.median(decoding),
            "cpu_s": statistics.median(all_of_it),
            "share": statistics.median(all_of_it) / whole,
            "n": args.repeats,
        }
        for every, (decoding, all_of_it) in rows.items()
    }


if __name__ == "__main__":
    main()
