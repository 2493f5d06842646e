"""From a world batch to the memory that the action path reads, and the Prophet's own objective."""

from __future__ import annotations

import os
from dataclasses import replace

import torch
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from lerobot_policy_world_modality.policies.shared.world_options import MemoryOptions
from world_modality_core.configs import MemoryConfig
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.modulation import MemoryModulation
from world_modality_core.memory.sources import Memory, MemoryInputs, MemorySource, make_memory, oracle_share
from world_modality_core.prophet.losses import future_latent_objective
from world_modality_core.prophet.network import Futures, Prophet


def memory_shape(config: MemoryOptions) -> tuple[int, int, int, int]:
    """(n, k, p, d) of one sample's memory: hypotheses, future steps, tokens per step, width of a token.

    With `memory.content=hidden` the Prophet's states stand for all its hypotheses, p counts its slots, d is its width;
    with `states` d is the width of the robot's state.
    """
    spec, prophet = config.encoder, config.prophet
    if config.memory.content == "states":
        return 1, config.n_future_steps, 1, config.robot_state_feature.shape[0]
    if config.memory.content == "hidden":
        return 1, config.n_future_steps, spec.n_tokens if prophet.per_cell else 1, prophet.d_model
    return prophet.n_hypotheses, config.n_future_steps, spec.n_tokens, spec.dim


def n_memory_tokens(config: MemoryOptions) -> int:
    """Tokens of one sample's memory: of past frames, the current one and predicted ones."""
    n, k, p, _ = memory_shape(config)
    n_seen = config.memory.past.n_frames + config.memory.use_current
    return n_seen * config.encoder.n_tokens + n * k * p


def make_reader(config: MemoryOptions, d: int) -> GatedCrossAttention:
    """What reads the memory into an action stream of width d."""
    options, size = config.memory, (d, memory_shape(config)[-1], n_memory_tokens(config))
    is_timed = options.past.n_frames > 0
    if options.entry == "modulated":
        return MemoryModulation(*size, options.n_heads, is_timed)
    return GatedCrossAttention(*size, options.n_heads, options.gate, is_timed)


