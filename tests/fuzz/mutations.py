"""Damaged copies of valid files: what kills, disks, other programs and people who mean harm make of them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable
from typing import Any

NASTY = [
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf"), "", "x" * 5000,
    "../../../../tmp/outside", "/etc/passwd", "a/../../b", "..", "con\x00nul", "<script>alert(1)</script>",
    "\u202e\U0001f4a5", "\ud800", "{{ 7 * 7 }}", "${HOME}", "1", [], {}, [[]], [None], {"": {}}, [1e308, 1e308],
    ["a"] * 200, {"a": [{"b": 1}]},
]  # fmt: skip
TEXTS = [
    "[" * 100_000, '{"a":' * 20_000, "1" * 10_000, "-" * 300, "&a [*a, *a]", "!!python/object/apply:os.system [id]",
    "!!binary x", "? [a, b]", "2001-99-99", '&b "\\ud800"', "\ufeff", "{", "]", '"', ": ", "- ", "\t", "\x00", "\xff",
    "null",
]  # fmt: skip


def damaged(content: bytes, kind: str, rng: random.Random) -> bytes:
    """One damaged copy.

    Args:
        content: A valid file.
        kind: "json", "jsonl", "text" or "binary".
        rng: Source of chance.
    """
    if kind == "json" and rng.random() < 0.6:
        return _json(content, rng)
    if kind == "jsonl" and rng.random() < 0.7:
        lines = content.splitlines(keepends=True)
        i = rng.randrange(len(lines))
        change: Callable = rng.choice([_json_line, _json_line, _twice, _none, _bytes])
        return b"".join([*lines[:i], change(lines[i], rng), *lines[i + 1 :]])
    if kind != "binary" and rng.random() < 0.3:
        at = rng.randrange(len(content) + 1)
        cut = rng.choice([0, 0, 1, 10])
        return content[:at] + rng.choice(TEXTS).encode("utf-8", "surrogatepass") + content[at + cut :]
    return _bytes(content, rng)


def _bytes(content: bytes, rng: random.Random) -> bytes:
    """Flip, cut, drop, repeat or overwrite bytes; often at the ends, where headers and footers are."""
    changed = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 3, 20])):
        if not changed:
            break
        n = len(changed)
        at = rng.choice([rng.randrange(n), rng.randrange(min(n, 400)), n - 1 - rng.randrange(min(n, 400))])
        length = rng.choice([1, 2, 4, 8, 64])
        what = rng.randrange(6)
        if what == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del changed[at:]
        elif what == 2:
            del changed[at : at + length]
        elif what == 3:
            changed[at:at] = changed[at : at + length] * rng.choice([1, 2, 50])
        elif what == 4:
            changed[at : at + length] = rng.randbytes(length)
        else:
            changed[at : at + length] = rng.choice([b"\x00", b"\xff", b"\x7f"]) * length
    return bytes(changed)


def _json(content: bytes, rng: random.Random) -> bytes:
    """Replace, drop, add or double values somewhere in the tree."""
    tree = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        places = list(_places(tree))
        if not places:
            break
        where, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0:
            del where[key]
        elif what == 1 and isinstance(where, dict):
            where[str(rng.choice(NASTY))[:200]] = where.pop(key)
        elif what == 2 and isinstance(where, list):
            where.append(where[key])
        else:
            where[key] = copy.deepcopy(rng.choice(NASTY))
    if rng.random() < 0.03:
        tree = copy.deepcopy(rng.choice(NASTY))
    text = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    if rng.random() < 0.05 and text.startswith('{"'):  # a key twice
        end = text.index('":') + 2
        text = f"{text[:end]} 1, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


def _places(node: Any):
    """(container, key) of every value of a tree."""
    keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    for key in keys:
        yield node, key
        yield from _places(node[key])


def _json_line(line: bytes, rng: random.Random) -> bytes:
    return _json(line, rng) + b"\n"


def _twice(line: bytes, rng: random.Random) -> bytes:
    return line + line


def _none(line: bytes, rng: random.Random) -> bytes:
    return rng.choice([b"", b"\n", b"null\n", line.rstrip(b"\n")])
