"""What all console scripts do: read their options, work, and say in one line what went wrong."""

from __future__ import annotations

import argparse
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from itertools import zip_longest
from typing import Any

import draccus
from draccus.utils import DecodingError, DraccusException

from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import is_disk_full

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
READER_GONE = 141
"""Exit status where nobody reads what is printed any more (`wm-... | head`), as shells have it."""


def run_command(
    command: str,
    options: type | argparse.ArgumentParser,
    work: Callable[[Any], Any],
    arguments: Sequence[str] | None = None,
    *,
    remedy: str = "goes on from here",
    status: int = 1,
) -> int:
    """Read a command's options, then do its work: the `main` of every console script.

    Args:
        command: Name of the console script.
        options: A dataclass of options, or a parser. What `work` needs beyond them is best imported there: a help text
            or a wrong option is then answered at once.
        work: Called with the options. If it returns a number, that is the exit status.
        arguments: What was typed after the command's name; the process's own by default.
        remedy: As for `command_errors`.
        status: As for `command_errors`.

    Returns:
        The exit status.

    Raises:
        SystemExit: as `command_errors`.
    """
    with command_errors(command, remedy=remedy, status=status):
        result = work(_parsed(command, options, list(sys.argv[1:] if arguments is None else arguments)))
    return result if isinstance(result, int) else 0


def _parsed(command: str, options: type | argparse.ArgumentParser, arguments: list[str]) -> Any:
    if isinstance(options, argparse.ArgumentParser):
        return options.parse_args(arguments)
    flags = {f"--{field.name}" for field in fields(options) if field.type in (bool, "bool")}
    # The parser wants --merge=true; a bare --merge means the same.
    arguments = [
        f"{argument}=true" if argument in flags and (after is None or after.startswith("--")) else argument
        for argument, after in zip_longest(arguments, arguments[1:])
    ]
    try:
        if hasattr(options, "__get_path_fields__") or any("discover_packages_path=" in each for each in arguments):
            return _parsed_by_lerobot(options, arguments)
        return draccus.parse(options, args=arguments, prog=command)
    except DraccusException as error:
        # The parser hides what a config class says behind a text of its own.
        cause: BaseException | None = error
        while isinstance(cause, DraccusException):
            cause = cause.__cause__
        if isinstance(cause, UserError):
            raise ConfigError(str(cause)) from error
        said = str(error) if isinstance(error, DecodingError) else f"{error} {cause or ''}"
        if "list" in said:
            said += '. A list is given as --option=\'["a", "b"]\''
        raise ConfigError(said) from error


def _parsed_by_lerobot(options: type, arguments: list[str]) -> Any:
    """Read options that name a checkpoint (`--policy.path`) or packages to import, which is LeRobot's own extension."""
    from lerobot.configs import parser

    def take(cfg: Any) -> Any:
        return cfg

    take.__annotations__["cfg"] = options
    sys.argv[1:] = arguments
    return parser.wrap()(take)()


@contextmanager
def command_errors(command: str, remedy: str = "goes on from here", status: int = 1) -> Iterator[None]:
    """End the process with one line where the user can mend what is wrong, or has stopped it.

    Args:
        command: Name of the console script.
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
    except UserError as error:
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
