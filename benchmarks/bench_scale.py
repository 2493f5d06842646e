"""wm-precompute and the table of latents at the size of DROID and parts of it: seconds, memory, files.

    python benchmarks/bench_scale.py --shares 0.01 0.03 0.1 --json=benchmarks/records/scale.json

A real LeRobotDataset with as many rows as DROID (76,000 episodes, 27 million frames), but pictures of 8 px and latents
of 3 numbers: what is measured is all that grows with rows. The latents of all episodes but ten are staged here, as a
run leaves them that was killed at the end; then the real command goes on. Each phase is a process of its own:

    open       the metadata and all that is held against it, and the fingerprint
    staging    a hundred episodes written beside all others, milliseconds each
    resume     from the command's start until the first of the ten missing episodes is staged
    finish     statistics, tokens, the companion's files, its keys and hashes
    copy       the copy without images
    again      the command given once more: everything is held against the source
    table      the memory-mapped table, written on first use
    gather     windows of 11 frames for a batch of 256, milliseconds
    encoding   decoding and encoding pictures of 8 px, frames a second

Seconds are of the processor, which others on the machine don't lengthen. Memory is the peak over what the process held
before the phase.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fixtures_datasets import make_dataset
from provenance import provenance

from world_modality_core.encoders import make_world_encoder, register_encoder
from world_modality_core.encoders.base import WorldEncoder
from world_modality_core.encoders.pooling import LayerFeatures
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.companion import open_companion, partial_root
from world_modality_core.latents.fingerprint import SourceFingerprint
from world_modality_core.precompute import steps
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig, TokensConfig
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging

N_EPISODES, LENGTH, CAMERA = 76_000, 355, "observation.image"
EPISODES_A_FILE, N_MISSING = 2_000, 10


@register_encoder("bench_colour")
class ColourEncoder(WorldEncoder):
    """Mean colour: an encoder that costs nothing."""

    default_height_px = default_width_px = 8
    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def build(self, spec):
        return torch.nn.Identity(), None

    def features(self, frames, layers):
        return {layer: LayerFeatures(frames.mean(dim=1)) for layer in layers}


def make_source(root: Path, n_episodes: int) -> None:
    """One recorded episode, over and over, as LeRobot lays datasets out."""
    make_dataset(root, "bench/droid", [LENGTH], [CAMERA], use_videos=False, size=8)
    (data,), (episodes,) = (list((root / name).glob("*/*.parquet")) for name in ("data", "meta/episodes"))
    one, row = pq.read_table(data), pq.read_table(episodes)
    one = one.replace_schema_metadata(one.schema.metadata)

    def replaced(table: pa.Table, name: str, values: np.ndarray) -> pa.Table:
        at = table.column_names.index(name)
        return table.set_column(at, table.schema.field(at), pa.array(values, table.schema.field(at).type))

    for file, first in enumerate(range(0, n_episodes, EPISODES_A_FILE)):
        n = min(EPISODES_A_FILE, n_episodes - first)
        rows = np.arange(first * LENGTH, (first + n) * LENGTH)
        part = pa.concat_tables([one] * n)
        part = replaced(replaced(part, "index", rows), "episode_index", rows // LENGTH)
        pq.write_table(part, data.with_name(f"file-{file:03d}.parquet"), row_group_size=LENGTH)
    e = np.arange(n_episodes)
    table = pa.concat_tables([row] * n_episodes).combine_chunks()
    for name, values in {
        "episode_index": e, "dataset_from_index": e * LENGTH, "dataset_to_index": (e + 1) * LENGTH,
        "data/file_index": e // EPISODES_A_FILE,
    }.items():  # fmt: skip
        table = replaced(table, name, values)
    pq.write_table(table, episodes)
    path = root / "meta/info.json"
    info = json.loads(path.read_text())
    info |= {"total_episodes": n_episodes, "total_frames": n_episodes * LENGTH, "splits": {"train": f"0:{n_episodes}"}}
    path.write_text(json.dumps(info))


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def in_a_process(work: Callable[[], dict]) -> dict:
    """What some work returned, with the seconds and the memory that it took."""

    def run(pipe) -> None:
        before, start, wall = peak_mib(), time.process_time(), time.perf_counter()
        found = work() or {}
        taken = {"cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - wall}
        pipe.send(taken | found | {"mib": round(peak_mib() - before, 1)})

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=run, args=(theirs,))
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(f"a phase failed with exit code {process.exitcode}")
    return ours.recv()


def measure(folder: Path, n_episodes: int, n_codes: int) -> dict:
    """All phases at one size."""
    root, output = folder / "source", folder / "world"
    start = time.perf_counter()
    make_source(root, n_episodes)
    found = {"episodes": n_episodes, "frames": n_episodes * LENGTH, "making_the_source_s": time.perf_counter() - start}
    cfg = PrecomputeConfig(
        SourceConfig("bench/droid", str(root)), OutputConfig("", str(output)), EncoderSpec("bench_colour"),
        TokensConfig(n_codes), strip_images=True, num_workers=0, device="cpu",
    )  # fmt: skip

    def opening() -> None:
        SourceFingerprint.of(SourceDataset("bench/droid", str(root)).meta)

    found["open"] = in_a_process(opening)

    def staging() -> dict:
        source = SourceDataset("bench/droid", str(root))
        encoder = make_world_encoder(EncoderSpec("bench_colour", cameras=[CAMERA]), device="cpu")
        request = steps._request(cfg, SourceFingerprint.of(source.meta), encoder.spec, None)
        stage = Staging(partial_root(output.resolve()))
        stage.begin(request["latents"]).release()
        rng = np.random.default_rng(0)
        latents = rng.random((LENGTH, 3), np.float32).astype(np.float16)
        last = n_episodes - N_MISSING
        for episode in range(last - 100):
            path = stage._path(episode)
            path.parent.mkdir(exist_ok=True)
            np.save(path, latents)
        start = time.process_time()
        for episode in range(last - 100, last):
            stage.write(episode, latents)
        return {"write_ms": 10 * (time.process_time() - start)}

    found["staging"] = in_a_process(staging)

    def going_on() -> dict:
        times, begin = {}, time.process_time()
        write, finish, write_stripped = Staging.write, steps.finish, steps.write_stripped

        def first_write(*args):
            times.setdefault("resume", time.process_time() - begin)
            return write(*args)

        def timed(name, function):
            def run(*args, **kwargs):
                start, before = time.process_time(), peak_mib()
                try:
                    return function(*args, **kwargs)
                finally:
                    times[name] = time.process_time() - start
                    times[f"{name}_mib"] = round(peak_mib() - before, 1)

            return run

        Staging.write = first_write
        steps.finish, steps.write_stripped = timed("finish", finish), timed("copy", write_stripped)
        steps.precompute(cfg)
        return times

    found["command"] = in_a_process(going_on)
    found["again"] = in_a_process(lambda: steps.precompute(cfg) and None)
    found["table"] = in_a_process(lambda: open_companion("x", str(output)).table and None)

    def gathering() -> dict:
        table, taken = open_companion("x", str(output)).table, []
        rng = np.random.default_rng(0)
        for _ in range(200):
            index = rng.integers(0, table.n_frames, 256)
            start = time.perf_counter()
            table.gather(index, range(-2, 9))
            taken.append(1e3 * (time.perf_counter() - start))
        return {"gather_ms": sorted(taken)[len(taken) // 2]}

    found["gather"] = in_a_process(gathering)

    def encoding() -> dict:
        source = SourceDataset("bench/droid", str(root))
        encoder = make_world_encoder(EncoderSpec("bench_colour", cameras=[CAMERA]), device="cpu")
        start, n = time.perf_counter(), 0
        for chunk in source.chunks(range(min(n_episodes, 100)), encoder.spec, 64, 0):
            n += len(encoder.encode(chunk.frames))
        return {"frames_a_second": n / (time.perf_counter() - start)}

    found["encoding"] = in_a_process(encoding)
    for name in ("world", "world_stripped"):
        files = [path for path in (folder / name).rglob("*") if path.is_file() and "cache" not in path.parts]
        folders = [len(list(path.iterdir())) for path in (folder / name).rglob("*") if path.is_dir()]
        found[f"files_of_{name}"] = {
            "n": len(files), "most_in_a_folder": max(folders), "largest_mb": max(p.stat().st_size for p in files) / 1e6,
        }  # fmt: skip
    return found


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.03, 0.1], help="of DROID's episodes")
    cli.add_argument("--n_codes", type=int, default=16)
    cli.add_argument("--folder", help="where to write (default: a temporary folder)")
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    record = provenance() | {"n_codes": args.n_codes, "sizes": []}
    for share in args.shares:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            found = measure(Path(folder), round(share * N_EPISODES), args.n_codes)
        record["sizes"].append({"share": share} | found)
        print(json.dumps(record["sizes"][-1], indent=1), flush=True)
        if args.json:
            args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
