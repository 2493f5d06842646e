"""Options of every policy with a world, and what follows from them: mixins for LeRobot's configs.

Fields are saved in `config.json`: a field's name and default are a disk format.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from world_modality_core.configs import (
    CompanionConfig,
    LanguageConfig,
    MemoryConfig,
    ProphetConfig,
    TracksGivenFields,
    check_at_least,
    check_choices,
    check_positive,
)
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.sources import MemorySource

if TYPE_CHECKING:
    from world_modality_core.latents.companion import Companion


# Closed choices have names: the help reads a field's comment only where its type has no quotes.
Arithmetic = Literal["float32", "bfloat16"]
FrameClock = Literal["calls", "wall"]


@dataclass
class WorldOptions(TracksGivenFields):
    """Which latents a policy reads, and where they come from."""

    # The companion dataset of latents (training only).
    companion: CompanionConfig = field(default_factory=CompanionConfig)
    # The world encoder. Leave empty in training to take the companion's.
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    # Frames between two of the history frames.
    history_stride: int = 1
    # The same in seconds of the dataset, in place of history_stride, which it becomes in training.
    history_step_s: float | None = None
    # Future frames k that are predicted.
    n_future_steps: int = 4
    # Frames between two of them.
    future_stride: int = 1
    # The same in seconds of the dataset, in place of future_stride, which it becomes in training.
    future_step_s: float | None = None
    # The sentence encoder that embeds tasks.
    language: LanguageConfig = field(default_factory=LanguageConfig)
    # "calls": every call of the policy is one step (simulators, lerobot-eval, synchronous robots). "wall": frames come
    # when they come (real-time chunking), and the clock tells which step they belong to. examples/policy_server.py goes
    # by the robot's own clock, whatever is said here.
    frame_clock: FrameClock = "calls"
    # Steps a second of the dataset. Set in training; `frame_clock=wall` reads it.
    fps: float = 0.0
    # Let entries of the robot's state that never moved in training enter as they do there, in rollouts too: LeRobot
    # normalises by their standard deviation, 0, and the slightest move would be a huge one.
    clamp_constant_state: bool = True
    # These entries. Set in training.
    constant_state: list[int] = field(default_factory=list)
    # Append logged values to this JSON Lines file, for those who train without an experiment tracker.
    metrics_file: str | None = None
    # Optimiser steps that one of its lines averages over.
    metrics_every: int = 50

    # The predictor; a type that has one declares it as a field.
    prophet: ClassVar[ProphetConfig | None] = None
    # What enters the memory, and the gates that it is read through; a type that has one declares it as a field.
    memory: ClassVar[MemoryConfig | None] = None
    # Whether a processor step keeps a rollout's frames for the encoder, whatever is made of them for the policy.
    keeps_frames: ClassVar[bool] = False
    # Past frames in the memory; a type that has one says so itself.
    n_past: ClassVar[int] = 0
    # The field that says how many history frames t are read.
    history_field: ClassVar[str] = "n_history_steps"

    def check_world(self) -> None:
        """Check what needs neither features nor files.

        Raises:
            ConfigError: naming field, value and what was expected.
        """
        check_choices(self)
        visual = self.normalization_mapping.get("VISUAL", "IDENTITY")
        if visual != "IDENTITY" and not self.keeps_frames:
            raise ConfigError(
                f"normalization_mapping: VISUAL is {getattr(visual, 'value', visual)}, but the world's encoder (and a "
                "VLM's processor) takes images in [0, 1] and normalises them itself; use IDENTITY"
            )
        check_at_least(self, 1, self.history_field, "history_stride", "future_stride", "metrics_every")
        check_at_least(self, self.least_future_steps, "n_future_steps")
        if {"n_action_steps", "chunk_size"} <= self.__dict__.keys() and self.n_action_steps > self.chunk_size:
            raise ConfigError(
                f"n_action_steps={self.n_action_steps} is more than chunk_size={self.chunk_size}: a plan can't be "
                "executed beyond its end; lower n_action_steps or raise chunk_size"
            )
        check_at_least(self, 0, *(name for name in self.__dict__ if name.startswith("lambda_")))
        check_positive(self, *{"optimizer_lr"} & self.__dict__.keys())
        for name in ("history", "future"):
            seconds = getattr(self, f"{name}_step_s")
            start = self.prophet and self.prophet.init_from
            if seconds is not None and (not 0 < seconds < math.inf or f"{name}_stride" in self._given or start):
                raise ConfigError(
                    f"{name}_step_s={seconds}: expected seconds above 0, and neither {name}_stride, which it stands "
                    "for, nor prophet.init_from, which brings its own"
                )

    def take_rate(self, fps: float) -> None:
        """Note the dataset's rate, and turn strides in seconds into strides in frames."""
        self.fps = fps
        for name in ("history", "future"):
            seconds = getattr(self, f"{name}_step_s")
            if seconds is not None:
                setattr(self, f"{name}_stride", max(1, round(seconds * fps)))
                setattr(self, f"{name}_step_s", None)

    def take_companion(self, companion: Companion) -> None:
        """Take from the companion what a checkpoint has to know of it."""

    @property
    def n_history(self) -> int:
        """History frames t."""
        return getattr(self, self.history_field)

    @property
    def least_future_steps(self) -> int:
        """Future frames that the policy can't do without."""
        return 1

    @property
    def has_world(self) -> bool:
        """Whether there is anything of the world at all."""
        return self.needs_history or self.needs_future or self.needs_tokens

    @property
    def reads_memory(self) -> bool:
        """Whether the action path reads a memory."""
        return False

    @property
    def world_reads_state(self) -> bool:
        """Whether the world's side of the policy reads the robot's state."""
        return self.has_world and self.prophet.use_state

    @property
    def world_reads_language(self) -> bool:
        """Whether the world's side of the policy reads the task."""
        return self.has_world and self.prophet.use_language

    @property
    def reads_task(self) -> bool:
        """Whether any part of the policy reads the task."""
        return self.world_reads_language

    @property
    def needs_history(self) -> bool:
        """Whether a training step looks at latents of the history."""
        return False

    @property
    def needs_future(self) -> bool:
        """Whether a training step looks at latents of the future."""
        return False

    @property
    def needs_tokens(self) -> bool:
        """Whether a training step looks at world tokens, current and future, so that the companion must have them."""
        return False

    @property
    def needs_live_history(self) -> bool:
        """Whether a rollout looks at latents of the history."""
        return False

    @property
    def needs_live_tokens(self) -> bool:
        """Whether a rollout looks at the current world tokens."""
        return False

    @property
    def clock_fps(self) -> float | None:
        """Steps a second where the clock tells which step a frame belongs to; None where every call is one step."""
        return self.fps if self.frame_clock == "wall" else None

    @property
    def rollout_dtype(self) -> str | None:
        """Autocast of rollouts; None where the policy says nothing of it."""
        return None


