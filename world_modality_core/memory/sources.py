"""Memory sources: the one table of what may fill a memory in training, wm-intervene and wm-eval (docs/memory.md).

A new source is one entry of `MemorySource` and the function that fills it (docs/adding_a_memory_source.md).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:  # commands read their options, which name the sources, without torch
    import torch
    from torch import Tensor

MemoryContent = Literal["latents", "hidden", "states"]
Partner = Literal["any_task", "same_task", "other_task"]


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


@dataclass
class MemoryInputs:
    """What memories are made of; a source reads what its entry says that it needs.

    Attributes:
        shape: (b, n, k, p, d) of the memory; sources that have a single future repeat it n times.
        device: Where the memory is.
        generator: Source of the draws, on that device.
        predicted: (b, n, k, p, d) the Prophet's futures.
        future: (b, k, p, d) true futures.
        future_is_pad: (b, k) True beyond the end of the episode.
        current: (b, p, d) current latents.
        episode: (b,) episode of each sample; None in a rollout, where each sample is its own.
        task: (b,) task of each sample.
        oracle_share: Share of samples that get the true future (`scheduled`), see `oracle_share`.
        is_remainder: Whether this is what the larger batches of an epoch left over.
    """

    shape: tuple[int, int, int, int, int]
    device: torch.device
    generator: torch.Generator | None = None
    predicted: Tensor | None = None
    future: Tensor | None = None
    future_is_pad: Tensor | None = None
    current: Tensor | None = None
    episode: Tensor | None = None
    task: Tensor | None = None
    oracle_share: float = 0.0
    is_remainder: bool = False


# Each fills a memory: latents (b, n or 1, k or 1, p, d), and (b, k or 1) True for steps with nothing to read, or None.


def _predicted(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    return given.predicted, None


def _future(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    return given.future[:, None], given.future_is_pad


def _scheduled(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    import torch

    is_oracle = torch.rand(given.shape[0], generator=given.generator, device=given.device) < given.oracle_share
    future = given.future[:, None].to(given.predicted.dtype)
    mixed = torch.where(is_oracle[:, None, None, None, None], future, given.predicted)
    return mixed, given.future_is_pad & is_oracle[:, None]


def _zeros(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    import torch

    return torch.zeros(given.shape, device=given.device), None


def _noise(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    import torch

    noise = torch.randn(given.shape, generator=given.generator, device=given.device)
    # A standardised latent token has d dimensions of unit variance on average: its typical norm is sqrt(d).
    return noise * given.shape[-1] ** 0.5 / noise.norm(dim=-1, keepdim=True), None


def _exchanged(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    partners, is_alone = _draw_partners(given, source)
    return given.predicted[partners], is_alone[:, None]


def _draw_partners(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor]:
    import torch

    b = given.shape[0]
    if b < 2 and not given.is_remainder:
        raise ValueError(
            f"memory source {source.value!r} exchanges memories within a batch, but the batch has one sample; "
            "use a batch size of at least 2 (in lerobot-eval: --eval.batch_size)"
        )
    episode = torch.arange(b, device=given.device) if given.episode is None else given.episode
    partner = source.traits.partner
    is_same_task = None if partner == "any_task" else given.task[:, None] == given.task
    allowed = may_show(partner, episode[:, None] != episode, is_same_task)
    return random_partners(allowed, given.generator)


def _current(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    return given.current[:, None, None], None


def _reversed(given: MemoryInputs, source: MemorySource) -> tuple[Tensor, Tensor | None]:
    return given.predicted.flip(2), None


# Each changes the past frames of a memory (b, t, p, d), padding first, and their padding (b, t).


def _past_zeros(past: Tensor, is_pad: Tensor, given: MemoryInputs) -> tuple[Tensor, Tensor]:
    return past * 0, is_pad


def _past_of_another(past: Tensor, is_pad: Tensor, given: MemoryInputs) -> tuple[Tensor, Tensor]:
    partners, is_alone = _draw_partners(given, MemorySource.past_shuffle)
    return past[partners], is_pad | is_alone[:, None]


def _past_backwards(past: Tensor, is_pad: Tensor, given: MemoryInputs) -> tuple[Tensor, Tensor]:
    import torch

    n_pad, t = is_pad.sum(1, keepdim=True), past.shape[1]
    place = torch.arange(t, device=past.device)
    place = torch.where(is_pad, place, n_pad + t - 1 - place)
    return past[torch.arange(len(past), device=past.device)[:, None], place], is_pad


def _past_frozen(past: Tensor, is_pad: Tensor, given: MemoryInputs) -> tuple[Tensor, Tensor]:
    import torch

    oldest = is_pad.sum(1).clamp(max=past.shape[1] - 1)
    return past[torch.arange(len(past), device=past.device), oldest][:, None].expand_as(past), is_pad


@dataclass(frozen=True)
class SourceTraits:
    """What a source is, and what follows from it everywhere.

    Attributes:
        memory: What the memory holds, for people: the row in docs/memory.md.
        fill: Makes the memory in training and in rollouts; None for what only a test can do to a policy's own memory.
        past: Changes the memory's past frames instead; its futures stay the policy's own.
        runs_prophet: Whether the Prophet has to run.
        reads_current: Whether latents of the current frame enter as they are.
        is_offline: Whether the recorded future is needed, which a rollout doesn't have.
        is_noise: Whether it is drawn. wm-eval draws for each scene what training draws for a batch.
        partner: Whose memory is shown in place of a sample's own: another episode's, of the task that this says.
        contents: The `memory.content` that it can fill.
        n_steps: Future steps that it takes at least to differ from `pred`.
        relies_on: What a policy relies on that acts worse with this memory than with its own. A source that has this
            takes something away: it is an arm of wm-eval.
        is_tested: Whether wm-intervene tries it.
    """

    memory: str
    fill: Callable[[MemoryInputs, MemorySource], tuple[Tensor, Tensor | None]] | None
    past: Callable[[Tensor, Tensor, MemoryInputs], tuple[Tensor, Tensor]] | None = None
    runs_prophet: bool = False
    reads_current: bool = False
    is_offline: bool = False
    is_noise: bool = False
    partner: Partner | None = None
    contents: tuple[MemoryContent, ...] = ("latents", "hidden", "states")
    n_steps: int = 0
    relies_on: str | None = None
    is_tested: bool = True

    @property
    def reads_history(self) -> bool:
        """Whether latents of the history are looked at, by the Prophet or as they are."""
        return self.runs_prophet or self.reads_current or self.past is not None

    @property
    def is_blind(self) -> bool:
        """Whether nothing of any frame enters."""
        return not (self.reads_history or self.is_offline)


class MemorySource(StrEnum):
    """What the action path reads as world memory: the same names in training, offline tests and rollouts."""

    traits: SourceTraits

    def __new__(cls, name: str, traits: SourceTraits):
        member = str.__new__(cls, name)
        member._value_, member.traits = name, traits
        return member

    pred = (
        "pred",
        SourceTraits("what the Prophet predicts from the history", _predicted, runs_prophet=True),
    )
    oracle = (
        "oracle",
        SourceTraits(
            "the true future; steps beyond the episode are masked", _future, is_offline=True, contents=("latents",)
        ),
    )
    scheduled = (
        "scheduled",
        SourceTraits(
            "per sample, `oracle` with a probability that falls from 1 to 0 over `schedule_steps` steps, else `pred`",
            _scheduled,
            runs_prophet=True,
            is_offline=True,
            contents=("latents",),
            is_tested=False,
        ),
    )
    zero = (
        "zero",
        SourceTraits("zeros: E1, the control for the added capacity", _zeros, relies_on="its memory"),
    )
    random = (
        "random",
        SourceTraits(
            "Gaussian directions, each token with the norm of a typical standardised latent, sqrt(d)",
            _noise,
            is_noise=True,
            contents=("latents",),
            relies_on="its memory",
        ),
    )
    shuffle = (
        "shuffle",
        SourceTraits(
            "what the Prophet predicts for another episode",
            _exchanged,
            runs_prophet=True,
            partner="any_task",
            relies_on="its memory",
        ),
    )
    shuffle_within_task = (
        "shuffle_within_task",
        SourceTraits(
            "the same, of an episode of the same task",
            _exchanged,
            runs_prophet=True,
            partner="same_task",
            relies_on="what this very episode's memory says",
        ),
    )
    wrong_task = (
        "wrong_task",
        SourceTraits(
            "the same, of an episode of another task",
            _exchanged,
            runs_prophet=True,
            partner="other_task",
            relies_on="its memory",
        ),
    )
    copy_current = (
        "copy_current",
        SourceTraits(
            "the current latent, repeated: is it the *future* that helps, or more vision? Of states: no movement",
            _current,
            reads_current=True,
            contents=("latents", "states"),
            relies_on="the predicted change, not only on more vision",
        ),
    )
    reversed = (
        "reversed",
        SourceTraits(
            "what the Prophet predicts, its last future step first",
            _reversed,
            runs_prophet=True,
            n_steps=2,
            relies_on="the order of the predicted steps",
        ),
    )
    stale = (
        "stale",
        SourceTraits(
            "what the Prophet predicted `stale_plans` plans earlier in the same episode",
            None,
            runs_prophet=True,
            relies_on="its memory being of now",
        ),
    )
    gate_closed = (
        "gate_closed",
        SourceTraits("its own, behind gates that are shut", None, runs_prophet=True, relies_on="its memory"),
    )
    past_zero = (
        "past_zero",
        SourceTraits("its own, past frames as zeros", None, _past_zeros, relies_on="the past that it remembers"),
    )
    past_shuffle = (
        "past_shuffle",
        SourceTraits(
            "its own, with the past frames of another episode",
            None,
            _past_of_another,
            partner="any_task",
            relies_on="this very episode's past",
        ),
    )
    past_reversed = (
        "past_reversed",
        SourceTraits(
            "its own, past frames in the reverse order", None, _past_backwards, relies_on="the order of its past"
        ),
    )
    past_frozen = (
        "past_frozen",
        SourceTraits(
            "its own, every past frame the oldest that it holds",
            None,
            _past_frozen,
            relies_on="what happened in its past",
        ),
    )


TRAINING_SOURCES = tuple(source for source in MemorySource if source.traits.fill)
PAST_SOURCES = tuple(source for source in MemorySource if source.traits.past)
TESTED_SOURCES = tuple(source for source in MemorySource if source.traits.is_tested)
ARM_SOURCES = tuple(source for source in MemorySource if source.traits.relies_on)
EXCHANGING_SOURCES = tuple(source for source in MemorySource if source.traits.partner)


def oracle_share(step: int, schedule_steps: int) -> float:
    """Share of samples whose memory is the true future at an optimiser step of `scheduled`: linear from 1 to 0."""
    return max(0.0, 1.0 - step / schedule_steps)


def may_show(partner: Partner, is_other_episode: Any, is_same_task: Any) -> Any:
    """Whether an episode may be shown another one's memory; for bools, and for arrays and tensors of them."""
    match partner:
        case "same_task":
            return is_other_episode & is_same_task
        case "other_task":
            return is_other_episode & (is_same_task ^ True)
    return is_other_episode


def random_partners(allowed: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw for each sample another one whose memory it is shown.

    Args:
        allowed: (b, b) True where sample i may be shown the memory of sample j.
        generator: Source of randomness, on the same device.

    Returns:
        Partner (b,) and is_alone (b,), True where no sample was allowed.
    """
    import torch

    draw = torch.rand(allowed.shape, generator=generator, device=allowed.device).masked_fill(~allowed, -1.0)
    best, partner = draw.max(dim=1)
    return partner, best < 0


def make_memory(source: MemorySource, given: MemoryInputs) -> Memory:
    """Fill a memory from one of `TRAINING_SOURCES`.

    Returns:
        The memory. Where memories are exchanged, a sample without a partner reads nothing (all padded).

    Raises:
        ValueError: if nothing can be exchanged, because batches have one sample.
    """
    b, n, k, p, d = given.shape
    latents, is_pad = source.traits.fill(given, source)
    if is_pad is not None:
        is_pad = is_pad[:, None, :, None].expand(b, n, k, p).reshape(b, n * k * p)
    return Memory(latents.expand(given.shape).reshape(b, n * k * p, d), is_pad)
