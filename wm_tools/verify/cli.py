"""`wm-verify`: is an artefact whole, what it says it is, and of its source? One line for each fault.

wm-verify outputs/pusht_world --source=outputs/pusht
wm-verify outputs/eval/F --source=outputs/train/F/checkpoints/last/pretrained_model
wm-verify outputs/studies/study1 outputs/prophet

Exit status 0: nothing is wrong; 1: something is; 2: there is nothing that can be checked. Nothing is changed, nothing
of the artefact runs, and no network is asked.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from wm_tools.verify.kinds import KINDS, verify
from world_modality_core.io.commands import run_command


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="wm-verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = ", ".join(kind.name for kind in KINDS)
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help=f"each one of: {kinds}")
    parser.add_argument(
        "--source", type=Path, metavar="PATH",
        help="what it was made from: the dataset of a companion, a copy or labels; the checkpoint of an evaluation",
    )  # fmt: skip
    return parser


def work(given: argparse.Namespace) -> int:
    """Print what is wrong; 1 if anything is."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # what is here is checked, not what could be had
    n_faults = 0
    for path in given.paths:
        facts, faults = verify(path, given.source)
        for line in faults:
            print(line)
        print(f"{path}: {facts}: {f'{len(faults)} faults' if faults else 'nothing is wrong'}")
        n_faults += len(faults)
    return min(n_faults, 1)


def main() -> int:
    """Console script `wm-verify`."""
    return run_command("wm-verify", make_parser(), work, remedy="begins again", status=2)


if __name__ == "__main__":
    sys.exit(main())
