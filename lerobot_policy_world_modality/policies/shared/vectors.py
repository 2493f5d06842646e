"""States and actions as the policies read them: vectors, whatever LeRobot's batches made of them.

LeRobot stores a feature of shape (1,) as a plain number. Its collated batches have the state as (b,), which the
processor that adds a batch axis turns into (1, b), and actions as (b, h).
"""

from __future__ import annotations

import numpy as np
from lerobot.configs import PreTrainedConfig
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from world_modality_core.io.errors import ConfigError


def check_vectors(config: PreTrainedConfig) -> None:
    """Refuse states and actions that are no vectors.

    Raises:
        ConfigError: naming the feature.
    """
    for key, feature in {OBS_STATE: config.robot_state_feature, ACTION: config.action_feature}.items():
        if feature is not None and len(feature.shape) != 1:
            raise ConfigError(
                f"{key} has shape {tuple(feature.shape)}: the policies read vectors; record it as a feature of one axis"
            )


def state_vectors(batch: dict[str, Tensor], config: PreTrainedConfig) -> Tensor:
    """(b, s) normalised states of a batch, without what entries that never moved in training do now."""
    state, feature = batch[OBS_STATE], config.robot_state_feature
    if feature is not None and tuple(feature.shape) == (1,) and state.ndim < 3:  # (b, n_obs_steps, s) has all its axes
        state = state.reshape(-1, 1)
    if config.constant_state:
        state = state.clone()
        state[..., config.constant_state] = 0.0
    return state


def constant_entries(stats: dict[str, np.ndarray]) -> list[int]:
    """Entries of a feature that never move, by the rounding of float32, according to its statistics."""
    low, high = (np.asarray(stats[name], dtype=np.float64).reshape(-1) for name in ("min", "max"))
    return np.flatnonzero(high - low <= 1e-6 * np.maximum(np.abs(low), np.abs(high))).tolist()


def entry_names(names: object, n: int) -> list[str]:
    """What a feature calls its n entries, however deeply its `names` are nested; their numbers where it doesn't."""
    found = _flat_names(names)
    return [f"{i} {name}" for i, name in enumerate(found)] if len(found) == n else [str(i) for i in range(n)]


def _flat_names(names: object) -> list[str]:
    if isinstance(names, dict):
        return [name for each in names.values() for name in _flat_names(each)]
    if isinstance(names, list | tuple):
        return [name for each in names for name in _flat_names(each)]
    return [] if names is None else [str(names)]


def with_vectors(batch: dict[str, Tensor], config: PreTrainedConfig) -> dict[str, Tensor]:
    """A batch for a forward pass that is not ours: its state as `state_vectors`, actions of one number as (b, h, 1)."""
    found = {}
    if isinstance(batch.get(OBS_STATE), Tensor):
        found[OBS_STATE] = state_vectors(batch, config)
    actions = batch.get(ACTION)
    if isinstance(actions, Tensor) and tuple(config.action_feature.shape) == (1,) and actions.ndim == 2:
        found[ACTION] = actions.unsqueeze(-1)
    return {**batch, **found}


def action_vectors(batch: dict[str, Tensor], config: PreTrainedConfig) -> Tensor:
    """(b, h, a) normalised actions of a training batch.

    Raises:
        ValueError: if they have another shape, which would broadcast against the policy's.
    """
    actions = batch[ACTION]
    if tuple(config.action_feature.shape) == (1,) and actions.ndim == 2:
        actions = actions.unsqueeze(-1)
    wanted = (config.chunk_size, config.action_feature.shape[0])
    if tuple(actions.shape[1:]) != wanted:
        raise ValueError(
            f"{ACTION} has shape {tuple(batch[ACTION].shape)} in the batch: expected (b, chunk_size, width) = "
            f"(b, {wanted[0]}, {wanted[1]}), as lerobot-train gives them"
        )
    return actions
