"""Which checkpoint a record is of: its folder, its hash, and what it says about its training."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import safe_open

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json, reading

TRAIN_CONFIG = "train_config.json"

# In this order. An adapter's checkpoint has the second instead of the first.
_HASHED = ("model.safetensors", "adapter_model.safetensors", "config.json")

_FETCHED = ["*.safetensors", "*.json", "*.yaml", "README.md"]

# Folders of a path that say nothing about what was trained: <name>/train/checkpoints/<step>/pretrained_model.
_LAYOUT = {"pretrained_model", "checkpoints", "last", "train"}


def checkpoint_folder(name: str | Path, revision: str | None = None) -> Path:
    """Find a checkpoint, local or on the Hub.

    Raises:
        ConfigError: if there are no weights or no config, or it can't be downloaded from the Hub.
    """
    if Path(name).is_dir():
        folder = Path(name)
    else:
        # Only here, since they take a second to import.
        from huggingface_hub import snapshot_download

        from world_modality_core.io.hub_transfer import hub_errors

        with hub_errors(str(name), revision):
            # What a policy is made of: nothing else that a repository may hold is fetched.
            folder = Path(snapshot_download(str(name), revision=revision, allow_patterns=_FETCHED))
    if sum((folder / file).exists() for file in _HASHED) < 2:
        raise ConfigError(
            f"policy.path={str(name)!r} has no model.safetensors and config.json; name a `pretrained_model` folder"
        )
    read_json(folder / "config.json", dict)
    for name in _HASHED[:2]:  # the header says how long the file has to be
        if (folder / name).exists():
            with reading(folder / name, "a policy's weights", "take a copy that is whole, or another checkpoint"):
                with safe_open(folder / name, "numpy"):
                    pass
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
    return read_json(path, dict).get("seed") if path.exists() else None


def label_of(name: str | Path) -> str:
    """A label for what a checkpoint was trained as: the last part of its path that is not of LeRobot's layout."""
    parts = [part for part in Path(name).parts if part not in _LAYOUT and not part.isdigit() and part.strip("/.")]
    return parts[-1] if parts else "policy"