def future_mass(mass: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """Attention per memory token (..., m) -> its share per future step (..., k); what is left went to seen frames."""
    n, k, p, _ = shape
    return mass[..., mass.shape[-1] - n * k * p :].unflatten(-1, (n, k, p)).sum((-3, -1))


def draw_generator(seed: int, count: int, device: torch.device) -> torch.Generator:
    """Source of a step's draws.

    Made from the number of the step, not from a running state: a resumed run draws what the uninterrupted one would
    have, and torch's global generator is left alone.

    Args:
        seed: `memory.seed`.
        count: Optimiser step in training, number of the plan in a rollout.
        device: Where the draws are needed.
    """
    rank = int(os.environ.get("RANK", "0"))
    return torch.Generator(device).manual_seed((seed * 2**40 + rank * 2**30 + count) % 2**64)


def predict_futures(prophet: Prophet, world_batch: WorldBatch) -> Futures:
    """Run the Prophet, once per world batch."""
    if world_batch.futures is None:
        world_batch.futures = prophet(
            world_batch.history, world_batch.history_is_pad, world_batch.state, world_batch.language
        )
    return world_batch.futures


def fill_memory(
    prophet: Prophet,
    world_batch: WorldBatch,
    source: MemorySource,
    config: MemoryConfig,
    shape: tuple[int, int, int, int],
    generator: torch.Generator,
    step: int,
    is_remainder: bool = False,
) -> Memory:
    """Fill the memory that the action path reads. In an evaluation's rollout the arm may replace what was filled in.

    Args:
        prophet: The policy's Prophet; run only where `source` needs it.
        world_batch: What the policy sees.
        source: Where the memory comes from; of one that changes the past only, the futures are those of rollouts.
        config: The memory's options.
        shape: (n, k, p, d) of one sample's memory.
        generator: See `draw_generator`.
        step: Optimiser steps so far (`scheduled`).
        is_remainder: See `MemoryInputs`.

    Raises:
        ValueError: if the source needs the recorded future and there is none.
    """
    config.check_content(source)
    past_source = source if source.traits.past else config.past.source
    source = config.rollout_source if source.traits.past else source
    traits = source.traits
    if traits.is_offline and world_batch.future is None:
        raise ValueError(f"memory source {source.value!r} needs the recorded future, which a rollout doesn't have")
    predicted = None
    if traits.runs_prophet and shape[1]:
        futures = predict_futures(prophet, world_batch)
        predicted = _content(futures, config.content)
        predicted = predicted.detach() if config.detach else predicted
    given = MemoryInputs(
        shape=(world_batch.batch_size, *shape),
        device=generator.device,
        generator=generator,
        predicted=predicted,
        future=world_batch.future,
        future_is_pad=world_batch.future_is_pad,
        current=current_content(world_batch, config.content, shape) if traits.reads_current else None,
        episode=world_batch.episode,
        task=world_batch.task,
        oracle_share=oracle_share(step, config.schedule_steps),
        is_remainder=is_remainder,
    )
    if shape[1]:
        memory = make_memory(source, given)
    else:
        memory = Memory(torch.zeros(world_batch.batch_size, 0, shape[-1], device=generator.device))
    if past_source is not None:
        changed = past_source.traits.past(world_batch.past, world_batch.past_is_pad, given)
        world_batch = replace(world_batch, past=changed[0], past_is_pad=changed[1])
    if world_batch.intervention is not None:
        memory = world_batch.intervention(memory, world_batch, shape)
    return _beside_what_was_seen(memory, world_batch, config, shape)


def _beside_what_was_seen(
    futures: Memory, world_batch: WorldBatch, config: MemoryConfig, shape: tuple[int, int, int, int]
) -> Memory:
    """A memory of past frames, the current one and the futures, as far as each is asked for."""
    if not config.shows_seen:
        return futures
    parts = []  # (b, frames, p, d), is_pad (b, frames), time (b, frames)
    if config.past.n_frames:
        parts.append((world_batch.past, world_batch.past_is_pad, -world_batch.past_age))
    if config.use_current:
        here = world_batch.history_is_pad[:, -1:]
        parts.append((world_batch.history[:, -1:], torch.zeros_like(here), torch.zeros_like(here, dtype=torch.int64)))
    p = parts[0][0].shape[2]
    n, k, p_future, _ = shape
    steps = world_batch.future_stride * torch.arange(1, k + 1, device=futures.tokens.device)
    future_time = steps[None, :, None].expand(n, k, p_future).flatten().expand(len(futures.tokens), -1)
    future_pad = futures.is_pad
    if future_pad is None:
        future_pad = torch.zeros(futures.tokens.shape[:2], dtype=torch.bool, device=futures.tokens.device)
    return Memory(
        torch.cat([*(latents.flatten(1, 2) for latents, _, _ in parts), futures.tokens], dim=1),
        torch.cat([*(is_pad.repeat_interleave(p, dim=1) for _, is_pad, _ in parts), future_pad], dim=1),
        torch.cat([*(time.repeat_interleave(p, dim=1) for _, _, time in parts), future_time], dim=1),
    )


def _content(futures: Futures, content: str) -> Tensor:
    """(b, n, k, p, d) what of the futures enters the memory."""
    match content:
        case "latents":
            return futures.latents
        case "hidden":
            return futures.hidden[:, None]
        case "states":
            return futures.displacement[:, None, :, None]
    raise AssertionError(content)


def current_content(world_batch: WorldBatch, content: str, shape: tuple[int, int, int, int]) -> Tensor:
    """(b, p, d) the present in a memory's terms: the current latents, or a robot that doesn't move."""
    if content == "states":
        return torch.zeros(world_batch.batch_size, *shape[2:], device=world_batch.history.device)
    return world_batch.current


def prophet_objective(prophet: Prophet, world_batch: WorldBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss of the Prophet per sample (b,), and its skill over copying (docs/metrics.md)."""
    futures = predict_futures(prophet, world_batch)
    return future_latent_objective(futures, world_batch.current, world_batch.future, world_batch.future_is_pad)
