"""Gather of latent windows from the warm memory map, over a plain copy of as many contiguous bytes.

A: `LatentTable.gather` of b windows of T history and K future frames at random frames, as a training step asks for.
B: a copy of as many contiguous bytes out of the same memory map into new memory. Both on one thread, in turn, in one
process; the ratio A / B is taken pairwise.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from report import report

from world_modality_core.latents.latent_table import LatentTable


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--n_frames", type=int, default=50_000, help="frames in the table")
    cli.add_argument("--dim", type=int, default=1408, help="latent values per frame")
    cli.add_argument("--batch", type=int, default=256, help="windows b")
    cli.add_argument("--history", type=int, default=4, help="history frames T")
    cli.add_argument("--future", type=int, default=8, help="future frames K")
    cli.add_argument("--repeats", type=int, default=200)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "latents.npy"
        latents = np.lib.format.open_memmap(path, "w+", np.float16, (args.n_frames, args.dim))
        for row in range(0, args.n_frames, 1000):
            latents[row : row + 1000] = rng.standard_normal((min(1000, args.n_frames - row), args.dim), np.float32)
        starts = np.arange(0, args.n_frames, 200)
        bounds = np.stack([starts, np.append(starts[1:], args.n_frames)], axis=1)
        table = LatentTable(path, None, bounds)
        np.array(table.latents).sum(dtype=np.float32)  # warm
        offsets = list(range(1 - args.history, args.future + 1))
        n_rows = args.batch * len(offsets)
        gathers, copies = [], []
        for _ in range(args.repeats):
            index = rng.integers(0, args.n_frames, args.batch)
            first = int(rng.integers(0, args.n_frames - n_rows))
            start = time.perf_counter()
            table.gather(index, offsets)
            middle = time.perf_counter()
            np.array(table.latents[first : first + n_rows])
            copies.append(time.perf_counter() - middle)
            gathers.append(middle - start)
    report(
        "gather over contiguous copy",
        {"gather (ms)": [1e3 * t for t in gathers], "copy (ms)": [1e3 * t for t in copies]},
        ratio=[g / c for g, c in zip(gathers, copies, strict=True)],
        target="<= 2",
        settings=vars(args),
    )


if __name__ == "__main__":
    main()
