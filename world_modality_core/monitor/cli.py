"""`wm-monitor`: says when the world isn't as it was forecast, without labels of failures.

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
    commands = parser.add_subparsers(dest="command", required=True, metavar="fit | eval | scan | attach")
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
    judged = commands.add_parser(
        "eval",
        help="how well evaluated episodes were told apart",
        description="Judge the rows of wm-eval --monitor (arm intact).",
    )
    judged.add_argument("folders", nargs="+", metavar="FOLDER", help="of wm-eval --monitor; everything below is read")
    judged.add_argument("--monitor", default="", help="judge by the calibration of this one, whatever watched; it must "
                        "have the same scores")  # fmt: skip
    judged.add_argument("--output", default="", metavar="FILE", help="also write everything as JSON")
    judged.add_argument("--page", default="", metavar="FILE", help="also write a page, with films of wm-eval --videos")
    judged.add_argument("--n_films", type=int, default=12, help="films that the page shows at most (12)")
    scan = commands.add_parser(
        "scan", help="the strangest moments of a recorded dataset", description="Find strange moments in recordings."
    )
    scan.add_argument("monitor", help="folder of wm-monitor fit, or a repository")
    scan.add_argument("--companion", required=True, help="latents of the dataset, of the monitor's encoder")
    scan.add_argument("--dataset", default="", help="folder of the dataset itself; LeRobot's own if not given")
    scan.add_argument("--n_moments", type=int, default=20, help="moments that the page shows (20)")
    scan.add_argument("--output_dir", required=True, help="where scan.html and scan.json go")
    attach = commands.add_parser(
        "attach",
        help="put a monitor into a policy's checkpoint, for lerobot-rollout and policy servers",
        description="Copy a checkpoint and put a monitor before its processors.",
    )
    attach.add_argument("policy", help="folder of the checkpoint (pretrained_model)")
    attach.add_argument("--monitor", required=True, help="folder of wm-monitor fit, or a repository")
    attach.add_argument("--reaction", choices=["log", "warn", "stop"], default="warn", help="at an alarm (warn)")
    attach.add_argument("--clock", choices=["calls", "wall"], default="calls", help="wall: frames come irregularly, as "
                        "at a policy server (calls)")  # fmt: skip
    attach.add_argument("--output_dir", required=True, help="where the copy goes")
    return parser


def work(given: argparse.Namespace) -> None:
    """Do what the options ask for."""
    if given.command == "fit":
        from world_modality_core.monitor.fit import fit

        fit(given)
    elif given.command == "eval":
        from world_modality_core.monitor.judging import eval_rows

        eval_rows(given)
    elif given.command == "attach":
        from world_modality_core.monitor.attach import attach

        attach(given)
    else:
        from world_modality_core.monitor.scan import scan

        scan(given)


def main() -> int:
    """Console script `wm-monitor`."""
    return run_command("wm-monitor", make_parser(), work)


if __name__ == "__main__":
    sys.exit(main())
