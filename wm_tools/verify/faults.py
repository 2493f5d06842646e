"""What is wrong with an artefact, one line each, and the looking around that every kind of artefact needs."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from world_modality_core.io.errors import UserError
from world_modality_core.io.files import check_own

# Files that no artefact is made of, and that run when somebody opens or imports them.
_CODE = {".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".sh"}


class Faults:
    """A list of lines; checks add to it and go on.

    Attributes:
        lines: What is wrong, in the order in which it was found.
    """

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        """Note something."""
        line = " ".join(line.split())
        if line not in self.lines:
            self.lines.append(line)

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note an error that a user can mend, or a file that can't be read, and leave the rest of the block out."""
        try:
            yield
        except UserError as error:
            self.add(str(error))
        except OSError as error:
            if error.filename is None:
                raise
            self.add(f"{error.filename}: {error.strerror}")


def check_files(root: Path, faults: Faults) -> None:
    """Note links that lead out of the artefact or nowhere, what is no file, what may hold code, unfinished writes.

    Links of the Hub's snapshots to the blobs beside them, and a dataset's folder of videos on another disk, pass.
    """
    for folder, folders, names in os.walk(root):
        for path in (Path(folder, name) for name in sorted([*folders, *names])):
            with faults.noted():
                check_own(path, root)
            if not (path.is_file() or path.is_dir()):
                faults.add(f"{path} is neither a file nor a folder, or a link to nothing: remove it")
            if path.suffix in _CODE:
                faults.add(f"{path} may hold code, and is no part of any artefact: remove it")
            if path.name.endswith(".partial"):
                faults.add(f"{path} was not written to its end: give the command that wrote it again, or remove it")
