"""What all console scripts do: read their options, work, and say in one line what went wrong."""

from __future__ import annotations

import argparse
import difflib
import errno
import io
import os
import re
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from threading import current_thread, main_thread
from typing import Any

import draccus
from draccus.utils import DecodingError, DraccusException

from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import at_home, is_disk_full
from world_modality_core.io.first_look import look_first, typed_options
from world_modality_core.io.option_source import OpenOptionsError, options_in_source
from world_modality_core.io.progress import without_bars
from world_modality_core.io.quoting import QuotingStream, quoted

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""
READER_GONE = 141
"""Exit status where nobody reads what is printed any more (`wm-... | head`), as shells have it."""

_NOT_OURS = {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG}


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
    typed = [at_home(word) for word in (sys.argv[1:] if arguments is None else arguments)]
    with command_errors(command, remedy=remedy, status=status):
        if command != "wm-doctor":  # which says at length what a device lacks
            look_first(typed)
        result = work(_parsed(command, options, typed))
    return result if isinstance(result, int) else 0


def answer_early(command: str, module: str, options: str, needed: Mapping[str, str]) -> None:
    """Refuse what can be refused before a command's options are imported: for those whose options import LeRobot.

    Args:
        command: Name of the console script.
        module: Where the dataclass of its options is.
        options: That dataclass's name.
        needed: Options that must be given, and what each is; a file of options may give them too.

    Raises:
        SystemExit: as `command_errors`.
    """
    typed = sys.argv[1:]
    with command_errors(command), suppress(OpenOptionsError):
        look_first(typed)
        if "--help" in typed or "-h" in typed:
            return
        known, is_open = options_in_source(module, options)
        checked, is_left = [], False
        for word in typed:
            if word.startswith("--"):
                name = word[2:].partition("=")[0]
                # A file of options, and packages to import, are read by LeRobot's parser.
                is_left = name == "config_path" or "discover_packages_path" in name or name.split(".")[0] in is_open
            if not is_left:
                checked.append(word)
        _parsed(command, known, checked)
        given = {name for name, _ in typed_options(typed)}
        for name in needed if "config_path" not in given else ():
            if name not in given:
                raise ConfigError(f"{name} is not given: name {needed[name]}")


def _parsed(command: str, options: type | argparse.ArgumentParser, arguments: list[str]) -> Any:
    if isinstance(options, argparse.ArgumentParser):
        with _told_in_one_line(command, arguments):
            return options.parse_args(arguments)
    flags = {f"--{field.name}" for field in fields(options) if field.type in (bool, "bool")}
    # The parser wants --merge=true; a bare --merge means the same.
    arguments = [
        f"{argument}=true" if argument in flags and (after is None or after.startswith("--")) else argument
        for argument, after in zip_longest(arguments, arguments[1:])
    ]
    try:
        with _told_in_one_line(command, arguments):
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
        if "into a bool" in said:
            said += ". It is a switch: give it alone, or with =true or =false, after what stands by itself"
        if "list" in said:
            said += '. A list is given as --option=\'["a", "b"]\''
        raise ConfigError(said) from error


@contextmanager
def _told_in_one_line(command: str, arguments: list[str]) -> Iterator[None]:
    """One line, with the nearest option, in place of the usage that a parser prints before it exits.

    Raises:
        ConfigError: what the parser said.
    """
    printed = io.StringIO()
    try:
        with redirect_stderr(printed):
            yield
    except SystemExit as stop:
        usage, is_refusal, said = printed.getvalue().rpartition("error: ")
        if stop.code in (0, None) or not is_refusal:
            sys.stderr.write(printed.getvalue())
            raise
        said = re.sub(r"^argument (?=-)", "", " ".join(said.split()))
        known = set(re.findall(r"--[\w.-]+", usage))
        if "--policy" in known:  # LeRobot takes the path out of what it parses, and a simulator's options need its type
            known |= {"--policy.path", "--env.type", "--env.task"} if "--env" in known else {"--policy.path"}
        _, is_unknown, unknown = said.partition("unrecognized arguments: ")
        words = unknown.split() if is_unknown else arguments if "are required: " in said else []
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        # argparse takes the beginning of an option for it.
        wrong = [(o, _nearest(o, known)) for o in options if is_unknown or not any(k.startswith(o) for k in known)]
        if wrong:
            said = "; ".join(
                f"there is no option {word}" + (f", the nearest is {near}" if near else "") for word, near in wrong
            )
        elif is_unknown:
            said = f"{unknown!r} belongs to no option; options are given as --name=value"
        raise ConfigError(f"{said}; `{command} --help` lists the options") from None
    sys.stderr.write(printed.getvalue())


