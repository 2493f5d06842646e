"""The folder that a run of `wm-intervene` writes: finished passes, and what they were made for."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json, read_parquet, read_tensors, writing
from world_modality_core.io.option_differences import option_differences


class Folder:
    """The output folder: finished passes, which are never run again, and the record.

    Args:
        root: The folder; made by `begin` if it doesn't exist.
        request: All that the numbers depend on.

    Raises:
        ConfigError: if it holds the numbers of another request.
    """

    def __init__(self, root: Path, request: dict):
        self.root, self._request = root, request
        self.parts = root / "parts"
        path = self.parts / "request.json"
        if path.exists():
            stored = read_json(path, dict)
            found = option_differences({key: stored.get(key) for key in request}, request)
            if found:
                raise ConfigError(
                    f"output_dir={str(root)!r} holds the numbers of another run ({'; '.join(found)}). Name another "
                    "folder, or remove this one"
                )
        elif root.exists() and any(each.name != self.parts.name for each in root.iterdir()):
            raise ConfigError(f"output_dir={str(root)!r} is not empty and no folder of wm-intervene; name another")

    def begin(self) -> AbstractContextManager:
        """Make the folder what it will be taken for, once nothing can be refused any more.

        Returns:
            To be held while writing.

        Raises:
            ConfigError: if another process is writing it.
        """
        self.parts.mkdir(parents=True, exist_ok=True)
        try:
            lock = FileLock(self.parts / ".lock").acquire(timeout=0)
        except Timeout:
            raise ConfigError(
                f"output_dir={str(self.root)!r}: another wm-intervene is writing there; wait for it, or name another"
            ) from None
        self.write_json("parts/request.json", self._request)
        return lock

    def has(self, name: str) -> bool:
        """Whether a pass is finished."""
        return (self.parts / f"{name}.parquet").exists()

    def write(self, name: str, rows: pd.DataFrame) -> None:
        """Write a table of `parts`, aside and renamed."""
        self.put(self.parts / f"{name}.parquet", lambda path: rows.to_parquet(path, index=False))

    def read(self, name: str) -> pd.DataFrame:
        """Read a table of `parts`."""
        return read_parquet(self.parts / f"{name}.parquet").to_pandas()

    def write_tensors(self, name: str, tensors: dict[str, torch.Tensor]) -> None:
        """Write tensors into `parts`, aside and renamed."""
        self.put(self.parts / f"{name}.safetensors", lambda path: save_file(tensors, path))

    def read_tensors(self, name: str) -> dict[str, torch.Tensor]:
        """Read tensors of `parts`."""
        return read_tensors(self.parts / f"{name}.safetensors")

    def write_json(self, name: str, content: dict) -> None:
        """Write a file, aside and renamed."""
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        self.put(self.root / name, lambda path: path.write_text(text))

    @staticmethod
    def put(path: Path, write: Callable[[Path], object]) -> None:
        """Let `write` write a file aside, then rename it."""
        with writing(path) as aside:
            write(aside)
