"""The lines of wm-doctor's table."""

from __future__ import annotations

import contextlib
import io
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DISTRIBUTION = "lerobot_policy_world_modality"


@dataclass
class Row:
    """One line of the table.

    Attributes:
        check: What was looked at.
        status: "ok", "warn" (something optional is missing) or "FAIL".
        found: What was found.
        remedy: What to do about it; empty if nothing is to be done.
    """

    check: str
    status: str
    found: str
    remedy: str = ""


def guarded(check: str, run: Callable[[], list[Row]]) -> list[Row]:
    """Turn an exception into a row, so that the other checks still run, and keep what libraries print to ourselves."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return run()
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        reason = (str(error).strip().splitlines() or [""])[0]
        found = f"{type(error).__name__}: {reason} ({Path(where.filename).name}:{where.lineno})"
        return [Row(check, "FAIL", found, "see the error; `pip check` finds packages that don't fit together")]


def format_table(rows: list[Row]) -> str:
    """The rows as text, remedies below the rows that have one."""
    width = max(len(row.check) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"{row.status:<5} {row.check:<{width}}  {row.found}")
        if row.remedy:
            lines.append(f"{'':<5} {'':<{width}}  -> {row.remedy}")
    n_failed, n_warned = (sum(row.status == status for row in rows) for status in ("FAIL", "warn"))
    verdict = f"{n_failed} of {len(rows)} checks failed" if n_failed else f"all {len(rows)} checks passed"
    return "\n".join([*lines, "", verdict + (f", {n_warned} with a warning" if n_warned else "")])
