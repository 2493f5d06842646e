"""What all console scripts do with errors, full disks and Ctrl-C."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from world_modality_core.errors import UserError
from world_modality_core.files import is_disk_full

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


@contextmanager
def told_in_one_line(
    command: str, *errors: type[Exception], remedy: str = "goes on from here", status: int = 1
) -> Iterator[None]:
    """End the process with one line where the user can mend what is wrong, or has stopped it.

    Args:
        command: Name of the console script.
        errors: Further exceptions that carry such a message, beside `UserError`.
        remedy: What the same command does, given again after Ctrl-C.
        status: Exit status where there is something to mend.

    Raises:
        SystemExit: with that status, or 130 after Ctrl-C. A fault of ours keeps its traceback.
    """
    try:
        yield
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
    except Exception as error:
        if not is_disk_full(error):
            raise
        sys.exit(f"{command}: {_one_line(error)}: the disk is full. Make room and give the same command again")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
