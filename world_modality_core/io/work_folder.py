"""The folder beside an output where a command keeps unfinished work, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.io.files import move_durably, n_bytes_in, read_json, write_text
from world_modality_core.io.option_differences import option_differences

REQUEST_FILE = "request.json"
LOCK_FILE = "lock"
# A killed run's decoding processes hold its lock until they notice, which torch lets them do every 5 s.
LOCK_TIMEOUT_S = 15.0


class WorkFolder:
    """A folder `<output>.partial` that belongs to one command at a time.

    Its `request.json` says that it is a command's own, and for which options. Only a folder that has one is ever
    changed or removed: another one of that name is a user's.

    Attributes:
        root: The folder.
        dataset_root: Where the output is assembled in it.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.dataset_root = root / "dataset"

    def begin(self, request: dict, overwrite: bool = False) -> FileLock:
        """Create the folder, or take up the one that a killed run left.

        Args:
            request: All that the work depends on.
            overwrite: Whether to throw away the work for another request.

        Returns:
            A lock held on the folder; release it when done. A killed process releases it too.

        Raises:
            ConfigError: if the folder is a user's, holds work for another request, or another process uses it.
        """
        self._check_own()
        path = self.root / REQUEST_FILE
        is_begun = path.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / LOCK_FILE)
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout:
            raise ConfigError(f"{self.root}: another process is at work here; wait for it to end") from None
        try:
            if is_begun and not path.exists():
                shutil.rmtree(self.root, ignore_errors=True)
                raise ConfigError(f"{self.root}: another process was at work here and has finished; look at its output")
            self._take_up(request, overwrite)
        except BaseException:
            lock.release()
            raise
        return lock

    def _check_own(self) -> None:
        if not self.root.exists() or (self.root / REQUEST_FILE).is_file():
            return
        # A run that was killed before it could write its request leaves no more than these.
        others = [path.name for path in self.root.iterdir() if path.name.split(".")[0] not in (LOCK_FILE, "request")]
        if others:
            raise ConfigError(
                f"{self.root} was not written by this command (it holds {others[0]!r} and no {REQUEST_FILE}), and "
                "unfinished work is kept in a folder of that name: move it away, or name another output"
            )

    def _take_up(self, request: dict, overwrite: bool) -> None:
        path = self.root / REQUEST_FILE
        try:
            differing = option_differences(read_json(path, dict), request) if path.exists() else []
        except DamagedFileError as error:
            raise ConfigError(f"{error}, or delete {self.root} to begin anew") from error
        if differing and not overwrite:
            raise ConfigError(
                f"{self.root} holds the unfinished work of another request ({'; '.join(differing)}). Give that command "
                "again to finish it, or --overwrite to throw it away, or name another output"
            )
        if differing:
            self._empty()
        if differing or not path.exists():
            write_text(path, json.dumps(request, indent=2))
        shutil.rmtree(self.dataset_root, ignore_errors=True)

    def _empty(self) -> None:
        for path in self.root.iterdir():
            if path.name not in (REQUEST_FILE, LOCK_FILE):
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def publish(self, root: Path) -> None:
        """Move the assembled output to `root` and remove this folder; what is at `root` already is replaced."""
        replaced = self.root / "replaced"
        if root.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(root, replaced)
        move_durably(self.dataset_root, root)  # before what it was made of is deleted
        self.remove()

    def is_for(self, request: dict) -> bool:
        """Whether the folder holds the unfinished work of a request."""
        path = self.root / REQUEST_FILE
        return path.is_file() and not option_differences(read_json(path, dict), request)

    def n_bytes(self, request: dict) -> int:
        """Bytes of a request's unfinished work: what is not done again, and what is deleted before it is."""
        return n_bytes_in(self.root) if self.is_for(request) else 0

    def remove(self, request: dict | None = None) -> None:
        """Delete the folder, if it is the command's own; with a request, only where it holds the work for that one."""
        if not (self.root / REQUEST_FILE).is_file() or (request is not None and not self.is_for(request)):
            return
        self._empty()  # the request goes last: a folder without one is a user's
        shutil.rmtree(self.root, ignore_errors=True)


def write_folder(root: Path, request: dict, write: Callable[[Path], object]) -> None:
    """Write a folder aside, in `<root>.partial`, and move it to `root`, where it appears whole or not at all.

    Args:
        root: The folder; what is there already is replaced.
        request: What is written, so that a later run knows its own unfinished work.
        write: Called with the folder to write to, which does not exist. If it fails its half is deleted, which is of
            no use and takes the room.

    Raises:
        ConfigError: if `<root>.partial` is not a command's own, or in use.
    """
    work = WorkFolder(root.with_name(f"{root.name}.partial"))
    lock = work.begin(request, overwrite=True)
    try:
        write(work.dataset_root)
        work.publish(root)
    except BaseException:
        # No more than that: what was at `root` may be in the work folder.
        shutil.rmtree(work.dataset_root, ignore_errors=True)
        raise
    finally:
        lock.release()
