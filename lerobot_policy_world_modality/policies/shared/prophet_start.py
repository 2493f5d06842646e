"""Starting a policy from a Prophet that was trained before: as its Prophet, or as its trunk.

`--policy.prophet.init_from`: the Prophet itself. `--policy.trunk_init_from`: its layers as the trunk of a policy, the
control without a memory. `prophet_options` has settled sizes and options by then.
"""

from __future__ import annotations

import logging

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from torch import Tensor

from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import Companion
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.trunk import WorldTrunk
from world_modality_core.prophet.network import Prophet, rescale_input
from world_modality_core.prophet.saved_prophet import ProphetCheckpoint, ProphetWeights, lerobot_state_scale


def check_starts(config: PreTrainedConfig, companion: Companion | None) -> None:
    """Refuse a start that can't work, before anything is built.

    Args:
        config: A policy's config, its encoder resolved. Notes the checkpoint whose Prophet is to be frozen.
        companion: Its companion; None without a dataset to train on.

    Raises:
        ConfigError: if a start is given beside a checkpoint or without a companion, its latents are others than the
            companion's, or a Prophet that has learned nothing is to be frozen.
    """
    prophet = getattr(config, "prophet", None)
    starts = {
        "prophet.init_from": prophet and prophet.init_from,
        "trunk_init_from": getattr(config, "trunk_init_from", None),
    }
    if prophet and prophet.freeze and config.pretrained_path and not prophet.init_from:
        prophet.initialised_from = prophet.initialised_from or str(config.pretrained_path)
    if companion and prophet and prophet.freeze and not (prophet.init_from or prophet.initialised_from):
        raise ConfigError(
            "prophet.freeze=true without prophet.init_from would freeze a Prophet that has learned nothing; name one "
            "with --policy.prophet.init_from=FOLDER"
        )
    if (
        companion
        and prophet
        and prophet.tells_state
        and not (prophet.init_from or prophet.initialised_from or config.pretrained_path)
    ):
        raise ConfigError(
            "prophet.tells_state=true without prophet.init_from: no policy teaches its Prophet to tell states; train "
            "one with wm-prophet --prophet.tells_state=true --state_loss_weight=1, and name it with "
            "--policy.prophet.init_from=FOLDER"
        )
    trunk_starts = starts["trunk_init_from"] or getattr(config, "trunk_initialised_from", None)
    if companion and getattr(config, "freeze_trunk", False) and not trunk_starts:
        raise ConfigError(
            "freeze_trunk=true without trunk_init_from would freeze a trunk that has learned nothing; name a Prophet "
            "with --policy.trunk_init_from=FOLDER"
        )
    for name, start in starts.items():
        if not start:
            continue
        if config.pretrained_path:
            raise ConfigError(
                f"{name}={start!r} starts a new run, pretrained_path={str(config.pretrained_path)!r} goes on from a "
                "checkpoint; give one of them"
            )
        if companion is None:
            raise ConfigError(
                f"{name}={start!r} starts a training run, which needs a dataset and its companion of latents; train "
                "with lerobot-train and --policy.companion.root=FOLDER, or drop it"
            )
        mode = config.normalization_mapping.get("STATE")
        checkpoint = ProphetCheckpoint.read(start, name)
        if checkpoint.prophet.use_state and mode is not NormalizationMode.MEAN_STD:
            raise ConfigError(
                f"normalization_mapping: STATE is {mode}, and the Prophet of {name}={start!r} reads the state "
                "standardised; use MEAN_STD for STATE, or a Prophet without prophet.use_state"
            )
        # The companion's cameras as the policy names them, or as they are.
        wrong = checkpoint.encoder.differences(config.encoder)
        if wrong and checkpoint.encoder.differences(companion.spec):
            raise ConfigError(
                f"{name}={start!r} was trained on other latents than those of companion {companion.root} (Prophet's != "
                f"companion's): {'; '.join(wrong)}. Make the companion with wm-precompute --reuse_from=ONE_OF_THE_"
                "PROPHET'S_COMPANIONS, or train the Prophet on this one"
            )


