"""`wm-verify`: is what lies in a folder whole, its own, and what it says it is?

wm-verify outputs/pusht_world --source=outputs/pusht
wm-verify outputs/F/checkpoints/last/pretrained_model outputs/eval/F outputs/study1

One line a fault, and exit status 1 if there is any. Nothing that a file names is run, and nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="wm-verify", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH",
        help="a companion, a dataset or a copy of one, a .jsonl of labels, an evaluation, what wm-intervene wrote, a\n"
        "study or its records, a checkpoint's `pretrained_model`, a Prophet or a monitor",
    )  # fmt: skip
    parser.add_argument(
        "--source", type=Path, metavar="FOLDER",
        help="the dataset that companions, copies and labels are of: hold them against it",
    )  # fmt: skip
    return parser


def work(given: argparse.Namespace) -> int:
    """Look at each folder, and say what is wrong."""
    from wm_tools.verify.artefacts import kind_of  # reads names only; what each kind needs is imported by its check

    if given.source is not None and not (given.source / "meta/info.json").is_file():
        raise ConfigError(f"source={str(given.source)!r} is no LeRobotDataset (no meta/info.json): name its folder")
    n_faults = 0
    for path in given.paths:
        kind = kind_of(path)
        faults = kind.faults(path, given.source)
        for fault in faults:
            print(f"{path}: {fault}")
        if not faults:
            print(f"{path}: {kind.name}, whole")
        n_faults += len(faults)
    return min(n_faults, 1)


def main() -> int:
    """Console script `wm-verify`."""
    return run_command("wm-verify", make_parser(), work, remedy="begins anew")


if __name__ == "__main__":
    sys.exit(main())
