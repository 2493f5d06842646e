"""How far the robot really moved: what the oracle fills a memory of states with."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_world_modality.intervention.examined_policy import ExaminedPolicy
from lerobot_policy_world_modality.intervention.frames import Frames
from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.prophet.saved_prophet import ProphetCheckpoint


def state_scale(examined: ExaminedPolicy) -> Tensor | None:
    """The unit in which a policy's Prophet measures the robot's state, from the folder that it was started from.

    Returns:
        (s,) standard deviations; None if the folder is gone, is a policy's (whose Prophet may be of a third one), or
        holds another Prophet than the policy's frozen one.
    """
    options = examined.config.prophet
    try:
        checkpoint = ProphetCheckpoint.read(options.initialised_from or "", "prophet.initialised_from")
        weights = None if checkpoint.is_of_policy else checkpoint.weights()
    except (ConfigError, DamagedFileError, OSError):
        return None
    if weights is None or weights.state_scale is None:
        return None
    own, saved = examined.prophet.displacement.weight, weights.prophet.get("displacement.weight")
    is_same = saved is not None and own.shape == saved.shape
    if options.freeze:
        is_same = is_same and torch.equal(own.cpu(), saved)
    return weights.state_scale if is_same else None


def displacements(examined: ExaminedPolicy, frames: Frames, scale: Tensor) -> Iterator[Tensor]:
    """For each batch, how far the state will have moved at each future step: (b, k, s), as the Prophet measures it.

    Only for frames whose whole future was recorded; beyond the end of an episode the robot stays where it is.
    """
    config = examined.config
    ahead = [config.future_stride * i for i in range(1, config.n_future_steps + 1)]
    for moved in frames.moves(OBS_STATE, ahead):
        yield (moved / scale).to(examined.device)
