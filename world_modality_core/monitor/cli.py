"""`wm-monitor`: says when the world isn't what was foreseen, without labels of failures.

wm-monitor fit --prophet=outputs/prophet --companions=outputs/companion --output_dir=outputs/monitor
wm-monitor eval outputs/eval
wm-monitor scan outputs/monitor --companion=outputs/companion --output_dir=outputs/scan
"""

from __future__ import annotations

import argparse
import sys

from world_modality_core.io.commands import run_command


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="wm-monitor", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="fit | eval | scan")
    fit = commands.add_parser(
        "fit", help="scores and thresholds from a Prophet and successful episodes", description="Fit a monitor."
    )
    fit.add_argument("--prophet", default="", help="folder of wm-prophet, or a policy's checkpoint with a Prophet; "
                     "several, with commas between them, are an ensemble")  # fmt: skip
    fit.add_argument("--companions", default="", help="latents of successful episodes: folders or repository ids, with "
                     "commas between them")  # fmt: skip
    fit.add_argument("--sources", default="", help="their sources, for the robot's states (as in wm-prophet)")
    fit.add_argument("--episodes", default="", help="only these episodes, e.g. 0,5,7-12; one list per companion, "
                     "separated by ';'")  # fmt: skip
    fit.add_argument("--reference", default="", help="episodes that the Prophet learned from, which can't calibrate; "
                     "same form, or none. Known where the Prophet is of wm-prophet")  # fmt: skip
    fit.add_argument("--monitor", default="", help="in place of a Prophet: a monitor whose thresholds are set anew")
    fit.add_argument("--rows", default="", help="with --monitor: folders of wm-eval --monitor, whose successful "
                     "episodes (arm intact) are calibrated on")  # fmt: skip
    fit.add_argument("--false_alarm_rate", type=float, default=0.05, help="share of successful episodes that may have "
                     "any alarm (0.05)")  # fmt: skip
    fit.add_argument(
        "--n_phases", type=int, default=4, help="parts of a usual episode with thresholds of their own (4)"
    )
    fit.add_argument("--window", type=int, default=4, help="ticks over which the combined score is averaged (4)")
    fit.add_argument("--seed", type=int, default=0, help="of the draw of calibration episodes (0)")
    fit.add_argument("--output_dir", required=True, help="where the monitor goes")
    return parser


def work(given: argparse.Namespace) -> None:
    """Do what the options ask for."""
    if given.command == "fit":
        from world_modality_core.monitor.fit import fit

        fit(given)


def main() -> int:
    """Console script `wm-monitor`."""
    return run_command("wm-monitor", make_parser(), work)


if __name__ == "__main__":
    sys.exit(main())
