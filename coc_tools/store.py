"""The label file: one `EpisodeLabel` per line, appended as episodes are labelled, and its twin for what failed.

`labels.jsonl` holds the good labels, `labels.failed.jsonl` the episodes that have none yet, with the reason and the
replies. A line is written in one call and synced; a kill leaves at most one torn line at the end, which the next run
cuts off.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from coc_tools.schema import EpisodeLabel, LineModel
from world_modality_core.io.errors import UserError
from world_modality_core.io.files import naming_full_disk, write_text


class StoreError(UserError):
    """A label file cannot be used."""


class Failure(LineModel):
    """Why an episode has no label: one line of `<name>.failed.jsonl`."""

    episode_index: int
    error: str
    replies: list[str]
    attempts: int
    date: str


def utc_now() -> str:
    """The time, UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def failed_path(path: Path) -> Path:
    """`labels.failed.jsonl` for `labels.jsonl`."""
    return path.with_name(f"{path.stem}.failed.jsonl")


def iter_labels(path: str | Path) -> Iterator[tuple[int, EpisodeLabel]]:
    """Read a label file line by line.

    Args:
        path: The label file.

    Yields:
        (offset of the line in bytes, label). A torn last line is passed over.

    Raises:
        StoreError: naming the line, if one is not a label or labels an episode for the second time.
    """
    seen: dict[int, int] = {}
    offset = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            if line.strip():
                try:
                    label = EpisodeLabel.model_validate_json(line)
                except ValidationError as error:
                    raise StoreError(
                        f"{path}, line {number}: not a label ({problem_of(error)}). Mend or delete it"
                    ) from error
                refuse_second(seen, label.episode_index, number, path)
                yield offset, label
            offset += len(line)


def refuse_second(seen: dict[int, int], episode: int, number: int, path: str | Path) -> None:
    """Note on which line an episode's label stands.

    Raises:
        StoreError: if it stands on an earlier one too.
    """
    first = seen.setdefault(episode, number)
    if first != number:
        raise StoreError(f"{path}, lines {first} and {number} are both of episode {episode}: delete one of them")


def problem_of(error: ValidationError) -> str:
    """The first thing that does not fit, with its field."""
    detail = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in detail["loc"])
    return f"{where}: {detail['msg']}" if where else detail["msg"]


def read_labels(path: str | Path) -> dict[int, EpisodeLabel]:
    """All labels of a file, by episode, in the order of the episodes.

    Raises:
        StoreError: as `iter_labels`.
    """
    labels = {label.episode_index: label for _, label in iter_labels(path)}
    return dict(sorted(labels.items()))


def read_failures(path: str | Path) -> dict[int, Failure]:
    """The last failure of each episode, from the `.failed.jsonl` of a label file; empty if there is none."""
    failures = {}
    failed = failed_path(Path(path))
    if failed.exists():
        for line in failed.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n") and line.strip():
                try:
                    failure = Failure.model_validate_json(line)
                except ValidationError as error:
                    raise StoreError(
                        f"{failed}: a line is not a failure ({problem_of(error)}). Delete the file"
                    ) from error
                failures[failure.episode_index] = failure
    return failures


class LabelFile(Mapping[int, EpisodeLabel]):
    """A label file that this process writes, as a mapping of episodes to labels; nobody else may write it meanwhile.

    Holds where each label lies, not the labels.

    Attributes:
        path: The file.
        torn: Text of the torn last line that was cut off on opening, "" if there was none.
    """

    def __init__(self, path: str | Path) -> None:
        """Open, or create, a label file for writing.

        Raises:
            StoreError: if it is damaged, or another process writes it.
        """
        self.path = Path(path).resolve()  # beside a link its locks and parts would lie elsewhere
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.path.with_name(f".{self.path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise StoreError(
                f"{self.path}: another coc-label writes this file; wait for it, or name another"
            ) from error
        try:
            self.torn = _cut_torn_line(self.path) + _cut_torn_line(failed_path(self.path))
            self._offsets = {label.episode_index: offset for offset, label in iter_labels(self.path)}
            self._drop_settled_failures()
            self._file = _open_append(self.path)
            self._failed = _open_append(failed_path(self.path))
        except BaseException:
            self._lock.release()
            raise

    def __enter__(self) -> LabelFile:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def __contains__(self, episode_index: object) -> bool:
        return episode_index in self._offsets  # Mapping's own would read the label

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self._offsets))

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, episode_index: int) -> EpisodeLabel:
        """Read the label of an episode."""
        with self.path.open("rb") as file:
            file.seek(self._offsets[episode_index])
            return EpisodeLabel.model_validate_json(file.readline())

    def append(self, label: EpisodeLabel) -> None:
        """Add a label; it is on disk when this returns.

        Raises:
            StoreError: if the episode has one already, or the file was removed or replaced meanwhile.
        """
        if label.episode_index in self._offsets:
            raise StoreError(f"{self.path}: episode {label.episode_index} is labelled already")
        self._check_is_there()
        offset = os.fstat(self._file).st_size
        with naming_full_disk(self.path):
            _write_line(self._file, label.to_line())
        self._offsets[label.episode_index] = offset

    def append_failure(self, failure: Failure) -> None:
        """Note why an episode has no label."""
        with naming_full_disk(failed_path(self.path)):
            _write_line(self._failed, failure.to_line())

    def _check_is_there(self) -> None:
        """Refuse to call labels written that nobody will find: a removed file goes on to take what is written to it.

        Raises:
            StoreError: if the file was removed or replaced meanwhile.
        """
        there = os.stat(self.path).st_ino if self.path.exists() else None
        if there != os.fstat(self._file).st_ino:
            raise StoreError(
                f"{self.path} was removed or replaced while coc-label wrote it, with {len(self)} labels: give the same "
                "command again, and leave the file where it is"
            )

    def close(self) -> None:
        """Settle the file of failures, leave no empty files, and let others write.

        Raises:
            StoreError: as `append`.
        """
        try:
            self._check_is_there()
        except StoreError:
            self._lock.release()
            raise
        finally:
            os.close(self._file)
            os.close(self._failed)
        try:
            self._drop_settled_failures()
            if not self._offsets:
                self.path.unlink()
        finally:
            self._lock.release()

    def _drop_settled_failures(self) -> None:
        """Keep the last failure of each episode that has no label; without any, no file."""
        path = failed_path(self.path)
        if not path.exists():
            return
        failures = sorted(read_failures(self.path).values(), key=lambda failure: failure.episode_index)
        lines = [failure.to_line() for failure in failures if failure.episode_index not in self._offsets]
        if lines:
            write_text(path, "".join(f"{line}\n" for line in lines))
        else:
            path.unlink()


def _open_append(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def _write_line(file: int, line: str) -> None:
    data, size = f"{line}\n".encode(), os.fstat(file).st_size
    try:
        while data:  # a write to a disk that is nearly full may be short
            data = data[os.write(file, data) :]
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)  # no half of a line
        raise


def _cut_torn_line(path: Path) -> str:
    """Cut what follows the last line break off a file; give it."""
    if not path.exists():
        path.touch()
        return ""
    with path.open("rb+") as file:
        size, tail = path.stat().st_size, b""
        while len(tail) < size and b"\n" not in tail:
            step = min(65536, size - len(tail))
            file.seek(size - len(tail) - step)
            tail = file.read(step) + tail
        torn = tail.rpartition(b"\n")[2]
        file.truncate(size - len(torn))
    return torn.decode(errors="replace")
