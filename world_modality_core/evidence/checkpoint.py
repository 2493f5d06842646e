"""Which checkpoint a record is of: its folder, its hash, and what it says about its training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from huggingface_hub import snapshot_download

from world_modality_core.errors import ConfigError

TRAIN_CONFIG = "train_config.json"

# In this order. An adapter's checkpoint has the second instead of the first.
_HASHED = ("model.safetensors", "adapter_model.safetensors", "config.json")

# Folders of a path that say nothing about what was trained: <name>/train/checkpoints/<step>/pretrained_model.
_LAYOUT = {"pretrained_model", "checkpoints", "last", "train"}


def checkpoint_folder(name: str | Path, revision: str | None = None) -> Path:
    """Find a checkpoint, local or on the Hub.

    Raises:
        ConfigError: if there are no weights or no config.
    """
    folder = Path(name) if Path(name).is_dir() else Path(snapshot_download(str(name), revision=revision))
    if sum((folder / file).exists() for file in _HASHED) < 2:
        raise ConfigError(
            f"policy.path={str(name)!r} has no model.safetensors and config.json; name a `pretrained_model` folder"
        )
    return folder


def checkpoint_hash(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights and config, in hexadecimal."""
    digest = hashlib.sha256()
    for name in _HASHED:
        if (folder / name).exists():
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 22):
                    digest.update(block)
    return digest.hexdigest()


def training_seed(folder: Path) -> int | None:
    """The seed of the training run, None if the checkpoint doesn't say."""
    path = folder / TRAIN_CONFIG
    return json.loads(path.read_text()).get("seed") if path.exists() else None


def label_of(name: str | Path) -> str:
    """A label for what a checkpoint was trained as: the last part of its path that is not of LeRobot's layout."""
    parts = [part for part in Path(name).parts if part not in _LAYOUT and not part.isdigit() and part.strip("/.")]
    return parts[-1] if parts else "policy"
