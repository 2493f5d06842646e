"""How far a long job is: one bar on a terminal, and elsewhere (a log, a pipe) a line now and then."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, Self, TextIO

from tqdm import tqdm

LINE_EVERY_S = 30.0
"""Without a terminal, a line comes at least this often, ..."""
LINE_EVERY_SHARE = 0.05
"""... after every such share of the work, ..."""
LINE_AT_MOST_EVERY_S = 2.0
"""... and not faster than this."""


class WithoutBars:
    """A stream that leaves out the progress bars that LeRobot, datasets and others draw by tqdm.

    Args:
        behind: The stream that everything else goes to, and `Progress`.
    """

    def __init__(self, behind: TextIO):
        self.behind = behind

    def write(self, text: str) -> int:
        """Write what is no part of a bar."""
        if text.startswith("\r") or (text and not text.replace("\x1b[A", "").strip("\n") and text != "\n"):
            return len(text)
        return self.behind.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.behind, name)


@contextmanager
def without_bars() -> Iterator[None]:
    """Leave the bars of others out of stderr, in processes that are started here too."""
    before = os.environ.get("HF_DATASETS_DISABLE_PROGRESS_BARS")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    try:
        with redirect_stderr(WithoutBars(sys.stderr)):
            yield
    finally:
        if before is None:
            del os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"]


class Progress:
    """Counts what is done and tells it, on stderr. Use it as a context manager.

    Args:
        what: The stage, such as "Encoding".
        total: How much there is to do.
        unit: In the plural, such as "frames".
        done: What was done before, in a run that goes on.
        is_shown: Whether this process tells anything.
    """

    def __init__(self, what: str, total: int, unit: str, done: int = 0, is_shown: bool = True):
        self.what, self.total, self.unit, self.n = what, total, unit, done
        self._done_before, self._started, self._notes = done, time.monotonic(), ""
        self._is_shown, self._shown_at, self._shown_n = is_shown, self._started, done
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._stream = getattr(sys.stderr, "behind", sys.stderr)
        self._bar: tqdm | None = None
        self._teller: threading.Thread | None = None
        if is_shown and self._stream.isatty():
            self._bar = tqdm(
                desc=what, total=total, initial=done, unit=" " + unit, file=self._stream, dynamic_ncols=True,
                smoothing=0.05,
            )  # fmt: skip

    def __enter__(self) -> Self:
        if self._is_shown and self._bar is None:
            self._teller = threading.Thread(target=self._tell_in_time, name="progress", daemon=True)
            self._teller.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._teller is not None:
            self._teller.join()  # else it may be printing when the interpreter ends, which Python answers with an abort
        if self._bar is not None:
            self._bar.close()
        elif self._is_shown and self._shown_n != self.n:
            self._tell()

    def update(self, n: int = 1) -> None:
        """`n` more are done."""
        self.reach(self.n + n)

    def reach(self, n: int) -> None:
        """`n` are done in all."""
        self.n = n
        if self._bar is not None:
            self._bar.update(n - self._bar.n)
        elif self._is_shown and n - self._shown_n >= LINE_EVERY_SHARE * self.total:
            self._tell(LINE_AT_MOST_EVERY_S)

    def note(self, **values: object) -> None:
        """What else the next line says, such as failed=2."""
        self._notes = "".join(f", {name}={value}" for name, value in values.items())
        if self._bar is not None:
            self._bar.set_postfix_str(self._notes.removeprefix(", "), refresh=False)

    def _tell_in_time(self) -> None:
        while not self._ended.wait(LINE_EVERY_S / 10):
            self._tell(LINE_EVERY_S)

    def _tell(self, not_within_s: float = 0.0) -> None:
        with self._lock:
            now = time.monotonic()
            if now - self._shown_at < not_within_s or (not_within_s and self._ended.is_set()):
                return
            self._shown_at, self._shown_n = now, self.n
            print(self._line(now - self._started), file=self._stream, flush=True)

    def _line(self, seconds: float) -> str:
        share = f" ({self.n / self.total:.0%})" if self.total else ""
        line = f"{self.what}: {self.n}/{self.total} {self.unit}{share}"
        if (new := self.n - self._done_before) > 0 and seconds > 0:
            rate = new / seconds
            line += f", {rate:.3g} {self.unit}/s" if rate >= 0.1 else f", {60 * rate:.3g} {self.unit}/min"
            if self.n < self.total:
                line += f", {_in_words((self.total - self.n) / rate)} left"
        return line + self._notes


def told[T](items: Iterable[T], what: str, total: int, unit: str) -> Iterator[T]:
    """The items, with a `Progress` that counts them."""
    with Progress(what, total, unit) as progress:
        for item in items:
            yield item
            progress.update()


def _in_words(seconds: float) -> str:
    if seconds < 90:
        return f"about {round(seconds)} s"
    minutes = round(seconds / 60)
    return f"about {minutes} min" if minutes < 90 else f"about {seconds / 3600:.1f} h"
