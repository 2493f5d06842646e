"""Our tests against LeRobot's newest release, or a checkout of it (`make nightly`, `make nightly LEROBOT=FOLDER`).

Installs it here, whatever bound pyproject.toml sets, runs the tests, and prints one summary of what broke.

    build/nightly/venv/bin/python .ci/nightly.py [--lerobot=FOLDER] [pytest's arguments]
"""

import os
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path

REPO = Path(__file__).parents[1]
RECORD = REPO / "build" / "nightly" / "tests.xml"
SHOWN = (
    "lerobot",
    "torch",
    "transformers",
    "huggingface-hub",
    "datasets",
    "accelerate",
    "peft",
    "metaworld",
    "mujoco",
    "numpy",
)


def newest(pyproject: str, checkout: str = "") -> list[str]:
    """What to install: LeRobot with our extras of it but without our bound; the rest as this project asks for it.

    Args:
        pyproject: Text of this project's pyproject.toml.
        checkout: Folder with LeRobot's repository, in place of its newest release.
    """
    project = tomllib.loads(pyproject)["project"]
    # libero compiles a package; the tests' environment does without it.
    optional = [wanted for extra, wanted in project["optional-dependencies"].items() if extra != "libero"]
    extras, others = set(), []
    for wanted in sum(optional, project["dependencies"]):
        if match := re.match(r"lerobot\[([^\]]*)\]", wanted):
            extras |= set(match[1].split(","))
        else:
            others.append(wanted)
    where = f" @ {Path(checkout).resolve().as_uri()}" if checkout else ""
    return [f"lerobot[{','.join(sorted(extras))}]{where}", *others]


def upgrade(checkout: str = "") -> None:
    """Install the newest of everything. pip warns that this project wants an older LeRobot, and does it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--upgrade", "--upgrade-strategy=eager"]
    wanted = newest((REPO / "pyproject.toml").read_text(), checkout)
    subprocess.run([*command, "--disable-pip-version-check", *wanted], check=True)


def summary(record: Path) -> tuple[str, int]:
    """Say what a run of the tests found.

    Args:
        record: JUnit XML that pytest wrote.

    Returns:
        The text, and the number of tests that failed or could not run.
    """
    broken, counts = defaultdict(list), defaultdict(int)
    for case in ElementTree.parse(record).iter("testcase"):
        found = {child.tag: child for child in case}
        state = next((state for state in ("error", "failure", "skipped") if state in found), "passed")
        counts[state] += 1
        if state in ("error", "failure"):
            # One change upstream breaks many tests in the same words.
            why = (found[state].get("message") or "no message").strip().splitlines()[0][:200]
            broken[why].append(f"{case.get('classname')}.{case.get('name')}")
    lines = [
        "LeRobot's newest release (or the checkout) and our tests",
        "  " + ", ".join(f"{name} {version(name)}" for name in SHOWN),
    ]
    lines.append("  " + ", ".join(f"{counts[state]} {state}" for state in ("passed", "failure", "error", "skipped")))
    for why, names in sorted(broken.items(), key=lambda item: -len(item[1])):
        lines.append(f"\n{len(names)} x {why}")
        lines += [f"    {name}" for name in names[:5]]
        if len(names) > 5:
            lines.append(f"    and {len(names) - 5} more")
    if not broken:
        lines.append("Nothing broke." if counts["passed"] else "No test ran.")
    return "\n".join(lines), counts["failure"] + counts["error"]


def main() -> None:
    chosen = [argument for argument in sys.argv[1:] if argument.startswith("--lerobot=")]
    upgrade(chosen[-1].partition("=")[2] if chosen else "")
    RECORD.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "not gpu and not hub", "--dist", "loadfile", "-q", "--tb=line"]
    command += ["--hypothesis-profile=default", f"--junit-xml={RECORD}"]
    command += [argument for argument in sys.argv[1:] if argument not in chosen]
    quiet = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    status = subprocess.run(command, cwd=REPO, env={**os.environ, **quiet}).returncode
    if not RECORD.exists():
        sys.exit(f"pytest ended with status {status} before any test")
    text, n_broken = summary(RECORD)
    print(f"\n{text}\n\nRecord: {RECORD.relative_to(REPO)}")
    sys.exit(1 if n_broken or status else 0)


if __name__ == "__main__":
    main()
