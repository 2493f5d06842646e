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
from world_modality_core.io.commands import command_errors


def make_parser() -> argparse.ArgumentParser:
    """The command's options."""
    parser = argparse.ArgumentParser(prog="wm-doctor", description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run encoders and policies")
    parser.add_argument("--env", choices=["libero"], help="check this simulator alone: its files, a reset, its scenes")
    parser.add_argument("--fix", action="store_true", help="with --env: first write or download the files it lacks")
    parser.add_argument("--assets", type=Path, help="with --fix: LIBERO's folder `assets`, if you have one: is linked")
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    return parser


def main() -> int:
    """Print the table; exit code 1 if a row is FAIL."""
    parser = make_parser()
    arguments = parser.parse_args()
    if (arguments.fix and not arguments.env) or (arguments.assets and not arguments.fix):
        parser.error("--assets needs --fix, and --fix needs --env=libero: only LIBERO's files can be put in place here")
    if not arguments.fix:
        os.environ.setdefault("HF_HUB_OFFLINE", "1")  # looks at what is here; downloads nothing
    with command_errors("wm-doctor", remedy="starts again"):
        if arguments.env:
            from wm_tools.doctor.libero_checks import check_libero, fix_libero

            fixed = guarded("fix", lambda: fix_libero(arguments.assets)) if arguments.fix else []
            rows = [*fixed, *guarded("renderer", checks.check_renderers), *guarded("libero", check_libero)]
        else:
            rows = checks.diagnose(arguments.device)
        print(json.dumps([asdict(row) for row in rows], indent=2) if arguments.json else format_table(rows))
    return int(any(row.status == "FAIL" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
