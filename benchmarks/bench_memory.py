"""Memory that a training process spends on a companion, and how it grows when the companion is ten times larger.

Each measurement is a fresh process that opens the flat table and gathers windows at random frames, as training does.
Counted is the memory of its own (`RssAnon`): pages of the mapped file are the kernel's cache, given back on demand and
shared by all processes; they are printed too (`RssFile`). The figure is growth = (own memory with the large table - own
memory with the small one) over the bytes by which the table grew: 0 if nothing of it is held, 1 if all is.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from report import report

from world_modality_core.latents.latent_table import LatentTable


def resident_mb() -> dict[str, float]:
    """RssAnon and RssFile of this process in MB."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(fields[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile")}


def train(path: Path, n_frames: int, n_steps: int, answer) -> None:
    """Open the table, gather as a training loop does, and send back what this process then holds."""
    before = resident_mb()
    starts = np.arange(0, n_frames, 200)
    table = LatentTable(path, None, np.stack([starts, np.append(starts[1:], n_frames)], axis=1))
    rng = np.random.default_rng(0)
    for _ in range(n_steps):
        latents, is_pad = table.gather(rng.integers(0, n_frames, 256), range(-3, 9))
    answer.put({name: value - before[name] for name, value in resident_mb().items()})


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--n_frames", type=int, default=20_000, help="frames of the small table; the large has 10x")
    cli.add_argument("--dim", type=int, default=1408, help="latent values per frame")
    cli.add_argument("--steps", type=int, default=200, help="gathers of 256 windows of 12 frames")
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    spawn = multiprocessing.get_context("spawn")
    measured = {(size, name): [] for size in ("small", "large") for name in ("RssAnon", "RssFile")}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"small": args.n_frames, "large": 10 * args.n_frames}
        for size, n_frames in sizes.items():
            latents = np.lib.format.open_memmap(Path(folder) / f"{size}.npy", "w+", np.float16, (n_frames, args.dim))
            for row in range(0, n_frames, 1000):
                latents[row : row + 1000] = row % 1000
            latents.flush()
        for _ in range(args.repeats):
            for size, n_frames in sizes.items():
                answer = spawn.Queue()
                child = spawn.Process(target=train, args=(Path(folder) / f"{size}.npy", n_frames, args.steps, answer))
                child.start()
                for name, value in answer.get().items():
                    measured[size, name].append(value)
                child.join()
    grown_mb = 9 * args.n_frames * args.dim * 2 / 1024**2
    pairs = zip(measured["large", "RssAnon"], measured["small", "RssAnon"], strict=True)
    report(
        f"own memory for a table that is {grown_mb:.0f} MB larger, per byte of growth",
        {f"{size} {name} (MB)": values for (size, name), values in measured.items()},
        ratio=[(large - small) / grown_mb for large, small in pairs],
        target="~0",
        settings=vars(args),
    )


if __name__ == "__main__":
    main()
