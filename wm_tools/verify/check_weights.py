"""Artefacts that hold weights: checkpoints of policies, Prophets, monitors."""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins
from torch import Tensor

from lerobot_policy_world_modality.hub.trusted_files import PROCESSOR_FILES, open_checkpoint
from wm_tools.verify.faults import Faults
from world_modality_core.io.errors import DamagedFileError
from world_modality_core.io.files import read_json, read_json_lines, read_tensors, reading
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.prophet.network import Prophet
from world_modality_core.prophet.saved_prophet import CURVE_FILE, ProphetCheckpoint

_AGAIN = "take a copy that is whole"


def check_checkpoint(folder: Path, source: None, faults: Faults) -> str:
    """A policy's checkpoint: what its files name, its config, and that all tensors are there and finite."""
    register_third_party_plugins()
    open_checkpoint(folder)
    with reading(folder / "config.json", "a policy's config", _AGAIN):
        config = PreTrainedConfig.from_pretrained(folder)
    files = [path for path in sorted(folder.glob("*model.safetensors"))]
    for name in PROCESSOR_FILES:
        steps = read_json(folder / name)["steps"] if (folder / name).is_file() else []
        files += [folder / step["state_file"] for step in steps if "state_file" in step]
        if not (folder / name).is_file():
            faults.add(f"{folder / name} is missing: {_AGAIN}")
    n_values = sum(_check_finite(path, faults) for path in files)
    return f"a {config.type} of {n_values:,} numbers"


def _check_finite(path: Path, faults: Faults) -> int:
    """How many numbers a file of tensors holds; infinite statistics are what LeRobot writes of what it didn't see."""
    with faults.noted():
        tensors = read_tensors(path)
        bad = [name for name, value in tensors.items() if value.is_floating_point() and value.isnan().any()]
        if bad:
            faults.add(f"{path}: {bad[0]!r:.100} holds NaN, as do {len(bad) - 1} others; {_AGAIN}")
        return sum(value.numel() for value in tensors.values())
    return 0


def check_prophet(folder: Path, source: None, faults: Faults) -> str:
    """A Prophet: its config, and that its weights are those of such a Prophet."""
    checkpoint = ProphetCheckpoint.read(folder, "path")
    weights = checkpoint.weights()
    spec, options = checkpoint.encoder, checkpoint.prophet
    widths = {"state": 0, "language": 0} | {
        name: weights.prophet[f"{name}.weight"].shape[1]
        for name in ("state", "language")
        if weights.prophet.get(f"{name}.weight", torch.empty(0)).ndim == 2
    }
    if options.tells_state and "displacement.bias" in weights.prophet:
        widths["state"] = len(weights.prophet["displacement.bias"])
    file = folder / "model.safetensors"
    with reading(file, "a Prophet", _AGAIN), torch.device("meta"):
        network = Prophet(
            spec.n_tokens, spec.dim, checkpoint.n_obs_steps, checkpoint.n_future_steps, options,
            state_dim=widths["state"], language_dim=widths["language"],
        )  # fmt: skip
    _check_shapes(network.state_dict(), weights.prophet, file)
    _check_finite(file, faults)
    with faults.noted():
        read_json_lines(folder / CURVE_FILE, ["step"])
    return f"{checkpoint.n_obs_steps} frames to {checkpoint.n_future_steps}, {spec.family}"


def _check_shapes(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    for name in sorted(expected.keys() | found.keys()):
        want, have = (tuple(each[name].shape) if name in each else None for each in (expected, found))
        if want != have:
            raise DamagedFileError(f"{path}: {name[:100]!r} has shape {have}, and the config asks for {want}; {_AGAIN}")


def check_monitor(folder: Path, source: None, faults: Faults) -> str:
    """A monitor: loading one holds every tensor against the description."""
    monitor = Monitor.load(folder, "path")
    return f"{len(monitor.description.tasks)} tasks, scores {', '.join(monitor.score_names)}"
