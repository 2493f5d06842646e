"""Frames that a policy learns from beside its batches, without their actions: where the robot's state will be."""

from __future__ import annotations

from pathlib import Path

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import Companion
from world_modality_core.prophet.data import CompanionFrames
from world_modality_core.prophet.saved_prophet import lerobot_state_scale

N_FRAMES = 128
"""Frames drawn a step: wm-prophet's `batch_size`."""


class ActionFreeFrames:
    """Draws frames of a companion, labelled or not.

    Args:
        companion: Their latents.
        source: Folder of the dataset that is trained on, all of whose states are read.
        stats: The dataset's statistics, by which the processors normalise the state.
        episodes: Which to draw from; None for all.
        offsets: k frames ahead at which the state is asked for.

    Raises:
        ConfigError: if the companion lacks an episode.
    """

    def __init__(
        self,
        companion: Companion,
        source: Path,
        stats: dict[str, dict[str, Tensor]],
        episodes: list[int] | None,
        offsets: list[int],
    ):
        self._frames = CompanionFrames([companion], [source])
        self._offsets, n_episodes = offsets, len(companion.bounds)
        if wrong := [episode for episode in episodes or [] if not 0 <= episode < n_episodes]:
            raise ConfigError(
                f"action_free_episodes: {wrong[0]} is no episode of companion {companion.root}, which has {n_episodes}"
            )
        bounds = companion.bounds[sorted(set(episodes)) if episodes else slice(None)]
        self._index = torch.cat([torch.arange(start, end) for start, end in bounds.tolist()])
        self._shift, self._scale = lerobot_state_scale(stats)

    def draw(self, reader: LatentReader, step: int, device: torch.device) -> tuple[WorldBatch, Tensor, Tensor]:
        """Draw the frames of an optimiser step, the same whenever that step is taken.

        Args:
            reader: Of the policy.
            step: Optimiser steps so far.
            device: Where the policy is.

        Returns:
            What the policy sees there, how far the state will have moved (b, k, s), normalised, and (b, k) True beyond
            the end of the episode.
        """
        generator = torch.Generator().manual_seed(step)
        index = self._index[torch.randint(len(self._index), (N_FRAMES,), generator=generator)]
        frames = self._frames
        states = (frames.states_at(index, [0, *self._offsets]) - self._shift) / self._scale
        batch = {
            "index": index,
            OBS_STATE: states[:, 0].to(device),
            "task": [frames.tasks[task] for task in frames.task[index].tolist()],
        }
        _, is_pad = frames.companions[0].table.rows(index, self._offsets)
        moved = (states[:, 1:] - states[:, :1]).to(device)
        return reader.recorded(batch, device), moved, torch.from_numpy(is_pad).to(device)
