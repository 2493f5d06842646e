"""`wm-doctor`: does this installation work? Versions, discovery, rendering, encoders, a round of every policy type."""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from wm_tools.doctor import checks
from wm_tools.doctor.rows import format_table, guarded
from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="wm-doctor", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run encoders and policies")
    parser.add_argument("--env", choices=["libero"], help="check this simulator alone: its files, a reset, its scenes")
    parser.add_argument("--fix", action="store_true", help="with --env: first write or download the files it lacks")
    parser.add_argument("--assets", type=Path, help="with --fix: LIBERO's folder `assets`, if you have one: is linked")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def diagnose(given: argparse.Namespace) -> int:
    """Print the table; 1 if a row is FAIL."""
    if (given.fix and not given.env) or (given.assets and not given.fix):
        raise ConfigError("--assets needs --fix, and --fix needs --env=libero: it puts LIBERO's files in place")
    if not given.fix:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # looks at what is here; downloads nothing
    if given.env:
        from wm_tools.doctor.libero_checks import check_libero, fix_libero

        fixed = guarded("fix", lambda: fix_libero(given.assets)) if given.fix else []
        rows = [*fixed, *guarded("renderer", checks.check_renderers), *guarded("libero", check_libero)]
    else:
        rows = checks.diagnose(given.device)
    print(json.dumps([asdict(row) for row in rows], indent=2) if given.json else format_table(rows))
    return int(any(row.status == "FAIL" for row in rows))


def main() -> int:
    """Console script `wm-doctor`."""
    return run_command("wm-doctor", make_parser(), diagnose, remedy="starts again")


if __name__ == "__main__":
    sys.exit(main())
