"""Name the options in which what is on disk differs from what is asked for."""

from __future__ import annotations

import json
import os
from typing import Any

# Characters of a value that are shown.
MAX_SHOWN = 80


def option_differences(saved: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Compare two nested descriptions, as JSON has them (a tuple equals a list).

    Args:
        saved: What a file says.
        asked: What this command asks for.

    Returns:
        "name.of.option: saved 0.1, asked for 0.3" for each value that differs; a value that is missing shows as None.
    """
    return _compare(json.loads(json.dumps(saved)), json.loads(json.dumps(asked)))


def _compare(saved: dict[str, Any], asked: dict[str, Any], prefix: str = "") -> list[str]:
    lines = []
    for name in dict.fromkeys([*saved, *asked]):
        a, b = saved.get(name), asked.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            lines += _compare(a, b, f"{prefix}{name}.")
        elif a != b:
            first, second = _shown(a, b)
            lines.append(f"{prefix}{name}: saved {first}, asked for {second}")
    return lines


def _shown(a: Any, b: Any) -> tuple[str, str]:
    """Two unequal values as texts that differ: `1` and `'1'`; of long ones, from shortly before they part."""
    first, second = str(a), str(b)
    if first == second:
        first, second = repr(a), repr(b)
    n_common = len(os.path.commonprefix([first, second]))
    start = 0 if n_common < MAX_SHOWN // 2 else n_common - MAX_SHOWN // 4
    return _cut(first, start), _cut(second, start)


def _cut(text: str, start: int) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    end = start + MAX_SHOWN
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
