"""Configuration of smolvla_world: LeRobot's SmolVLA, and a world memory that its action path reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields

from lerobot.configs import PreTrainedConfig, parser
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_policy_world_modality.policies.shared.prophet_options import refuse_appended, take_over_prophet
from world_modality_core.configs import (
    CompanionConfig,
    LanguageConfig,
    MemoryConfig,
    ProphetConfig,
    ReadsFutures,
    TracksGivenFields,
)
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError

# Fields of SmolVLA's config that belong to a run or a machine, not to a checkpoint.
_OF_THE_RUN = {
    "input_features", "output_features", "device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags",
    "license", "pretrained_path", "pretrained_revision", "compile_model", "compile_mode", "rtc_config",
}  # fmt: skip


@dataclass
class FusionConfig:
    """Where the action path reads the memory. Any combination; none at all is the baseline E0."""

    # F1: at the expert's output states, before `action_out_proj`.
    f1: bool = True
    # F2: at the expert's input embeddings.
    f2: bool = False
    # F3a: memory tokens in the prefix. Runs the language model and the expert a second time.
    f3a: bool = False
    # F3b: the prefix (images, prompt, state) cross-attends to the memory.
    f3b: bool = False

    @property
    def names(self) -> list[str]:
        """The fusions that are on."""
        return [f.name for f in fields(self) if getattr(self, f.name)]


@PreTrainedConfig.register_subclass("smolvla_world")
@dataclass
class SmolVLAWorldConfig(SmolVLAConfig, ReadsFutures, TracksGivenFields):
    """SmolVLA's config, and the world memory's."""

    # SmolVLA checkpoint to start from (Hub id or folder). Every field of SmolVLA's config that you don't give comes
    # from it. Not needed again once the run has started.
    init_from: str | None = None
    # Hub revision of that checkpoint.
    init_revision: str | None = None
    # The checkpoint that this policy started from. Set in training.
    initialised_from: str | None = None
    # Where the memory is read.
    fusion: FusionConfig = field(default_factory=FusionConfig)
    # The companion dataset of latents (training only).
    companion: CompanionConfig = field(default_factory=CompanionConfig)
    # The world encoder. Leave empty in training to take the companion's.
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    # History frames t that the Prophet sees.
    n_history_steps: int = 4
    # Frames between two of them.
    history_stride: int = 1
    # Future frames k that are predicted.
    n_future_steps: int = 4
    # Frames between two of them.
    future_stride: int = 1
    # Weight of the Prophet's own objective; 0 leaves it to learn through the memory only.
    lambda_world: float = 0.2
    # The predictor.
    prophet: ProphetConfig = field(default_factory=ProphetConfig)
    # What enters the memory, and the gates.
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    # The sentence encoder of a Prophet with `prophet.use_language`.
    language: LanguageConfig = field(default_factory=LanguageConfig)
    # Arithmetic of training and rollouts: "float32", "bfloat16" (autocast; weights and gates stay as they are), or None
    # for what the launcher says.
    dtype: str | None = None
    # "calls": every call of the policy is one step (simulators, lerobot-eval, synchronous robots). "wall": frames come
    # when they come (policy server, real-time chunking), and the clock tells which step they belong to.
    frame_clock: str = "calls"
    # Steps a second of the dataset. Set in training; `frame_clock=wall` reads it.
    fps: float = 0.0
    # Append logged values to this JSON Lines file, for those who train without wandb.
    metrics_file: str | None = None
    # Optimiser steps that one of its lines averages over.
    metrics_every: int = 50

    def __post_init__(self) -> None:
        if self.init_from:
            self._take_over(self.init_from)
        take_over_prophet(self)
        refuse_appended(self)
        try:
            super().__post_init__()
        except (TypeError, ValueError, NotImplementedError) as error:  # the parser would hide the first two's text
            raise ConfigError(str(error)) from error
        for name in ("n_history_steps", "history_stride", "n_future_steps", "future_stride", "metrics_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least 1")
        if self.lambda_world < 0:
            raise ConfigError(f"lambda_world={self.lambda_world}: expected at least 0")
        if self.dtype not in (None, "float32", "bfloat16"):
            raise ConfigError(f"dtype={self.dtype!r}: expected 'float32' or 'bfloat16'")
        if self.use_amp:
            raise ConfigError("use_amp=true: this type has `dtype`; use --policy.dtype=bfloat16")
        if self.frame_clock not in ("calls", "wall"):
            raise ConfigError(f"frame_clock={self.frame_clock!r}: expected 'calls' or 'wall'")

    def _take_over(self, checkpoint: str) -> None:
        """Take every field of SmolVLA's config that was not given from a checkpoint."""
        if parser.parse_arg("rename_map"):
            raise ConfigError(
                "rename_map has no effect with init_from: the policy keeps the dataset's camera names. Drop it; where "
                "an environment's names differ from the dataset's, give lerobot-eval a --rename_map"
            )
        try:
            base = PreTrainedConfig.from_pretrained(checkpoint, revision=self.init_revision)
        except Exception as error:
            raise ConfigError(
                f"init_from={checkpoint!r}: {error}. Give the Hub id or the folder of a SmolVLA checkpoint, for "
                "instance lerobot/smolvla_base"
            ) from error
        if type(base) is not SmolVLAConfig:
            remedy = "--policy.path goes on from it" if isinstance(base, type(self)) else "give a SmolVLA checkpoint"
            raise ConfigError(f"init_from={checkpoint!r} is of type {base.type!r}, not 'smolvla'; {remedy}")
        taken = {}
        for each in fields(SmolVLAConfig):
            if each.name not in _OF_THE_RUN | self._given and getattr(self, each.name) != getattr(base, each.name):
                taken[each.name] = getattr(base, each.name)
                setattr(self, each.name, taken[each.name])
        logging.info(f"init_from={checkpoint}: took over {taken or 'nothing that differs'}")

    @property
    def reads_memory(self) -> bool:
        return bool(self.fusion.names)

    @property
    def has_world(self) -> bool:
        """Whether there is anything beyond SmolVLA; without a fusion and a world objective there is not (E0)."""
        return self.reads_memory or self.lambda_world > 0
