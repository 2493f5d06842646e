"""What it costs to ask a command for its help: CPU seconds of each console script with --help, in a process of its own.

A command whose options come from LeRobot's own classes is held to 1.3 times what importing these costs; one whose
options need no LeRobot to 1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).parent.parent
# The parts of LeRobot that a command's options are made of: its config classes, and those that ours extend.
POLICIES = "lerobot.configs.parser, lerobot.policies.smolvla.configuration_smolvla"
LEROBOT = {
    "wm-eval": f"{POLICIES}, lerobot.configs.eval, lerobot.envs.configs",
    "wm-intervene": POLICIES,
    "wm-record": "lerobot.configs.video, lerobot.envs.configs",
}


def cpu_seconds(code: str, repeats: int) -> float:
    """Median CPU seconds (user and system, children too) of a Python process that runs some code."""
    seconds = []
    for _ in range(repeats):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=REPO)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"exit status {os.waitstatus_to_exitcode(status)} of {code}")
        seconds.append(usage.ru_utime + usage.ru_stime)
    return statistics.median(seconds)


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    scripts = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
    rows = {}
    print(f"{'command':<15} {'--help (CPU s)':>14} {'limit':>6}  of")
    for name, entry in scripts.items():
        module, function = entry.split(":")
        text = f"import sys; sys.argv = ['{name}', '--help']; from {module} import {function}; sys.exit({function}())"
        seconds = cpu_seconds(text, args.repeats)
        parts = LEROBOT.get(name)
        limit = 1.3 * cpu_seconds(f"import {parts}", args.repeats) if parts else 1.0
        rows[name] = {"cpu_s": round(seconds, 2), "limit_cpu_s": round(limit, 2), "lerobot_parts": parts}
        print(
            f"{name:<15} {seconds:>14.2f} {limit:>6.2f}  {parts or 'no LeRobot'}{'' if seconds <= limit else '  OVER'}"
        )
    if args.json:
        from provenance import provenance

        args.json.write_text(
            json.dumps({**provenance(), "settings": {"repeats": args.repeats}, "commands": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
