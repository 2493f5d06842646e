"""Options of `wm-prophet`. They need neither torch nor LeRobot, so that a wrong one is answered at once."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

from world_modality_core.configs import LanguageConfig, ProphetConfig, check_at_least, check_choices, check_positive
from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError

ProphetTargets = Literal["future", "shuffled"]
DEFAULT_WIDTH = 256


@dataclass
class ProphetTrainingConfig:
    """Options of `wm-prophet`."""

    # Companions to learn from: folders or repository ids, separated by commas. All of one encoder and PCA.
    companions: str = ""
    # Folders of their sources or stripped copies, in the same order, for the robot's states. Not given: the
    # <companion>_stripped beside each, or else LeRobot's folder of the source. Actions are never read.
    sources: str = ""
    # Where the Prophet goes. The same command goes on with what it finds there.
    output_dir: str = ""
    # The network; d_model is 256 if not given.
    prophet: ProphetConfig = field(default_factory=ProphetConfig)
    # The sentence encoder of a Prophet with prophet.use_language.
    language: LanguageConfig = field(default_factory=LanguageConfig)
    # History frames t that it sees.
    n_obs_steps: int = 3
    # Frames between two of them.
    history_stride: int = 1
    # Future frames k that it predicts.
    n_future_steps: int = 4
    # Frames between two of them.
    future_stride: int = 1
    # Learn from these episodes only, e.g. 0,5,7-12; one list per companion, separated by ";" (an empty one: all).
    episodes: str = ""
    # Don't learn from these, nor measure on them; same form.
    exclude_episodes: str = ""
    # Share of each task's episodes that is held out to measure the skill on; 0 for none.
    eval_split: float = 0.05
    # "shuffled": futures of another episode of the same task, a control that can't know what will happen.
    targets: ProphetTargets = "future"
    # Weight of a loss on the robot's future states, predicted from the Prophet's hidden states; 0 for none.
    state_loss_weight: float = 0.0
    # Optimiser steps.
    steps: int = 5000
    # Frames per step.
    batch_size: int = 128
    # Peak learning rate (AdamW); falls to a hundredth by a cosine.
    lr: float = 5e-4
    # Steps of linear warm-up.
    warmup_steps: int = 200
    # Weight decay of the matrices.
    weight_decay: float = 1e-2
    # Gradient clipping.
    grad_clip_norm: float = 1.0
    # Steps between two lines of the curve.
    eval_freq: int = 250
    # Frames that the skill is measured on, evenly spread over the held-out episodes.
    eval_frames: int = 2048
    # Steps between two saves.
    save_freq: int = 500
    # Seed of weights, batches, dropout and of the held-out episodes.
    seed: int = 0
    # "cpu", "cuda", ...; the best one at hand if not given.
    device: str | None = None
    # Also draw the skill curve into curve.png.
    plot: bool = False

    def __post_init__(self) -> None:
        for name in ("companions", "output_dir"):
            if not getattr(self, name):
                raise ConfigError(f"{name} is empty: name it with --{name}")
        check_device(self.device, is_needed=False)
        check_choices(self)
        check_at_least(self, 1, "n_obs_steps", "history_stride", "n_future_steps", "future_stride", "steps")
        check_at_least(self, 1, "batch_size", "eval_freq", "eval_frames", "save_freq")
        check_at_least(self, 0, "warmup_steps", "state_loss_weight", "weight_decay", "seed")
        check_positive(self, "lr", "grad_clip_norm")
        if self.prophet.tells_state and not self.state_loss_weight:
            raise ConfigError(
                "prophet.tells_state=true, but nothing teaches it (state_loss_weight=0); set --state_loss_weight=1"
            )
        if not 0 <= self.eval_split < 1:
            raise ConfigError(f"eval_split={self.eval_split}: expected a share from 0 to below 1")
        if self.prophet.init_from or self.prophet.freeze:
            raise ConfigError("prophet.init_from and prophet.freeze are options of policies; wm-prophet trains anew")
        self.prophet.d_model = self.prophet.d_model or DEFAULT_WIDTH
        if self.prophet.d_model % self.prophet.n_heads:
            raise ConfigError(f"prophet.n_heads={self.prophet.n_heads} does not divide d_model={self.prophet.d_model}")
        if self.sources and len(self.source_names) != len(self.companion_names):
            raise ConfigError(
                f"sources names {len(self.source_names)} folders for {len(self.companion_names)} companions; give one "
                "for each, in the same order"
            )

    @property
    def companion_names(self) -> list[str]:
        """The companions, one by one."""
        return [name.strip() for name in self.companions.split(",")]

    @property
    def source_names(self) -> list[str]:
        """The sources, one by one."""
        return [name.strip() for name in self.sources.split(",")]

    @property
    def reads_states(self) -> bool:
        """Whether the robot's states are needed."""
        return self.prophet.use_state or self.state_loss_weight > 0

    def recipe(self) -> dict:
        """The options that the result depends on."""
        left_out = {"output_dir", "save_freq", "device", "plot", "companions", "sources"}
        return {name: value for name, value in asdict(self).items() if name not in left_out}