def _nearest(option: str, known: set[str]) -> str | None:
    """The known option that is spelled most like this one, or ends as it does (--root for --output.root)."""
    close = difflib.get_close_matches(option, known, n=1, cutoff=0.75)
    ends = sorted(each for each in known if each.endswith("." + option.lstrip("-")))
    return close[0] if close else ends[0] if ends else None


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

    A second Ctrl-C cuts short what still has to end (worker processes, say), whenever it comes.

    Args:
        command: Name of the console script.
        remedy: What the same command does, given again after Ctrl-C.
        status: Exit status where there is something to mend.

    Raises:
        SystemExit: with that status, 130 after Ctrl-C, or 141 if the reader of what is printed has gone. A fault of
            ours keeps its traceback.
    """
    stopped, pid, is_stopping = f"\n{command}: stopped; the same command {remedy}", os.getpid(), False

    def stop(number: int, frame: object) -> None:
        nonlocal is_stopping
        if is_stopping and os.getpid() == pid:  # a worker process may have inherited this
            os.write(2, f"{stopped}\n".encode())
            os._exit(INTERRUPTED)
        is_stopping = True
        raise KeyboardInterrupt

    is_ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler and current_thread() is main_thread()
    if is_ours:
        signal.signal(signal.SIGINT, stop)
    try:
        with redirect_stdout(QuotingStream(sys.stdout)), without_bars():
            yield
            print(end="", flush=True)
    except KeyboardInterrupt:
        is_stopping = True
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print(stopped, file=sys.stderr)
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # after this line, without a traceback
        sys.exit(INTERRUPTED)
    except UserError as error:
        if status == 1:
            sys.exit(f"{command}: {_one_line(error)}")
        print(f"{command}: {_one_line(error)}", file=sys.stderr)
        sys.exit(status)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _reader_has_gone():
            sys.exit(READER_GONE)
        said = _said_by_the_machine(error)
        if said is None:
            raise
        print(f"{command}: {said}; then the same command {remedy}", file=sys.stderr)
        sys.exit(status)
    finally:
        if is_ours and not is_stopping:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _said_by_the_machine(error: Exception) -> str | None:
    """What is wrong with a disk, a folder or a helper process, and the remedy; None where it is a fault of ours."""
    if is_disk_full(error):
        return f"{_one_line(error)}: the disk is full. Make room"
    if isinstance(error, OSError) and error.filename is not None:
        name = quoted(str(error.filename))
        if error.errno in _NOT_OURS:
            return f"{name}: {error.strerror}. Make the folder writable, or name another, or mend the disk"
        if error.errno == errno.EISDIR:
            return f"{quoted(str(error.filename2 or error.filename))} is a folder, where a file belongs. Name a file"
        if error.errno in (errno.EEXIST, errno.ENOTDIR) and Path(name).is_file():
            return f"{name} is a file, where a folder belongs. Name another place"
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not Path(name).parent.is_dir():
            return f"{name}: its folder is gone, something removed it meanwhile. Leave unfinished work where it is"
    if _is_helper_gone(error):
        return (
            f"a helper process was killed ({type(error).__name__}), as happens where memory runs out. Use fewer of "
            "them or smaller batches, or make memory free"
        )
    return None


def _is_helper_gone(error: Exception) -> bool:
    """Whether a process that works for this one ended before it answered."""
    if isinstance(error, BrokenExecutor):
        return True
    if isinstance(error, RuntimeError) and re.search(r"DataLoader worker \(pid.*\) (is killed|exited)", str(error)):
        return True
    if not isinstance(error, EOFError | OSError):
        return False
    # Without the lines' text: reading it takes long enough for the DataLoader's own alarm, raised by a signal.
    last, _ = list(traceback.walk_tb(error.__traceback__))[-1]
    return Path(last.f_code.co_filename).parts[-2:] == ("multiprocessing", "connection.py")


def _reader_has_gone() -> bool:
    """Whether stdout leads nowhere; if so it is pointed at nothing, since Python flushes it once more at its end."""
    stdout = select.poll()
    stdout.register(sys.stdout.fileno(), 0)
    if not any(event & select.POLLERR for _, event in stdout.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _one_line(error: Exception) -> str:
    return quoted(" ".join(str(error).split()))
