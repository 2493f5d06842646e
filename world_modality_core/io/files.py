"""Reading and writing files that a kill, a full disk or another program may have damaged.

Everything is written aside and renamed, so whatever carries its final name is whole; what can't be read is named.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import MISSING, fields
from functools import cache
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from world_modality_core.io.errors import ConfigError, DamagedFileError, DiskFullError, UserError

if TYPE_CHECKING:  # pyarrow, torch: seconds that a command which only reads JSON need not wait for
    import pyarrow as pa
    import pyarrow.parquet as pq
    from torch import Tensor

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Of safetensors, which has the text alone, and of numpy, which has neither number nor text.
_DISK_FULL_TEXT = re.compile("|".join([*map(os.strerror, _DISK_FULL), r"\d+ requested and \d+ written"]))
# A file that is being written changes more often than once in these seconds, whatever the clocks of two machines say.
_LEFT_OVER_S = 24 * 3600
# How the name that `writing` writes to ends: whose, and for libraries that go by it.
_ASIDE = re.compile(r"\.([0-9a-f]{12})-(\d+)\.partial(?:\.\w+)?$")
_AGAIN = "delete it and give the command that wrote it again, or take a copy that is whole"


def inside(folder: str | Path, name: str, what: str) -> Path:
    """A path below a folder, from a name that may come from somebody else's file.

    Args:
        folder: The folder.
        name: Relative path in it.
        what: What the name is, for the message.

    Raises:
        ConfigError: if it leads out of the folder.
    """
    folder = Path(folder)
    try:
        path = Path(os.path.normpath(folder / name))
        is_inside = path.is_relative_to(os.path.normpath(folder)) and path != folder and "\0" not in name
        is_inside &= len(name) < 1000 and max(map(len, path.parts)) < 200  # what file systems take
    except (TypeError, ValueError):
        is_inside = False
    if not is_inside:
        raise ConfigError(
            f"{what}={name!r:.200} leads out of {folder}, or is too long: expected a name without '..' and leading '/'"
        )
    return path


def at_home(text: str) -> str:
    """A value, or an option with one, where `~/` is the home folder: shells know it at the beginning of a word only."""
    return re.sub(r"(?:^|(?<=[=,]))~(?=/|$)", lambda _: str(Path.home()), text)


def as_folder(name: str) -> str:
    """The name of weights as a config keeps it: a folder by its full path, so that it is found from anywhere."""
    return str(Path(name).resolve()) if name and Path(name).is_dir() else name


def check_own(path: Path, root: Path) -> None:
    """Check that a file in a folder is not a link to something else, which would be read, or carried away in a copy.

    Links of the Hub's snapshots lead to the `blobs` beside them, and pass; so does a dataset's folder of videos on
    another disk.

    Raises:
        ConfigError: naming the link.
    """
    root, real = root.resolve(), path.resolve()
    own = root.parent.parent if root.parent.name == "snapshots" else root
    if not real.is_relative_to(own) and not real.is_relative_to((root / "videos").resolve()):
        raise ConfigError(f"{path} is a link to {real}, outside of its folder: replace it by the file, or remove it")


# Writing.


@contextmanager
def writing(path: str | Path, ending: str = "") -> Iterator[Path]:
    """Write a file so that it is the old or the new one, whenever the process dies, the disk is full or power is cut.

    Args:
        path: The file.
        ending: How the name to write to must end, for libraries that go by it.

    Yields:
        The name to write to; it becomes `path` when the block ends, and is removed if the block fails.

    Raises:
        DiskFullError: naming the file.
    """
    path = Path(path)
    _remove_left_overs(path)
    aside = path.with_name(f"{path.name}.{_machine()}-{os.getpid()}.partial{ending}")
    with naming_full_disk(path):
        try:
            yield aside
            move_durably(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def holds_files(folder: Path) -> bool:
    """Whether a folder is there and holds anything but what a killed process was writing."""
    return folder.exists() and not all(_ASIDE.search(each.name) for each in folder.iterdir())


def _remove_left_overs(path: Path) -> None:
    """Remove what killed processes were writing; two that live may write a file at once, and the last one wins.

    A process is known to be dead where its number means something: on this machine, since it was booted, in this
    container. What was begun elsewhere (a shared disk) is left over once nothing was written to it for a day.
    """
    for left_over in path.parent.glob(f"{escape(path.name)}.*.partial*"):
        match = _ASIDE.fullmatch(left_over.name.removeprefix(path.name))
        with suppress(FileNotFoundError):  # its writer has ended meanwhile, or another process removed it
            if match and (
                not _is_alive(int(match[2]))
                if match[1] == _machine()
                else time.time() - left_over.stat().st_mtime > _LEFT_OVER_S
            ):
                left_over.unlink()


@cache
def _machine() -> str:
    """Names all processes among which a process's number is unique, on whatever machine a shared disk is seen from."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        return hashlib.sha256(f"{boot}{os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:12]
    except OSError:  # not Linux: no left-over is known by its number
        return uuid.uuid4().hex[:12]


