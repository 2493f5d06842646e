"""The memories that a policy can be given offline, and plans made with each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from lerobot_policy_world_modality.intervention.examined_policy import ExaminedPolicy
from lerobot_policy_world_modality.intervention.frames import Frames
from lerobot_policy_world_modality.intervention.true_states import displacements, state_scale
from world_modality_core.configs import MemoryConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.sources import MemorySource, may_show

# Why no frame has the memory of a source that exchanges memories, by whose memory it shows.
_ALONE = {
    "any_task": "all frames are of one episode",
    "same_task": "no two of the episodes share a task",
    "other_task": "the episodes have one task only",
}


def scored_frames(frames: Frames, source: MemorySource, stale_frames: int, future_frames: int) -> np.ndarray:
    """Frames (f,) for which a source has a memory to give: only these count, in the clean error too.

    Args:
        frames: The frames.
        source: The source.
        stale_frames: Age of a stale memory.
        future_frames: Frames of the recorded future that the oracle needs.
    """
    is_scored = np.ones(len(frames), bool)
    if source.traits.is_offline:
        is_scored = frames.left >= future_frames
    elif source is MemorySource.stale:
        is_scored = frames.step >= stale_frames
    elif partner := source.traits.partner:
        for part in frames.parts:
            episode, task = frames.episode[part, None], frames.task[part, None]
            is_scored[part] = may_show(partner, episode != episode.T, task == task.T).any(1)
    return is_scored


def why_not(examined: ExaminedPolicy, frames: Frames, source: MemorySource, is_scored: np.ndarray) -> str | None:
    """Why a source says nothing here; None if it does."""
    if examined.memory is None:
        return f"{examined.config.type} reads no memory" if examined.prophet is None else "its action path reads none"
    if source is MemorySource.gate_closed:
        return None if examined.readers else "it reads its memory without a gate"
    if source.traits.past and not examined.memory.past.n_frames:
        return "its memory holds no past"
    if source.traits.past and examined.memory.past.source is not None:
        return f"it acts with {examined.memory.past.source.value} anyway"
    if not examined.host.config.n_future_steps and not source.traits.past:
        return "its memory holds no forecast"
    if not examined.has_latents and not source.traits.is_blind:
        return "the policy uses no latents at all"
    if examined.host.config.n_future_steps < source.traits.n_steps:
        return f"it predicts {examined.host.config.n_future_steps} future step"
    try:
        examined.memory.check_content(asked_for(source, examined.memory))
    except ConfigError:
        return f"the memory holds the Prophet's states (memory.content={examined.memory.content})"
    if tells_truth(source, examined.memory) and state_scale(examined) is None:
        start = examined.config.prophet.initialised_from
        return f"the unit of its Prophet's states is unknown: {start} is gone, or is not what it started from"
    if not is_scored.any():
        if source.traits.is_offline:
            return "no frame has a recorded future"
        return _ALONE.get(source.traits.partner, "no episode is that long (stale_plans)")
    return None


@torch.no_grad()
def plans(
    examined: ExaminedPolicy, frames: Frames, source: MemorySource | None, seed: int, stale_frames: int
) -> Iterator[tuple[np.ndarray, dict, dict, Tensor]]:
    """Plan from all frames with the memory of a source; noise and draws are the same for every source.

    Args:
        examined: The policy.
        frames: The frames.
        source: Where its memory comes from; None for a policy without one.
        seed: Seed of noise and draws.
        stale_frames: Age of a stale memory.

    Yields:
        Places (b,) in `frames`, the batch as loaded, the preprocessed batch, and the normalised plan (b, h, a).
    """
    earlier = frames.earlier(stale_frames) if source is MemorySource.stale else None
    moved = displacements(examined, frames, state_scale(examined)) if tells_truth(source, examined.memory) else None
    asked = None if examined.memory is None else asked_for(source, examined.memory)
    for number, (part, loaded) in enumerate(zip(frames.parts, frames.batches(), strict=True)):
        batch = examined.preprocess(dict(loaded))
        noise = examined.noise(len(part), seed + number)
        futures = None if earlier is None else examined.host.predict_futures(examined.preprocess(next(earlier)))
        if moved is not None:
            futures = replace(examined.host.predict_futures(batch), displacement=next(moved))
        examined.host.close_gates(source is MemorySource.gate_closed)
        try:
            plan = examined.host.plan_recorded(batch, asked, noise=noise, futures=futures, seed=seed + number)
        finally:
            examined.host.close_gates(False)
        yield part, loaded, batch, plan


def tells_truth(source: MemorySource | None, config: MemoryConfig | None) -> bool:
    """Whether a memory of the robot's states is to hold what they really were."""
    return source is MemorySource.oracle and config is not None and config.content == "states"


def asked_for(source: MemorySource, config: MemoryConfig) -> MemorySource:
    """What the policy is asked for, where the rest of a source is done here."""
    if source is MemorySource.gate_closed:
        return config.rollout_source
    return MemorySource.pred if source is MemorySource.stale or tells_truth(source, config) else source
