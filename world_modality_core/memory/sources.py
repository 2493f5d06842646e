"""World memories: one function for every source, in training, offline interventions and rollouts (docs/memory.md)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # commands read their options, which name the sources, without torch
    import torch
    from torch import Tensor


class MemorySource(StrEnum):
    """What the action path reads as world memory (docs/memory.md).

    The same values are used in training, in offline interventions and in closed-loop rollouts.
    """

    pred = "pred"  # the Prophet's prediction
    oracle = "oracle"  # the true future; needs recorded data
    zero = "zero"  # all zeros: the capacity control E1
    random = "random"  # Gaussian directions with the norm of a typical latent
    shuffle = "shuffle"  # the memory of a sample of another episode of the batch
    shuffle_within_task = "shuffle_within_task"  # the same, among episodes of the same task
    copy_current = "copy_current"  # the current latent, repeated: more vision, no future
    scheduled = "scheduled"  # oracle at the start of training, pred at its end


@dataclass(frozen=True)
class SourceTraits:
    """What a source needs.

    Attributes:
        runs_prophet: Whether the Prophet has to run.
        reads_history: Whether latents of the history are looked at, by the Prophet or as they are.
        is_offline: Whether the recorded future is needed, which a rollout doesn't have.
    """

    runs_prophet: bool = False
    reads_history: bool = False
    is_offline: bool = False


TRAITS = {
    MemorySource.pred: SourceTraits(runs_prophet=True, reads_history=True),
    MemorySource.oracle: SourceTraits(is_offline=True),
    MemorySource.zero: SourceTraits(),
    MemorySource.random: SourceTraits(),
    MemorySource.shuffle: SourceTraits(runs_prophet=True, reads_history=True),
    MemorySource.shuffle_within_task: SourceTraits(runs_prophet=True, reads_history=True),
    MemorySource.copy_current: SourceTraits(reads_history=True),
    MemorySource.scheduled: SourceTraits(runs_prophet=True, reads_history=True, is_offline=True),
}


@dataclass
class Memory:
    """What gated cross-attention reads.

    Attributes:
        tokens: (b, m, d) memory tokens: of past frames, the current one, and m = n * k * p predicted ones.
        is_pad: (b, m) True where there is nothing to read; None if all tokens count.
        time: (b, m) frames from now, negative in the past; None where a token's place says it.
    """

    tokens: Tensor
    is_pad: Tensor | None = None
    time: Tensor | None = None


def oracle_share(step: int, schedule_steps: int) -> float:
    """Share of samples whose memory is the true future at an optimiser step of `scheduled`: linear from 1 to 0."""
    return max(0.0, 1.0 - step / schedule_steps)


def random_partners(allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for each sample another one whose memory it is shown.

    Args:
        allowed: (b, b) True where sample j may lend its memory to sample i.
        generator: Source of randomness, on the same device.

    Returns:
        Partner (b,) and is_alone (b,), True where no sample was allowed.
    """
    import torch

    draw = torch.rand(allowed.shape, generator=generator, device=allowed.device).masked_fill(~allowed, -1.0)
    best, partner = draw.max(dim=1)
    return partner, best < 0


def make_memory(
    source: MemorySource,
    *,
    shape: tuple[int, int, int, int, int],
    generator: torch.Generator,
    predicted: Tensor | None = None,
    future: Tensor | None = None,
    future_is_pad: Tensor | None = None,
    current: Tensor | None = None,
    episode: Tensor | None = None,
    task: Tensor | None = None,
    share: float = 0.0,
) -> Memory:
    """Fill a memory from one of the sources.

    Args:
        source: Where the memory comes from.
        shape: (b, n, k, p, d) of the memory; the sources that have a single future repeat it n times.
        generator: Source of the draws of `random`, `shuffle` and `scheduled`, on the memory's device.
        predicted: (b, n, k, p, d) the Prophet's futures (`pred`, `scheduled`, `shuffle*`).
        future: (b, k, p, d) true futures (`oracle`, `scheduled`).
        future_is_pad: (b, k) True beyond the end of the episode.
        current: (b, p, d) current latents (`copy_current`).
        episode: (b,) episode of each sample (`shuffle*`); None in a rollout, where each sample is its own.
        task: (b,) task of each sample (`shuffle_within_task`).
        share: Share of samples that get the oracle (`scheduled`), see `oracle_share`.

    Returns:
        The memory. In `shuffle*`, a sample without a partner reads nothing (all padded).

    Raises:
        ValueError: if the batch can't be shuffled at all, because it has one sample.
    """
    import torch

    b, n, k, p, d = shape
    device = generator.device

    def tokens(latents: Tensor) -> Tensor:  # (b, n | 1, k | 1, p, d) -> (b, m, d)
        return latents.expand(shape).reshape(b, n * k * p, d)

    def pad(is_pad: Tensor) -> Tensor:  # (b, k) -> (b, m)
        return is_pad[:, None, :, None].expand(b, n, k, p).reshape(b, n * k * p)

    match source:
        case MemorySource.pred:
            return Memory(tokens(predicted))
        case MemorySource.oracle:
            return Memory(tokens(future[:, None]), pad(future_is_pad))
        case MemorySource.scheduled:
            is_oracle = torch.rand(b, generator=generator, device=device) < share
            mixed = torch.where(is_oracle[:, None, None, None, None], future[:, None].to(predicted.dtype), predicted)
            return Memory(tokens(mixed), pad(future_is_pad & is_oracle[:, None]))
        case MemorySource.zero:
            return Memory(torch.zeros(b, n * k * p, d, device=device))
        case MemorySource.random:
            noise = torch.randn(b, n * k * p, d, generator=generator, device=device)
            # A standardised latent token has d dimensions of unit variance on average: its typical norm is sqrt(d).
            return Memory(noise * d**0.5 / noise.norm(dim=-1, keepdim=True))
        case MemorySource.copy_current:
            return Memory(tokens(current[:, None, None]))
        case MemorySource.shuffle | MemorySource.shuffle_within_task:
            if b < 2:
                raise ValueError(
                    f"memory source {source.value!r} exchanges memories within a batch, but the batch has one sample; "
                    "use a batch size of at least 2 (in lerobot-eval: --eval.batch_size)"
                )
            episode = torch.arange(b, device=device) if episode is None else episode
            allowed = episode[:, None] != episode[None]
            if source is MemorySource.shuffle_within_task:
                allowed = allowed & (task[:, None] == task[None])
            partner, is_alone = random_partners(allowed, generator)
            return Memory(tokens(predicted[partner]), is_alone[:, None].expand(b, n * k * p))
    raise AssertionError(source)