def _is_alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        pass
    return True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file by `writing`."""
    with writing(path) as aside:
        aside.write_text(text, encoding="utf-8")


def move_durably(source: Path, target: Path) -> None:
    """`os.replace`, after which a power cut leaves all of what was moved, and the name (as SQLite has it)."""
    folders = [source, *(path for path in source.rglob("*") if path.is_dir())] if source.is_dir() else []
    for path in [*(path for folder in folders for path in folder.iterdir() if path.is_file()), *folders] or [source]:
        _sync(path)
    os.replace(source, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    """Have a file's content, or a folder's names, on the disk before this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # file systems that can't do that
            raise
    finally:
        os.close(descriptor)


@contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Turn whatever a library says of a full disk into one message.

    Args:
        path: File or folder that is written to.

    Raises:
        DiskFullError: naming it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_disk_full(error):
            raise
        free = _free_bytes(Path(path)) / 1e6
        raise DiskFullError(
            f"{path}: no room left to write ({free:.1f} MB free there). Make room on that disk, then give the same "
            "command again: what is finished is kept"
        ) from error


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that it was raised from, says that a disk, a quota or a file's size is at its end."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK_FULL:
            return True
        if _DISK_FULL_TEXT.search(str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def check_room(folder: Path, n_bytes: float, remedy: str) -> None:
    """Refuse work for which a disk has no room.

    Args:
        folder: Where it is written, be it there already or not.
        n_bytes: What is still to write; what a killed run has written already is no part of it.
        remedy: What to do.

    Raises:
        ConfigError: naming the folder and both sizes.
    """
    free = _free_bytes(folder)
    if n_bytes > free:
        sizes = f"{n_bytes / 1e6:,.1f} MB more are needed and {free / 1e6:,.1f} MB are free on that disk"
        raise ConfigError(f"{folder}: {sizes}; {remedy}")


def n_bytes_in(folder: Path) -> int:
    """Bytes of all files in a folder; 0 if there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _free_bytes(path: Path) -> int:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    return shutil.disk_usage(existing).free


# Reading.


@contextmanager
def reading(path: str | Path, what: str = "", remedy: str = _AGAIN) -> Iterator[None]:
    """Turn whatever a library says of a damaged file into one message.

    A missing file, one that may not be read, and errors that have such a message already stay what they are.

    Args:
        path: The file.
        what: What it should be.
        remedy: What to do.

    Raises:
        DamagedFileError: naming it.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        # Else what an OSError says is about its content: libav has numbers of its own for that.
        if isinstance(error, OSError) and not os.access(path, os.R_OK):
            raise
        said = " ".join(str(error).split())
        if _is_lfs_pointer(Path(path)):
            raise DamagedFileError(
                f"{path} is not the file itself but a pointer of Git LFS; fetch it: git lfs pull, in that repository"
            ) from error
        raise DamagedFileError(
            f"{path} can't be read{what and f' as {what}'}: it is cut short or damaged ({type(error).__name__}: "
            f"{said[:200]}); {remedy}"
        ) from error


def _is_lfs_pointer(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(40).startswith(b"version https://git-lfs.github.com/spec")


def read_json(path: str | Path, kind: type | tuple[type, ...] = object) -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        kind: What it must be: dict, list, ...

    Raises:
        DamagedFileError: naming the file, if it is no JSON, has a key twice, or is of another kind.
        OSError: if there is none.
    """
    with reading(path, "JSON"):
        content = parse_json(Path(path).read_bytes())
    if not isinstance(content, kind):
        raise DamagedFileError(f"{path} holds a JSON {type(content).__name__}, not what it should; {_AGAIN}")
    return content


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, but a key that stands twice is an error: the second would silently replace the first.

    Raises:
        ValueError: if it is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return values


def read_json_lines(path: str | Path, keys: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The objects of a JSONL file; a last line without a line break, cut off by a kill, is passed over.

    Args:
        path: The file.
        keys: Keys that each line must have, with a number.

    Raises:
        DamagedFileError: naming the line that is no such object.
        OSError: if there is no file.
    """
    lines = []
    for number, line in enumerate(Path(path).read_bytes().splitlines(keepends=True), start=1):
        try:
            content = parse_json(line)
            if not isinstance(content, dict):
                raise ValueError("not an object")
            if wrong := [key for key in keys if not _is_number(content.get(key))]:
                raise ValueError(f"{wrong[0]!r} is no number")
        except ValueError as error:
            if not line.endswith(b"\n"):
                break
            said = str(error)[:200]
            raise DamagedFileError(f"{path}, line {number}: {said}; mend or delete that line") from error
        lines.append(content)
    return lines


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def as_dataclass(cls: type, values: Any, path: str | Path) -> Any:
    """Build a dataclass from a JSON object, its fields' types checked.

    Args:
        cls: The dataclass.
        values: The object.
        path: Where it is from, for the message.

    Raises:
        DamagedFileError: naming the file and the field that is missing, unknown, or of another type.
    """
    types = get_type_hints(cls)
    values = checked(dict[str, Any], values, path)
    if unknown := sorted(set(values) - set(types)):
        raise DamagedFileError(
            f"{path}: {cls.__name__} has no field {unknown[0][:60]!r}: a newer release of this package wrote it, or "
            "the file is damaged"
        )
    required = [each.name for each in fields(cls) if each.default is MISSING and each.default_factory is MISSING]
    if missing := [name for name in required if name not in values]:
        raise DamagedFileError(f"{path}: {missing[0]} is missing; {_AGAIN}")
    return cls(**{name: checked(types[name], value, f"{path}: {name}") for name, value in values.items()})


def checked(kind: Any, values: Any, path: str | Path) -> Any:
    """Check what a file holds, without turning one type into another.

    Args:
        kind: What it must be: a `TypedDict`, `list[...]`, ...
        values: What it holds.
        path: The file, for the message.

    Returns:
        The values, without keys that a `TypedDict` doesn't name.

    Raises:
        DamagedFileError: naming the file and the field.
    """
    try:
        return _adapter(kind).validate_python(values, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = "".join(f"{part}: "[:100] for part in [".".join(map(str, first["loc"]))] if part)
        raise DamagedFileError(f"{path}: {where}{first['msg'][:200]}; {_AGAIN}") from error


@cache
def _adapter(kind: Any) -> TypeAdapter:
    return TypeAdapter(kind)


def read_tensors(path: str | Path, names: Iterable[str] = ()) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Args:
        path: The file.
        names: Tensors that it must have.

    Raises:
        DamagedFileError: naming the file.
        OSError: if there is none.
    """
    from safetensors.torch import load_file

    with reading(path, "safetensors"):
        tensors = load_file(path)
    if missing := sorted(set(names) - set(tensors)):
        raise DamagedFileError(f"{path}: {missing[0]!r} is missing among its {len(tensors)} tensors; {_AGAIN}")
    return tensors


def open_parquet(path: str | Path) -> pq.ParquetFile:
    """Open a parquet file to read it piece by piece, which `reading` has to surround too.

    Raises:
        DamagedFileError: naming the file.
        OSError: if there is none.
    """
    import pyarrow.parquet as pq

    with reading(path, "parquet"):
        return pq.ParquetFile(path)


def read_parquet(path: str | Path, columns: Sequence[str] | None = None) -> pa.Table:
    """A parquet file, or some of its columns.

    Raises:
        DamagedFileError: naming the file, if it is damaged or lacks a column.
        OSError: if there is none.
    """
    # Not `read_table`, which takes `a=b` in a folder's name for a column.
    with reading(path, "parquet"):
        with open_parquet(path) as file:
            if missing := sorted(set(columns or ()) - set(file.schema_arrow.names)):
                raise ValueError(f"no column {missing[0]!r}")
            return file.read(columns=columns)
