"""Training windows a second: latents from the companion's table, against loaders that read and decode images.

A window is 3 frames of history and 8 of future with their actions, random in the dataset, in batches of 64 from a
`torch.utils.data.DataLoader` in this process; the loaders take turns.

    table             `LatentTable.gather`: the latents alone
    table and items   what a training step of ours waits for: LeRobot's items of the copy without images, and the table
    images            LeRobotDataset with the windows' images, PNG in parquet
    videos            LeRobotDataset with the windows' images, from video
    stable-worldmodel its LanceDataset (JPEG) with the windows' images, where that package is installed (PyPI)
    ... HDF5          its HDF5Dataset, frames as they are
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fixtures_datasets import make_dataset, scene_frame
from provenance import provenance
from random_latents import random_companion

CAMERA, OFFSETS, BATCH, FPS = "observation.image", range(-2, 9), 64, 10
DIM = 1024  # grid:4x4 of 64 numbers


def batches(dataset) -> Iterator:
    while True:
        yield from DataLoader(dataset, BATCH, shuffle=True, drop_last=True)


def lerobot(root: Path, images: bool) -> LeRobotDataset:
    actions = {"action": [i / FPS for i in range(8)]}
    windows = {CAMERA: [i / FPS for i in OFFSETS]} if images else {}
    return LeRobotDataset("bench/windows", root=root, delta_timestamps=actions | windows)


def stable_worldmodel(folder: Path, args: argparse.Namespace) -> dict[str, Callable]:
    """Its loaders, on the same frames; none where it isn't installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from stable_worldmodel.data import HDF5Dataset, HDF5Writer, LanceDataset, LanceWriter
    except ImportError:
        return {}
    episodes = [
        {
            "pixels": [scene_frame(e, t, 0, args.size) for t in range(args.length)],
            "action": list(np.random.default_rng(e).normal(size=(args.length, 4)).astype(np.float32)),
        }
        for e in range(args.episodes)
    ]
    found = {}
    for name, writer, reader, path in (
        ("stable-worldmodel, Lance (JPEG)", LanceWriter, LanceDataset, folder / "swm.lance"),
        ("stable-worldmodel, HDF5", HDF5Writer, HDF5Dataset, folder / "swm.h5"),
    ):
        with writer(path) as file:
            for episode in episodes:
                file.write_episode(episode)
        found[name] = batches(reader(path=path, num_steps=len(OFFSETS))).__next__
    return found


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--episodes", type=int, default=10)
    cli.add_argument("--length", type=int, default=60, help="frames of an episode")
    cli.add_argument("--size", type=int, default=64, help="height and width of the frames")
    cli.add_argument("--repeats", type=int, default=9, help="batches of each loader, in turn")
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        lengths = [args.length] * args.episodes
        for kind, cameras in (("images", [CAMERA]), ("videos", [CAMERA]), ("stripped", [])):
            make_dataset(folder / kind, "bench/windows", lengths, cameras, kind == "videos", args.size)
        table = random_companion(folder, args.episodes, args.length, DIM).table
        rng, items = np.random.default_rng(0), batches(lerobot(folder / "stripped", False))

        def gather() -> None:
            table.gather(rng.integers(0, table.n_frames, BATCH), OFFSETS)

        def both() -> None:
            table.gather(next(items)["index"], OFFSETS)

        loaders: dict[str, Callable] = {"table": gather, "table and items": both}
        for kind in ("images", "videos"):
            loaders[f"LeRobotDataset, {kind}"] = batches(lerobot(folder / kind, True)).__next__
        loaders |= stable_worldmodel(folder, args)
        wall: dict[str, list[float]] = {name: [] for name in loaders}
        cpu: dict[str, list[float]] = {name: [] for name in loaders}
        for repeat in range(args.repeats + 1):
            for name in loaders if repeat % 2 else reversed(loaders):
                start, start_cpu = time.perf_counter(), time.process_time()
                loaders[name]()
                if repeat:
                    wall[name].append(1e3 * (time.perf_counter() - start) / BATCH)
                    cpu[name].append(1e3 * (time.process_time() - start_cpu) / BATCH)
    record = provenance() | {"settings": {k: v for k, v in vars(args).items() if k != "json"}, "n": args.repeats}
    record |= {"milliseconds_a_window": wall, "cpu_milliseconds_a_window": cpu, "ratios": {}}
    for ours in ("table", "table and items"):
        for other in list(loaders)[2:]:
            ratio = [b / a for a, b in zip(cpu[ours], cpu[other], strict=True)]
            record["ratios"][f"{ours}: times the windows/s of {other}"] = [
                f(ratio) for f in (statistics.median, min, max)
            ]
    for name in loaders:
        middle = statistics.median(cpu[name])
        print(f"{name:<34} {1e3 / middle:>10,.0f} windows a processor second   {middle:.4f} ms [{min(cpu[name]):.4f}, "
              f"{max(cpu[name]):.4f}] n={args.repeats}; wall {statistics.median(wall[name]):.4f} ms")  # fmt: skip
    for name, (middle, least, most) in record["ratios"].items():
        print(f"{name:<75} {middle:8.1f} [{least:.1f}, {most:.1f}]")
    if args.json:
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