@dataclass
class MemoryOptions(WorldOptions):
    """Options of a policy with a Prophet, whose action path may read a world memory."""

    # Weight of the Prophet's own objective; 0 leaves it to learn through the memory only.
    lambda_world: float = 0.2
    # The predictor.
    prophet: ProphetConfig = field(default_factory=ProphetConfig)
    # What enters the memory, and the gates that it is read through.
    memory: MemoryConfig = field(default_factory=MemoryConfig)

    def check_world(self) -> None:
        if self.n_future_steps == 0 and self.reads_memory and not self.memory.shows_seen:
            raise ConfigError(
                "n_future_steps=0 leaves the memory empty; predict with --policy.n_future_steps, or let it hold what "
                "was seen: --policy.memory.past.n_frames, --policy.memory.use_current=true"
            )
        super().check_world()
        for source in (self.memory.source, self.memory.rollout_source):
            self.check_memory_source(source)
        if self.n_future_steps == 0:
            self._check_without_forecast()

    def _check_without_forecast(self) -> None:
        given = {f"memory.{name}": getattr(self.memory, name) for name in ("source", "eval_source")}
        given |= {f"prophet.{name}": getattr(self.prophet, name) for name in ("use_state", "use_language", "freeze")}
        for name, value in given.items():
            if value not in (None, False, MemorySource.pred):
                raise ConfigError(
                    f"{name}={str(value).lower()} says something of predicted futures, of which n_future_steps=0 has "
                    "none; drop it, or predict with --policy.n_future_steps"
                )

    def check_memory_source(self, source: MemorySource) -> None:
        """Refuse a source that can't fill this policy's memory.

        Raises:
            ConfigError: naming source and remedy.
        """
        self.memory.check_content(source)
        if self.n_future_steps < source.traits.n_steps:
            raise ConfigError(
                f"n_future_steps={self.n_future_steps}: memory source {source.value!r} takes {source.traits.n_steps} "
                "or more future steps; predict more with --policy.n_future_steps, or choose another source"
            )

    @property
    def reads_memory(self) -> bool:
        return True

    @property
    def least_future_steps(self) -> int:
        return 0 if self.reads_memory and self.memory.shows_seen else 1

    @property
    def n_past(self) -> int:
        """Past frames in the memory."""
        return self.memory.past.n_frames if self.reads_memory else 0

    @property
    def world_weight(self) -> float:
        """Weight of the Prophet's objective in the loss; a frozen Prophet's is only logged."""
        return 0.0 if self.prophet.freeze or self.n_future_steps == 0 else self.lambda_world

    @property
    def trains_prophet(self) -> bool:
        """Whether a training step runs the Prophet."""
        reads_it = self.reads_memory and self.memory.source.traits.runs_prophet
        return self.n_future_steps > 0 and (self.world_weight > 0 or reads_it)

    @property
    def needs_history(self) -> bool:
        from_memory = self.reads_memory and (self.memory.source.traits.reads_history or self.memory.shows_seen)
        return super().needs_history or self.trains_prophet or from_memory

    @property
    def needs_future(self) -> bool:
        from_memory = self.reads_memory and self.n_future_steps > 0 and self.memory.source.traits.is_offline
        return super().needs_future or self.trains_prophet or from_memory

    @property
    def needs_live_history(self) -> bool:
        from_memory = self.memory.rollout_source.traits.reads_history or self.memory.shows_seen
        from_memory = self.reads_memory and from_memory
        return super().needs_live_history or from_memory


@dataclass
class VLAWorldOptions(MemoryOptions):
    """Options of a policy that sees one frame by itself, and the world beside it."""

    # History frames t that the Prophet sees.
    n_history_steps: int = 4

    def check_world(self) -> None:
        super().check_world()
        if self.memory.entry == "appended":
            raise ConfigError(
                f"memory.entry='appended' appends to the trunk of world_F, which {self.type} hasn't; use "
                "--policy.memory.entry=gated (smolvla_world: --policy.fusion.f3a=true puts memory tokens into the "
                "prefix)"
            )

    @property
    def has_world(self) -> bool:
        return self.reads_memory or self.lambda_world > 0

    @property
    def reads_task(self) -> bool:
        return True


def check_amp(config: WorldOptions) -> None:
    """Refuse LeRobot's `use_amp` in a type that has `dtype`.

    Raises:
        ConfigError: naming the option to use.
    """
    if config.use_amp:
        raise ConfigError("use_amp=true: this type has `dtype`; use --policy.dtype=bfloat16")
