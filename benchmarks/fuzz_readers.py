"""Damaged files of every kind, 100,000 of them: does every reader refuse what it can't read in one line, and none hang?

python benchmarks/fuzz_readers.py --n=100000 --json=benchmarks/records/fuzz_readers.json
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import sys
import tempfile
import time
import warnings
from pathlib import Path

REPO = Path(__file__).parent.parent
sys.path[:0] = [str(Path(__file__).parent), str(REPO), *(str(REPO / "tests" / name) for name in ("", "report", "fuzz"))]


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--n", type=int, default=100_000, help="damaged files, over all readers")
    cli.add_argument("--seed", type=int, default=1)
    cli.add_argument("--only", default="", help="readers with this in their name")
    cli.add_argument("--limit_s", type=float, default=20.0, help="longest time for one file")
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    from fixtures_datasets import make_dataset
    from mutations import damaged
    from provenance import provenance
    from readers import fuzz, make_targets
    from synthetic import write_study

    warnings.simplefilter("ignore")  # of numpy, about numbers that overflow
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        source, companion = base / "source", base / "world"
        make_dataset(source, "tests/source", lengths=(12, 9, 5))
        precompute_tiny(source, companion)
        targets = [each for each in make_targets(base, source, companion, write_study) if args.only in each.name]
        total, rows, faults = sum(each.weight for each in targets), [], []
        for target in targets:
            n, start = round(args.n * target.weight / total), time.perf_counter()
            # A hang inside of a library ends the process, with a traceback that says where.
            faulthandler.dump_traceback_later(n * args.limit_s, exit=True)
            found = fuzz(target, n, args.seed, base / "work", damaged, args.limit_s)
            faulthandler.cancel_dump_traceback_later()
            row = {"reader": target.name, "n": n, **target.outcomes, "faults": len(found)}
            rows.append(row | {"seconds": round(time.perf_counter() - start, 1)})
            faults += [{"reader": target.name, **each} for each in found]
            print(json.dumps(rows[-1]), flush=True)
            for each in found[:5]:
                print(f"    {each}", flush=True)
    n = sum(row["n"] for row in rows)
    hangs = sum("Hang" in fault["error"] for fault in faults)
    print(f"{n} damaged files: {len(faults) - hangs} tracebacks, {hangs} hangs (target 0 and 0)")
    if args.json:
        figures = {"n": n, "tracebacks": len(faults) - hangs, "hangs": hangs, "readers": rows, "faults": faults[:50]}
        args.json.write_text(json.dumps({**provenance(), "seed": args.seed, **figures}, indent=2) + "\n")


def precompute_tiny(source: Path, companion: Path) -> None:
    """The companion of a tiny dataset, with PCA and tokens."""
    from world_modality_core.encoders.spec import EncoderSpec
    from world_modality_core.precompute.precompute_options import (
        OutputConfig,
        PrecomputeConfig,
        SourceConfig,
        TokensConfig,
    )
    from world_modality_core.precompute.steps import precompute

    precompute(PrecomputeConfig(
        dataset=SourceConfig("tests/source", str(source)), output=OutputConfig("tests/world", str(companion)),
        encoder=EncoderSpec(family="efficientnet_lite0", height_px=32, width_px=32, pca_dim=8),
        tokens=TokensConfig(n_codes=8), device="cpu", batch_size=8, num_workers=0,
    ))  # fmt: skip


if __name__ == "__main__":
    main()
