"""Known vulnerabilities of the versions in constraints.txt (`make audit`, and at the end of CI).

    build/audit/bin/python .ci/audit.py [--where_possible]

Exit status 1 if there is one, or if no source of advisories can be reached. With --where_possible the latter is said,
and is no failure: machines without a network can't know.
"""

import json
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[1]


def verdict(status: int, printed: str, complaint: str) -> tuple[str, str]:
    """What an audit found.

    Args:
        status: pip-audit's exit status.
        printed: What it printed: JSON, or nothing.
        complaint: What it wrote to stderr.

    Returns:
        "clean", "vulnerable" or "unknown"; and lines to print.
    """
    try:
        packages = json.loads(printed)["dependencies"]
    except (ValueError, KeyError, TypeError):
        reason = (complaint.strip().splitlines() or [f"pip-audit ended with status {status}"])[-1]
        return "unknown", f"NOT AUDITED: {reason}"
    found = [
        f"{package['name']} {package['version']}: {flaw['id']}, "
        f"mended in {', '.join(flaw['fix_versions']) or 'no release'}"
        for package in packages
        for flaw in package.get("vulns", [])
    ]
    if found:
        return "vulnerable", "\n".join(found)
    if status:
        return "unknown", f"NOT AUDITED: {(complaint.strip().splitlines() or ['?'])[-1]}"
    return "clean", f"no known vulnerability in {len(packages)} packages"


def main() -> int:
    """Audit; the exit status."""
    options = ["--no-deps", "--disable-pip", "--strict", "--format=json", "--progress-spinner=off"]
    command = [Path(sys.executable).parent / "pip-audit", "--requirement", REPO / "constraints.txt", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    state, said = verdict(done.returncode, done.stdout, done.stderr)
    print(said)
    return int(state == "vulnerable" or (state == "unknown" and "--where_possible" not in sys.argv))


if __name__ == "__main__":
    sys.exit(main())
