"""Which checkpoint a record is of: its folder, its hash, and what it says about its training."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from safetensors import safe_open

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json, reading

TRAIN_CONFIG = "train_config.json"

THROUGH_MEMORY = "images through the memory alone"
"""What a policy sees whose memory is its only eyes."""

# In this order. An adapter's checkpoint has the second instead of the first.
_HASHED = ("model.safetensors", "adapter_model.safetensors", "config.json")

_FETCHED = ["*.safetensors", "*.json", "*.yaml", "README.md"]

# Folders of a path that say nothing about what was trained: <name>/train/checkpoints/<step>/pretrained_model.
_LAYOUT = {"pretrained_model", "pretrained_model_ema", "checkpoints", "last", "train"}


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


def training_facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint's own files say of its training and of what it sees, as the columns of an episode's row.

    Nothing is guessed: what they don't say is None.

    Args:
        folder: The checkpoint's.
    """
    config = read_json(folder / "config.json", dict)
    path = folder / TRAIN_CONFIG
    train = read_json(path, dict) if path.exists() else {}
    dataset, steps, batch_size = train.get("dataset") or {}, train.get("steps"), train.get("batch_size")
    kinds = {feature["type"] for feature in (config.get("input_features") or {}).values()}
    images = "images" if "VISUAL" in kinds else ""
    if images and config.get("use_vision") is False:
        images = THROUGH_MEMORY if config.get("see_through_memory") else ""
    starts = {
        "base": config.get("initialised_from") or config.get("init_from"),
        "trunk": config.get("trunk_initialised_from"),
        "prophet": (config.get("prophet") or {}).get("initialised_from"),
    }
    cotrained = config.get("action_free_episodes") or []
    return {
        "dataset": dataset.get("repo_id"),
        "episodes": _episodes(dataset) if dataset else None,
        "action_free": _ranges(cotrained) or _prophet_episodes(starts["prophet"] or starts["trunk"]),
        "train_steps": steps,
        "samples": steps * batch_size if steps and batch_size else None,
        "starts_from": ", ".join(f"{role}:{_weights_hash(name)}" for role, name in starts.items() if name) or None,
        "sees": images or "no images",
        "memory_content": (config.get("memory") or {}).get("content"),
        "weights": next((_file_hash(folder / name) for name in _HASHED[:2] if (folder / name).exists()), None),
    }


def _episodes(dataset: dict[str, Any]) -> str:
    """Which episodes were trained on; `exclude_episodes` is LeRobot's from 0.6.2 on."""
    named, excluded = dataset.get("episodes"), dataset.get("exclude_episodes")
    if named:
        return _ranges(sorted(set(named).difference(excluded or ())))
    return f"all but {_ranges(excluded)}" if excluded else "all"


def _ranges(numbers: list[int]) -> str:
    """Such as "0-4,7", of numbers in any order."""
    ends: list[list[int]] = []
    for number in sorted(numbers):
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in ends)


def _weights_hash(name: str) -> str:
    """Beginning of the SHA-256 of the weights that a training started from; "not here" where they aren't."""
    file = Path(name) / "model.safetensors"
    return _file_hash(file) if file.is_file() else "not here"


def _file_hash(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()[:16]


def _prophet_episodes(name: str | None) -> str | None:
    """Episodes, without actions, that a Prophet was trained on; None where its folder isn't here or doesn't say."""
    path = Path(name or "/nowhere", "config.json")
    training = read_json(path, dict).get("training") if name and path.is_file() else None
    return "; ".join(_ranges(each["episodes"]) for each in training["companions"]) if training else None


def label_of(name: str | Path) -> str:
    """A label for what a checkpoint was trained as: the last part of its path that is not of LeRobot's layout.

    The moving average of its weights, which LeRobot writes beside them from 0.6.2 on, is another policy.
    """
    parts = [part for part in Path(name).parts if part not in _LAYOUT and not part.isdigit() and part.strip("/.")]
    averaged = "_ema" if Path(name).name.endswith("_ema") and Path(name).name in _LAYOUT else ""
    return (parts[-1] if parts else "policy") + averaged
