"""Prompts: text files named `<name>_v<version>.txt`. What varies between episodes is never put into them, so that a
prompt's hash says which instructions a model had; it follows as a block of JSON (`coc_tools.request`).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from world_modality_core.io.errors import ConfigError

FOLDER = Path(__file__).parent
_NAME = re.compile(r"(?P<name>.+)_v(?P<version>[\w.]+)")


@dataclass(frozen=True)
class PromptFile:
    """A prompt.

    Attributes:
        name: Its name.
        version: Its version.
        text: The instructions, which come first.
    """

    name: str
    version: str
    text: str

    @property
    def sha256(self) -> str:
        """Hash of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def load_prompt(name: str) -> PromptFile:
    """Read a prompt of this package by name (`coc_v1`), or a text file by path.

    Raises:
        ConfigError: if there is none, or its name has no version.
    """
    path = FOLDER / f"{name}.txt"
    path = path if path.exists() else Path(name)
    match = _NAME.fullmatch(path.stem)
    if not path.is_file() or path.suffix != ".txt" or match is None:
        known = sorted(file.stem for file in FOLDER.glob("*.txt"))
        raise ConfigError(f"prompt={name!r}: expected one of {known}, or the path of a file <name>_v<version>.txt")
    return PromptFile(match["name"], match["version"], path.read_text(encoding="utf-8"))
