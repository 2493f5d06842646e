"""Latents on their way: one file per episode beside the output, so that a killed run can go on where it was.

A file is written aside and renamed, so whatever carries its final name is whole; a kill costs the episodes in flight.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from world_modality_core.io.errors import DamagedFileError
from world_modality_core.io.files import read_json, reading, write_text, writing
from world_modality_core.io.option_differences import option_differences
from world_modality_core.precompute.source import PrecomputeError

REQUEST_FILE = "request.json"
# A killed run's decoding processes hold its lock until they notice, which torch lets them do every 5 s.
LOCK_TIMEOUT_S = 15.0


class Staging:
    """The folder `<output root>.partial`.

    Attributes:
        root: The folder.
        pca_path: Where the fitted PCA is kept.
        dataset_root: Where the output dataset is assembled.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pca_path = root / "pca.safetensors"
        self.dataset_root = root / "dataset"
        self._episodes = root / "episodes"

    def begin(self, request: dict, overwrite: bool = False) -> FileLock:
        """Create the folder, or take up the one that a killed run left.

        Args:
            request: All that the latents depend on.
            overwrite: Whether to throw away the latents of another request.

        Returns:
            A lock held on the folder; release it when done. A killed process releases it too.

        Raises:
            PrecomputeError: if the folder belongs to another request, or another process is at work in it.
        """
        self._episodes.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.root / "lock")
        try:
            lock.acquire(timeout=LOCK_TIMEOUT_S)
        except Timeout as error:
            raise PrecomputeError(f"{self.root}: another wm-precompute is at work here; wait for it") from error
        path = self.root / REQUEST_FILE
        try:
            found = option_differences(read_json(path, dict), request) if path.exists() else []
        except DamagedFileError as error:
            lock.release()
            raise PrecomputeError(f"{error}, or delete {self.root} to begin anew") from error
        if found and not overwrite:
            lock.release()
            raise PrecomputeError(
                f"{self.root} holds the unfinished latents of another request ({'; '.join(found)}). "
                "Give that command again to finish them, or --overwrite to throw them away, or another --output.root"
            )
        if found or not path.exists():
            shutil.rmtree(self._episodes)
            self._episodes.mkdir()
            self.pca_path.unlink(missing_ok=True)
            write_text(path, json.dumps(request, indent=2))
        shutil.rmtree(self.dataset_root, ignore_errors=True)
        return lock

    def remove(self) -> None:
        """Delete the folder, if it is there."""
        shutil.rmtree(self.root, ignore_errors=True)

    def _path(self, episode: int) -> Path:
        return self._episodes / f"episode-{episode:06d}.npy"

    def has(self, episode: int) -> bool:
        """Whether the latents of an episode are here."""
        return self._path(episode).exists()

    def write(self, episode: int, latents: np.ndarray) -> None:
        """Keep the latents of an episode: (t, p * d) float16."""
        with writing(self._path(episode)) as aside, aside.open("wb") as file:  # np.save would add .npy to a name
            np.save(file, latents)

    def read(self, episode: int) -> np.ndarray:
        """The latents of an episode: (t, p * d) float16, mapped from the file.

        Raises:
            DamagedFileError: if the file is damaged.
        """
        path = self._path(episode)
        with reading(path, "staged latents", "delete it and give the same command again: the episode is redone"):
            return np.load(path, mmap_mode="r")
