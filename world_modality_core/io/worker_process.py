"""Worker processes that end when the command that started them does."""

from __future__ import annotations

import os
import signal
import threading
from multiprocessing import active_children, connection, parent_process


def follow_parent(stop: connection.Connection | None = None) -> None:
    """In a worker process: end when the command does, even if it was killed, or when it closes its end of `stop`.

    A terminal's Ctrl-C reaches the workers too; it is the command's to answer.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def wait_for_its_end() -> None:
        connection.wait([parent_process().sentinel, *([] if stop is None else [stop])])
        for child in active_children():
            child.terminate()
        os._exit(1)

    threading.Thread(target=wait_for_its_end, daemon=True).start()
