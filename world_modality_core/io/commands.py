"""What all console scripts do with errors, full disks, Ctrl-C and a reader that has gone."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from world_modality_core.io.errors import UserError
from world_modality_core.io.files import is_disk_full

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
READER_GONE = 141
"""Exit status where nobody reads what is printed any more (`wm-... | head`), as shells have it."""


@contextmanager
def command_errors(
    command: str, *errors: type[Exception], remedy: str = "goes on from here", status: int = 1
) -> Iterator[None]:
    """End the process with one line where the user can mend what is wrong, or has stopped it.

    Args:
        command: Name of the console script.
        errors: Further exceptions that carry such a message, beside `UserError`.
        remedy: What the same command does, given again after Ctrl-C.
        status: Exit status where there is something to mend.

    Raises:
        SystemExit: with that status, 130 after Ctrl-C, or 141 if the reader of what is printed has gone. A fault of
            ours keeps its traceback.
    """
    try:
        yield
        print(end="", flush=True)
    except KeyboardInterrupt:
        # What still has to end (worker processes, say) may be cut short by a second Ctrl-C, without a traceback.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        print(f"\n{command}: stopped; the same command {remedy}", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except (UserError, *errors) as error:
        if status == 1:
            sys.exit(f"{command}: {_one_line(error)}")
        print(f"{command}: {_one_line(error)}", file=sys.stderr)
        sys.exit(status)
    except BrokenPipeError:
        if not _reader_has_gone():  # some other pipe: a worker's
            raise
        sys.exit(READER_GONE)
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.exit(f"{command}: {_one_line(error)}: the disk is full. Make room and give the same command again")


def _reader_has_gone() -> bool:
    """Whether stdout leads nowhere; if so it is pointed at nothing, since Python flushes it once more at its end."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in stdout.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
