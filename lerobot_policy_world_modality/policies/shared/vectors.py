"""States and actions as the policies read them: vectors, whatever LeRobot's batches made of them.

LeRobot stores a feature of shape (1,) as a plain number. Its collated batches have the state as (b,), which the
processor that adds a batch axis turns into (1, b), and actions as (b, h).
"""

from __future__ import annotations

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
    """(b, s) normalised states of a batch."""
    state, feature = batch[OBS_STATE], config.robot_state_feature
    return state.reshape(-1, 1) if feature is not None and tuple(feature.shape) == (1,) else state


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
