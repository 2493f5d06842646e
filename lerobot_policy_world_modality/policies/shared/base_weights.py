"""The weights of a policy whose layers read a memory: those of its base (`--policy.init_from`), and its own."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from lerobot.policies import PreTrainedPolicy
from safetensors.torch import load_file
from torch import Tensor

from world_modality_core.io.errors import ConfigError

# Modules that the checkpoint of the base can't have.
_OF_THE_WORLD = ("world.", ".world_reader.", ".world_tokens.", ".world_prefix_reader.")


def check_has_weights(checkpoint: str) -> None:
    """Refuse a folder without weights, before anything is built.

    Raises:
        ConfigError: naming the file.
    """
    if Path(checkpoint).is_dir() and not (Path(checkpoint) / SAFETENSORS_SINGLE_FILE).is_file():
        raise ConfigError(
            f"init_from={checkpoint!r} has no {SAFETENSORS_SINGLE_FILE}; weights in several files have to be loaded by "
            "their own class first, and saved with save_pretrained"
        )


def load_base_weights(policy: PreTrainedPolicy, checkpoint: str, revision: str | None = None) -> None:
    """Load the weights of the base policy, and hold the checkpoint against the model.

    Args:
        policy: The policy, with its world built.
        checkpoint: Hub id or folder.
        revision: Hub revision.

    Raises:
        ValueError: if a weight of the base is missing, one is left over, or shapes differ.
    """
    if Path(checkpoint).is_dir():
        file = Path(checkpoint) / SAFETENSORS_SINGLE_FILE
    else:
        file = hf_hub_download(checkpoint, SAFETENSORS_SINGLE_FILE, revision=revision)
    _load(policy, _renamed(policy, load_file(file)), f"init_from={checkpoint!r}")
    logging.info(f"init_from={checkpoint}: loaded all weights of the base")


def load_own_weights(policy: PreTrainedPolicy, file: Path) -> None:
    """Load a checkpoint of the policy's own type, or of its base where an adapter holds the rest.

    Raises:
        ValueError: if a weight is missing, one is left over, or shapes differ.
    """
    weights = load_file(file)
    _load(policy, weights if any(map(_is_of_the_world, weights)) else _renamed(policy, weights), str(file))


def _load(policy: PreTrainedPolicy, weights: dict[str, Tensor], source: str) -> None:
    own = policy.state_dict(keep_vars=True)
    wrong = [
        f"{name} {tuple(weights[name].shape)} != {tuple(own[name].shape)}"
        for name in sorted(weights.keys() & own.keys())
        if weights[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(
            f"{source}: its weights have other shapes than this policy's: {_some(wrong)}. State and action of the "
            "dataset must be as wide as those that it was trained on, and options that change the architecture its own"
        )
    missing, unexpected = policy.load_state_dict(weights, strict=False)
    # Weights that share their memory are saved under one of their names.
    loaded = {own[name].data_ptr() for name in weights if name in own}
    missing = sorted(name for name in missing if own[name].data_ptr() not in loaded)
    if not any(_is_of_the_world(name) for name in weights):
        missing = [name for name in missing if not _is_of_the_world(name)]
    if missing or unexpected:
        remedy = ""
        if any("normalize" in name for name in unexpected):
            remedy = (
                ". It was saved before LeRobot moved normalisation into processors; migrate it with `python -m "
                "lerobot.processor.migrate_policy_normalization --pretrained-path=CHECKPOINT`"
            )
        raise ValueError(
            f"{source} does not fit: missing {_some(missing)}, unexpected {_some(sorted(unexpected))}{remedy}"
        )


def _is_of_the_world(name: str) -> bool:
    return any(part in f".{name}" for part in _OF_THE_WORLD)


def _renamed(policy: PreTrainedPolicy, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of an older checkpoint under the names of today, by upstream's own tables."""
    if hasattr(policy, "_fix_pytorch_state_dict_keys"):  # PI0 and PI0.5: openpi's names
        weights = policy._fix_pytorch_state_dict_keys(weights, policy.config)
        return {name if name.startswith("model.") else f"model.{name}": value for name, value in weights.items()}
    module = importlib.import_module(policy.config.world_base.__module__.replace("configuration_", "modeling_"))
    if hasattr(module, "_remap_vendored_florence_state_dict") and module._is_vendored_florence_state_dict(weights):
        return module._remap_vendored_florence_state_dict(weights)  # X-VLA: its own copy of Florence-2
    return weights


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{len(names)} weights ({shown}, ...)" if len(names) > 5 else shown
