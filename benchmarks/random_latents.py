"""A table of random latents, read as a companion's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np

from world_modality_core.latents.latent_table import LatentTable


def random_companion(folder: Path, n_episodes: int, length: int, width: int) -> SimpleNamespace:
    """What a policy reads of a companion: `n_episodes` of `length` frames, each of `width` values p * d."""
    path = Path(folder) / "latents.npy"
    np.save(path, np.random.default_rng(0).normal(size=(n_episodes * length, width)).astype(np.float16))
    starts = np.arange(n_episodes) * length
    table = LatentTable(path, None, np.stack([starts, starts + length], axis=1))
    return SimpleNamespace(table=table, root=folder, info=SimpleNamespace(excluded=[]))
