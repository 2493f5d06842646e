"""Staged latents: one file per episode beside the output, so that a killed run can go on where it stopped.

A file is written aside and renamed, so whatever carries its final name is whole; a kill costs the episodes in flight.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from filelock import FileLock

from world_modality_core.io.files import reading, writing
from world_modality_core.io.work_folder import WorkFolder

# Episodes in one folder: each write looks through it for what killed processes left.
_A_FOLDER = 1000


class Staging(WorkFolder):
    """The work folder `<output root>.partial` of a companion.

    Attributes:
        pca_path: Where the fitted PCA is kept.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.pca_path = root / "pca.safetensors"
        self._episodes = root / "episodes"

    def begin(self, request: dict, overwrite: bool = False) -> FileLock:
        """As `WorkFolder.begin`; the request is all that the latents depend on."""
        lock = super().begin(request, overwrite)
        self._episodes.mkdir(exist_ok=True)
        return lock

    def _path(self, episode: int) -> Path:
        return self._episodes / f"{episode // _A_FOLDER:03d}" / f"episode-{episode:06d}.npy"

    def has(self, episode: int) -> bool:
        """Whether the latents of an episode are staged."""
        return self._path(episode).exists()

    def write(self, episode: int, latents: np.ndarray) -> None:
        """Keep the latents of an episode: (t, p * d) float16."""
        with writing(self._path(episode)) as aside:
            aside.parent.mkdir(exist_ok=True)
            with aside.open("wb") as file:  # np.save would add .npy to a name
                np.save(file, latents)

    def read(self, episode: int) -> np.ndarray:
        """The latents of an episode: (t, p * d) float16, mapped from the file.

        Raises:
            DamagedFileError: if the file is damaged.
        """
        path = self._path(episode)
        with reading(path, "staged latents", "delete it and give the same command again: the episode is redone"):
            return np.load(path, mmap_mode="r")
