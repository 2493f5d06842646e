"""What every policy with a world memory does alike: foresee, fill the memory, train the Prophet, draw, log."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.shared.latent_reader import WorldBatch
from world_modality_core.configs import OFFLINE_SOURCES, MemoryConfig, MemorySource
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.gated_attention import Gate, GatedCrossAttention
from world_modality_core.memory.sources import Memory, make_memory, needs_prediction, oracle_share
from world_modality_core.prophet.losses import future_latent_loss, future_latent_metrics
from world_modality_core.prophet.network import Futures, Prophet


class WorldSide(nn.Module):
    """All of a VLA's world that is trained or saved, apart from what reads it: latents' space, Prophet, count of steps.

    Args:
        config: The policy's config, its encoder resolved. Without a world (E0) only the count of steps is left.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        # Optimiser steps so far: what `scheduled` memory and all draws depend on, so that a resumed run goes on alike.
        self.register_buffer("train_step", torch.zeros((), dtype=torch.int64))
        if not config.has_world:
            return
        spec, state = config.encoder, config.robot_state_feature
        self.space = LatentNormaliser(spec)
        self.prophet = Prophet(
            spec.n_tokens,
            spec.dim,
            config.n_history_steps,
            config.n_future_steps,
            config.prophet,
            state_dim=state.shape[0] if config.prophet.use_state or config.prophet.tells_state else 0,
            language_dim=config.language.dim,
        )


def memory_shape(config: PreTrainedConfig) -> tuple[int, int, int, int]:
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


def draws(seed: int, count: int, device: torch.device) -> torch.Generator:
    """Source of a step's draws.

    Made from the number of the step, not from a running state: a resumed run draws what the uninterrupted one would
    have, and torch's global generator is left alone.

    Args:
        seed: `memory.seed`.
        count: Optimiser step in training, number of the plan in a rollout.
        device: Where the draws are needed.
    """
    rank = int(os.environ.get("RANK", "0"))
    return torch.Generator(device).manual_seed(seed * 2**40 + rank * 2**30 + count)


def predict_futures(prophet: Prophet, world_batch: WorldBatch) -> Futures:
    """Run the Prophet, once per sight."""
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
) -> Memory:
    """Fill the memory that the action path reads; in an evaluation's rollout, an intervention has the last word.

    Args:
        prophet: The policy's Prophet; run only where `source` needs it.
        world_batch: What the policy sees.
        source: Where the memory comes from.
        config: The memory's options.
        shape: (n, k, p, d) of one sample's memory.
        generator: See `draws`.
        step: Optimiser steps so far (`scheduled`).

    Raises:
        ValueError: if the source needs the recorded future and there is none.
    """
    if source in OFFLINE_SOURCES and world_batch.future is None:
        raise ValueError(f"memory source {source.value!r} needs the recorded future, which a rollout doesn't have")
    config.check_content(source)
    predicted = None
    if needs_prediction(source):
        futures = predict_futures(prophet, world_batch)
        predicted = _content(futures, config.content)
        predicted = predicted.detach() if config.detach else predicted
    memory = make_memory(
        source,
        shape=(world_batch.batch_size, *shape),
        generator=generator,
        predicted=predicted,
        future=world_batch.future,
        future_is_pad=world_batch.future_is_pad,
        current=current_content(world_batch, config.content, shape) if source is MemorySource.copy_current else None,
        episode=world_batch.episode,
        task=world_batch.task,
        share=oracle_share(step, config.schedule_steps),
    )
    return memory if world_batch.intervention is None else world_batch.intervention(memory, world_batch, shape)


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
    loss = future_latent_loss(futures, world_batch.future, world_batch.future_is_pad)
    return loss, future_latent_metrics(
        futures.best(), world_batch.current, world_batch.future, world_batch.future_is_pad
    )


def reader_values(reader: GatedCrossAttention, shape: tuple[int, int, int, int], suffix: str = "") -> dict[str, Tensor]:
    """Gate, attention entropy and attention mass per future step of a reader's last call.

    Args:
        reader: A gated cross-attention that has just read.
        shape: (n, k, p, d) of the memory.
        suffix: Appended to the names, where a policy has several readers.
    """
    mass = reader.last_attention_mass.view(shape[:3]).sum((0, 2))
    values = {f"world_gate{suffix}": reader.last_gate, f"memory_entropy{suffix}": reader.last_attention_entropy}
    return values | {f"memory_mass{suffix}_{i}": share for i, share in enumerate(mass, start=1)}


def hold_gates(modules: Iterable[nn.Module], is_held: bool) -> None:
    """Hold all gates among `modules` shut, or let them go (`memory.gate_warmup_steps`)."""
    for module in modules:
        if isinstance(module, Gate):
            module.is_held = is_held


def memory_readers(policy: nn.Module) -> list[nn.Module]:
    """The modules through which a policy reads its world memory, each with a `gate`; without adapters' spare copies."""
    return [
        module
        for name, module in policy.named_modules()
        if hasattr(module, "last_sample_gate") and "original_module" not in name
    ]


def close_gates(policy: nn.Module, is_closed: bool) -> None:
    """Close the gates of all a policy's memory readers, or give them back to what training made of them."""
    for reader in memory_readers(policy):
        reader.gate.is_closed = is_closed


def gate_parameters(modules: Iterable[nn.Module]) -> dict[int, nn.Parameter]:
    """The parameters of all gates among `modules`, by id: they have a learning rate of their own."""
    return {id(p): p for module in modules if isinstance(module, Gate) for p in module.parameters()}


def optimizer_groups(kinds: dict[str, list[nn.Parameter]], options: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups in the order of `kinds`, without the empty ones."""
    return [{"params": parameters, **options[kind]} for kind, parameters in kinds.items() if parameters]
