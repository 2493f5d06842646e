"""Name the options in which what is on disk differs from what is asked for."""

from __future__ import annotations

import json
from typing import Any

# Characters of a value that are shown.
MAX_SHOWN = 80


def option_differences(there: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Compare two nested descriptions, as JSON has them (a tuple equals a list).

    Args:
        there: What a file says.
        asked: What this command asks for.

    Returns:
        "name.of.option: 0.1 there, 0.3 asked" for each value that differs; a value that is missing shows as None.
    """
    return _compare(json.loads(json.dumps(there)), json.loads(json.dumps(asked)))


def _compare(there: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    told = []
    for name in dict.fromkeys([*there, *asked]):
        a, b = there.get(name), asked.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            told += _compare(a, b, f"{prefix}{name}.")
        elif a != b:
            told.append(f"{prefix}{name}: {_short(a)} there, {_short(b)} asked")
    return told


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."
