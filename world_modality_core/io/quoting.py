r"""Text that comes from files and is shown: what a terminal or browser would act upon is written out, as by ls.

An escape sequence in a model's name can move the cursor, set a window's title or hide a line; marks that turn the
direction of writing make one name look like another.
"""

from __future__ import annotations

import re
from typing import Any, TextIO

# C0 but for tab and line break, DEL, C1, marks of direction, and halves of surrogate pairs.
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def quoted(text: str) -> str:
    r"""The text with `\x1b`, `\u202e`, ... in place of characters that are not shown but acted upon."""
    return _NOT_SHOWN.sub(lambda found: ascii(found[0])[1:-1], text)


class QuotingStream:
    """A stream that quotes what is printed to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(quoted(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
