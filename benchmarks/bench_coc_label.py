"""Throughput of `coc-label` against an endpoint of fixed latency, over what that latency allows, and its memory.

A mock server in a process of its own answers each request after --latency_s. With --concurrency requests at a time, no
client can label faster than

    ideal = concurrency / latency_s    episodes a second

The figure is episodes/s over the ideal. What is timed is what the command does, but for the start of Python: reading
each episode (signals, frames), contact sheets, requests over HTTP, checking the replies, writing and syncing labels.

Memory: the peak resident set of a process that labels many episodes, and of one that labels a fifth of them, both with
a server that answers at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

REPO = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(REPO / "tests"), str(REPO / "tests/coc")]

CAMERA = "observation.images.top"


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--episodes", type=int, default=800)
    cli.add_argument("--length", type=int, default=40, help="frames of an episode")
    cli.add_argument("--size", type=int, default=64, help="height and width of the frames")
    cli.add_argument("--n_frames", type=int, default=3, help="frames that are shown of an episode")
    cli.add_argument("--latency_s", type=float, default=0.2)
    cli.add_argument("--concurrency", type=int, default=16)
    cli.add_argument("--repeats", type=int, default=5)
    cli.add_argument("--memory_episodes", type=int, default=10_000, help="0 leaves the memory out")
    cli.add_argument("--json", type=Path, help="also write the figures here")
    cli.add_argument("--label", nargs=3, metavar=("ROOT", "LABELS", "API_BASE"), help=argparse.SUPPRESS)
    args = cli.parse_args()
    if args.label:
        print(json.dumps(label_once(args, *args.label)))
        return
    from report import report

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {"speed": args.episodes}
        if args.memory_episodes:
            sizes |= {"few": args.memory_episodes // 5, "many": args.memory_episodes}
        roots = make_datasets(folder, sizes, args)
        runs = []
        with server(args.latency_s) as api_base:
            for repeat in range(args.repeats):
                runs.append(run(args, roots["speed"], folder / f"{repeat}.jsonl", api_base))
        ideal = args.concurrency / args.latency_s
        rates = [one["rate"] for one in runs]
        measured = {"ideal (episodes/s)": [ideal], "coc-label (episodes/s)": rates}
        measured["CPU time per episode (ms)"] = [one["cpu_ms"] for one in runs]
        if args.memory_episodes:
            with server(0.0) as api_base:
                for kind in ("few", "many"):
                    peak = run(args, roots[kind], folder / f"{kind}.jsonl", api_base)["peak_mb"]
                    measured[f"peak memory, {sizes[kind]} episodes (MB)"] = [peak]
        report(
            f"coc-label at {args.latency_s} s latency and {args.concurrency} requests at a time", measured,
            ratio=[rate / ideal for rate in rates], target=">= 0.95", settings=vars(args),
        )  # fmt: skip


def make_datasets(folder: Path, sizes: dict[str, int], args: argparse.Namespace) -> dict[str, Path]:
    """A dataset of each size, of the same episode under different tasks."""
    from fixtures_datasets import make_dataset
    from many_episodes import make_many

    roots = {}
    for kind, n in sizes.items():
        one, length = folder / f"one-{kind}", args.length if kind == "speed" else 4
        make_dataset(one, lengths=[length], cameras=[CAMERA], use_videos=False, size=args.size)
        roots[kind] = make_many(one, folder / kind, n)
    return roots


class server:
    """The mock endpoint in a process of its own; gives its address."""

    def __init__(self, latency_s: float) -> None:
        self.command = [sys.executable, str(REPO / "tests/coc/mock_endpoint.py"), f"--latency_s={latency_s}"]

    def __enter__(self) -> str:
        self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self.process.stdout.readline().strip()

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()


def run(args: argparse.Namespace, root: Path, labels: Path, api_base: str) -> dict:
    """`label_once` in a process of its own."""
    command = [sys.executable, __file__, f"--concurrency={args.concurrency}", f"--n_frames={args.n_frames}"]
    done = subprocess.run([*command, "--label", str(root), str(labels), api_base], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def label_once(args: argparse.Namespace, root: str, labels: str, api_base: str) -> dict:
    """Label a dataset; episodes a second and peak memory of this process."""
    from coc_tools.backends.openai_endpoint import EndpointLabeller
    from coc_tools.config import EndpointConfig, KeyframesConfig, SamplingConfig
    from coc_tools.episodes import EpisodeReader
    from coc_tools.pipeline import label_episodes
    from coc_tools.prompts import load_prompt
    from coc_tools.request import RequestBuilder
    from coc_tools.store import LabelFile

    reader, cancel = EpisodeReader(root=root), threading.Event()
    builder = RequestBuilder(load_prompt("coc_v1"), KeyframesConfig(n_frames=args.n_frames), reader.cameras)
    config = EndpointConfig(api_base=api_base, model="mock-vl", concurrency=args.concurrency)
    labeller = EndpointLabeller(config, SamplingConfig(), cancel)
    start = time.process_time()
    with LabelFile(labels) as file:
        summary = label_episodes(reader, range(len(reader)), builder, labeller, file, cancel=cancel)
    if summary.n_labelled != len(reader):
        sys.exit(f"{summary.n_labelled} of {len(reader)} episodes labelled: {summary}")
    cpu_ms = 1e3 * (time.process_time() - start) / summary.n_labelled
    # Not `ru_maxrss`, which starts at the peak of the process that started this one.
    peak = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1024
    return {"rate": summary.n_labelled / summary.seconds, "cpu_ms": cpu_ms, "peak_mb": peak}


if __name__ == "__main__":
    main()
