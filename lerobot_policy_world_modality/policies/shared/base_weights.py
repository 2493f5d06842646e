"""Starting a policy from another type's checkpoint (`--policy.init_from`)."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.constants import SAFETENSORS_SINGLE_FILE
from lerobot.policies import PreTrainedPolicy
from safetensors.torch import load_model

# Modules that the checkpoint of the base can't have.
_OF_THE_WORLD = ("world.", ".world_reader.", ".world_tokens.", ".world_prefix_reader.")


def load_base_weights(policy: PreTrainedPolicy, checkpoint: str, revision: str | None = None) -> None:
    """Load the weights of the base policy, and hold the checkpoint against the model.

    Args:
        policy: The policy, with its world built.
        checkpoint: Hub id or folder.
        revision: Hub revision.

    Raises:
        FileNotFoundError: if the checkpoint has no weights.
        ValueError: if a weight of the base is missing, one is left over, or shapes differ.
    """
    if Path(checkpoint).is_dir():
        file = Path(checkpoint) / SAFETENSORS_SINGLE_FILE
        if not file.is_file():
            raise FileNotFoundError(f"init_from={checkpoint!r} has no {SAFETENSORS_SINGLE_FILE}")
    else:
        file = hf_hub_download(checkpoint, SAFETENSORS_SINGLE_FILE, revision=revision)
    try:
        missing, unexpected = load_model(policy, file, strict=False)
    except RuntimeError as error:
        raise ValueError(
            f"init_from={checkpoint!r}: its weights have other shapes than this policy; an option that changes the "
            f"architecture was given (see {error})"
        ) from error
    missing = sorted(name for name in missing if not any(part in f".{name}" for part in _OF_THE_WORLD))
    if missing or unexpected:
        remedy = ""
        if any("normalize" in name for name in unexpected):
            remedy = (
                ". It was saved before LeRobot moved normalisation into processors; migrate it with `python -m "
                f"lerobot.processor.migrate_policy_normalization --pretrained-path={checkpoint}`"
            )
        raise ValueError(
            f"init_from={checkpoint!r} does not fit: missing {_some(missing)}, unexpected "
            f"{_some(sorted(unexpected))}{remedy}"
        )
    logging.info(f"init_from={checkpoint}: loaded all weights of the base")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{len(names)} weights ({shown}, ...)" if len(names) > 5 else shown