def start_prophet(config: PreTrainedConfig, prophet: Prophet, space: LatentNormaliser, stats: dict) -> None:
    """Load what `prophet.init_from` names, and note that it was done: a checkpoint of the policy needs it no more.

    Args:
        config: The policy's config, checked by `check_starts`; changed in place.
        prophet: The policy's Prophet.
        space: Its world space: standardises as the Prophet's from here on.
        stats: The dataset's statistics, by which the processors normalise the state.
    """
    start = config.prophet.init_from
    if not start:
        return
    weights = ProphetCheckpoint.read(start, "prophet.init_from").weights()
    _load(prophet, weights.prophet, f"prophet.init_from={start!r}")
    _fit_state(prophet.state, weights, stats, f"prophet.init_from={start!r}")
    _take_space(space, weights)
    config.prophet.initialised_from, config.prophet.init_from = start, None
    how = "frozen (lambda_world has no effect)" if config.prophet.freeze else "to be trained on"
    logging.info(f"prophet.init_from={start}: loaded {sum(p.numel() for p in prophet.parameters())} weights, {how}")


def start_trunk(config: PreTrainedConfig, trunk: WorldTrunk, space: LatentNormaliser, stats: dict) -> None:
    """Copy the layers of the Prophet that `trunk_init_from` names into a trunk.

    Args:
        config: The policy's config, checked by `check_trunk_start` and `check_starts`; changed in place.
        trunk: The policy's trunk. What the Prophet doesn't have (action queries, world tokens, inputs that it doesn't
            read) keeps its initial values.
        space: The policy's world space: standardises as the Prophet's from here on.
        stats: The dataset's statistics, by which the processors normalise the state.

    Raises:
        ConfigError: if a Prophet of another world space was loaded already.
    """
    start = config.trunk_init_from
    if not start:
        return
    checkpoint = ProphetCheckpoint.read(start, "trunk_init_from")
    weights, field = checkpoint.weights(), f"trunk_init_from={start!r}"
    t = checkpoint.n_obs_steps
    copied = {
        "latent": _part(weights.prophet, "embed."),
        "encoder": _part(weights.prophet, "encoder."),
        "state": _part(weights.prophet, "state."),
        "language": _part(weights.prophet, "language."),
    }
    for name, values in copied.items():
        if values:
            _load(getattr(trunk, name), values, field)
    if checkpoint.prophet.use_state:
        _fit_state(trunk.state, weights, stats, field)
    with torch.no_grad():
        trunk.time.copy_(weights.prophet["time"][:t])
        trunk.cell.copy_(weights.prophet["slot"])
    loaded = getattr(config, "prophet", None) and config.prophet.initialised_from
    if loaded and not (torch.equal(space.mean, weights.mean) and torch.equal(space.std, weights.std)):
        raise ConfigError(
            f"{field} and prophet.init_from={loaded!r} standardise latents differently; name the same folder for both"
        )
    _take_space(space, weights)
    names = ["time", "cell", *(name for name, values in copied.items() if values)]
    fresh = sorted({name.split(".")[0] for name, _ in trunk.named_parameters()} - set(names))
    config.trunk_initialised_from, config.trunk_init_from = start, None
    logging.info(f"trunk_init_from={start}: copied {', '.join(names)}; initial values: {', '.join(fresh)}")


def _load(module: torch.nn.Module, values: dict[str, Tensor], field: str) -> None:
    shapes = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    wrong = [
        f"{name}: {tuple(values[name].shape) if name in values else 'missing'} != {shapes.get(name, 'none here')}"
        for name in sorted(shapes.keys() | values.keys())
        if name not in values or shapes.get(name) != tuple(values[name].shape)
    ]
    if wrong:
        raise ConfigError(f"{field} does not fit (its shape != the policy's): {'; '.join(wrong[:5])}")
    module.load_state_dict(values)


def _fit_state(layer: torch.nn.Linear | None, weights: ProphetWeights, stats: dict, field: str) -> None:
    """Let a layer that read the Prophet's normalised states read the policy's."""
    if layer is None:
        return
    shift, scale = lerobot_state_scale(stats)
    if shift.shape != weights.state_shift.shape:
        raise ConfigError(
            f"{field} reads a state of width {len(weights.state_shift)}, the dataset's has {len(shift)}; use a Prophet "
            "of this robot, or one without prophet.use_state"
        )
    # policy's x = (state - shift) / scale, Prophet's = (state - state_shift) / state_scale
    rescale_input(layer, scale / weights.state_scale, (shift - weights.state_shift) / weights.state_scale)


def _take_space(space: LatentNormaliser, weights: ProphetWeights) -> None:
    with torch.no_grad():
        space.mean.copy_(weights.mean)
        space.std.copy_(weights.std)


def _part(values: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
