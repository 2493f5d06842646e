"""`wm-trial`: two policies on a real robot, blinded, in random order, until the sequential test says so.

wm-trial --policies new=outputs/new/pretrained_model old=outputs/old/pretrained_model --task="fold the towel" \\
    --run="lerobot-rollout --strategy.type=base --policy.path={policy} --robot.type=so101_follower --duration=30 ..." \\
    --n_setups=40 --output_dir=outputs/trial --host=0.0.0.0

Open the address that it prints on a phone. On every set-up both policies run, in an order that nobody is told; say
what came out, and go on until the page says that it is enough. `wm-compare outputs/trial --baseline=old` reads it.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import signal
import sys
import threading
from pathlib import Path

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.first_look import check_there


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(
        prog="wm-trial", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "--policies", nargs=2, required=True, metavar="LABEL=CHECKPOINT", help="the two, such as old=outputs/old"
    )
    parser.add_argument("--run", required=True, help="what runs a policy on the robot; {policy} is its checkpoint")
    parser.add_argument("--task", required=True, help="what the robot is to do; the page shows it")
    parser.add_argument(
        "--n_setups", type=int, required=True, help="set-ups that are planned (wm-compare --plan); it may end earlier"
    )
    parser.add_argument("--output_dir", type=Path, required=True, help="where the trial is kept, and goes on")
    parser.add_argument("--stages", default="", help="rubric: names of stages, comma-separated; the score counts them")
    parser.add_argument("--alpha", type=float, default=0.05, help="level of the test (0.05)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets a phone in the same network in (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8010, help="8010; 0 takes a free one")
    return parser


def trial(given: argparse.Namespace) -> None:
    """Serve the page until the trial has ended, then print what came out.

    Raises:
        ConfigError: an option can't be used.
    """
    policies = dict(each.partition("=")[::2] for each in given.policies)
    if len(policies) != 2 or not all(label and checkpoint for label, checkpoint in policies.items()):
        raise ConfigError(
            f"--policies={' '.join(given.policies)}: expected two labels, such as old=outputs/old new=..."
        )
    if any(Path(label).name != label or label.startswith(".") for label in policies):
        raise ConfigError(f"--policies={' '.join(given.policies)}: labels become folders; use letters and digits")
    for label, checkpoint in policies.items():
        check_there(f"--policies {label}", checkpoint)
    if "{policy}" not in given.run:
        raise ConfigError(f"--run={given.run!r} has no {{policy}}: where does the checkpoint go?")
    try:
        given.run.format(policy="", setup=1, turn=1)
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigError(f"--run={given.run!r}: {error}; known are {{policy}}, {{setup}}, {{turn}}") from error
    try:
        words = shlex.split(given.run)
    except ValueError as error:
        raise ConfigError(f"--run={given.run!r}: {error}") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"--run={given.run!r}: there is no such command here")
    if given.n_setups < 6:
        raise ConfigError(f"--n_setups={given.n_setups}: fewer than 6 set-ups can't show any difference")
    if not 0 <= given.port < 2**16:
        raise ConfigError(f"--port={given.port}: expected 0 to {2**16 - 1}")
    if not 0 < given.alpha < 0.5:
        raise ConfigError(f"--alpha={given.alpha}: expected a level between 0 and 0.5, such as 0.05")
    # pandas and scipy take longer to import than wrong options take to be refused.
    from wm_tools.trial.blinded_trial import BlindedTrial
    from wm_tools.trial.phone_page import RobotRun, TrialServer

    stages = [name.strip() for name in given.stages.split(",") if name.strip()]
    blinded = BlindedTrial(given.output_dir, policies, given.task, given.n_setups, stages, given.alpha)
    robot = RobotRun(given.run, given.output_dir / "robot.log")
    for how in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal, say: as Ctrl-C, which stops the robot
        signal.signal(how, signal.default_int_handler)
    try:
        server = TrialServer((given.host, given.port), blinded, robot)
    except OSError as error:
        raise ConfigError(f"--host={given.host} --port={given.port}: {error.strerror}; choose another port") from error
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"Open on the phone: {server.url}\nDon't look into {given.output_dir} before the end.", flush=True)
    try:
        if server.state()["phase"] != "ended":
            server.has_ended.wait()
    finally:
        robot.stop()
        server.shutdown()
    print(blinded.summary())


def main() -> int:
    """Console script `wm-trial`."""
    return run_command("wm-trial", make_parser(), trial)


if __name__ == "__main__":
    sys.exit(main())
