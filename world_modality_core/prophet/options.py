"""Options of `wm-prophet`, and which episodes they mean."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Literal

import numpy as np
import torch

from world_modality_core.configs import LanguageConfig, ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.prophet.data import Frames

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
    # "future", or "shuffled": futures of another episode of the same task, a control that can't know what will happen.
    targets: Literal["future", "shuffled"] = "future"
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
        for name, low in (
            ("n_obs_steps", 1), ("history_stride", 1), ("n_future_steps", 1), ("future_stride", 1), ("steps", 1),
            ("batch_size", 1), ("warmup_steps", 0), ("eval_freq", 1), ("eval_frames", 1), ("save_freq", 1),
            ("state_loss_weight", 0), ("weight_decay", 0), ("seed", 0),
        ):  # fmt: skip
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
        for name in ("lr", "grad_clip_norm"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a positive number")
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


@dataclass
class Split:
    """Which frames are learned from and which are measured on; only frames with a future inside their episode.

    Attributes:
        training: (n,) int64 frames.
        held_out: (m,) int64 frames, at most `eval_frames`.
        episodes: Episodes of each companion that are learned from.
        held_out_episodes: Episodes of each companion that are measured on.
    """

    training: torch.Tensor
    held_out: torch.Tensor
    episodes: list[list[int]]
    held_out_episodes: list[list[int]]


def split_frames(frames: Frames, cfg: ProphetTrainingConfig) -> Split:
    """Choose the frames to learn from and to measure on.

    Raises:
        ConfigError: if an episode isn't there, or nothing is left to learn from.
    """
    n_companions = len(frames.companions)
    sizes = [len(companion.bounds) for companion in frames.companions]
    chosen = parse_episodes(cfg.episodes, sizes, "episodes")
    excluded = parse_episodes(cfg.exclude_episodes, sizes, "exclude_episodes")
    usable = np.array([
        (chosen[c] is None or e in chosen[c]) and e not in (excluded[c] or ()) for c, e in frames.origin.tolist()
    ])  # fmt: skip
    task, rng = frames.episode_task(), np.random.default_rng(cfg.seed)
    is_held_out = np.zeros(len(usable), dtype=bool)
    for number in np.unique(task[usable]):
        members = np.flatnonzero(usable & (task == number))
        # At least one, but never a task's only episode.
        n = min(max(1, round(cfg.eval_split * len(members))), len(members) - 1) if cfg.eval_split else 0
        is_held_out[rng.permutation(members)[:n]] = True

    def frames_of(is_in: np.ndarray) -> torch.Tensor:
        spans = [np.arange(start, end - cfg.future_stride) for start, end in frames.bounds[is_in]]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *spans]))

    def numbers_of(is_in: np.ndarray) -> list[list[int]]:
        return [frames.origin[is_in & (frames.origin[:, 0] == c), 1].tolist() for c in range(n_companions)]

    training, held_out = frames_of(usable & ~is_held_out), frames_of(is_held_out)
    if not len(training):
        raise ConfigError(
            f"no frame to learn from: episodes={cfg.episodes!r}, exclude_episodes={cfg.exclude_episodes!r} and "
            f"future_stride={cfg.future_stride} leave none"
        )
    if len(held_out) > cfg.eval_frames:
        held_out = held_out[torch.linspace(0, len(held_out) - 1, cfg.eval_frames).round().long()]
    return Split(training, held_out, numbers_of(usable & ~is_held_out), numbers_of(is_held_out))


def parse_episodes(text: str, sizes: list[int], field: str) -> list[set[int] | None]:
    """Read lists of episodes such as "0,5,7-12;3".

    Args:
        text: One list for each companion, separated by ";". An empty one means that nothing was said.
        sizes: Episodes of each companion.
        field: The option's name, for messages.

    Returns:
        The episodes of each companion; None where the list is empty.

    Raises:
        ConfigError: if the text can't be read or names an episode that isn't there.
    """
    lists = text.split(";") if text.strip() else [""] * len(sizes)
    if len(lists) != len(sizes):
        raise ConfigError(
            f"{field}={text!r} has {len(lists)} lists for {len(sizes)} companions; give one for each, separated by ';' "
            "(an empty one for a companion without)"
        )
    found: list[set[int] | None] = []
    for part, size in zip(lists, sizes, strict=True):
        numbers: set[int] = set()
        for term in filter(None, (term.strip() for term in part.split(","))):
            first, _, last = term.partition("-")
            if not first.isdigit() or not (last or first).isdigit():
                raise ConfigError(f"{field}={text!r}: cannot read {term!r}; expected numbers and ranges: 0,5,7-12")
            numbers |= set(range(int(first), int(last or first) + 1))
        if numbers and max(numbers) >= size:
            raise ConfigError(
                f"{field}={text!r}: there is no episode {max(numbers)}; the companion has {size} episodes"
            )
        found.append(numbers or None)
    return found


class OtherEpisodes:
    """Draws frames of another episode of the same task (`targets=shuffled`).

    Args:
        frames: All frames.
        training: (n,) the frames to draw among.

    Raises:
        ConfigError: if a task has a single episode.
    """

    def __init__(self, frames: Frames, training: torch.Tensor):
        index = training.numpy()
        episode = np.searchsorted(frames.bounds[:, 0], index, side="right") - 1
        task = frames.episode_task()[episode]
        order = np.lexsort((index, episode, task))
        self._sorted = index[order]
        lonely = [int(t) for t in np.unique(task) if len(np.unique(episode[task == t])) < 2]
        if lonely:
            raise ConfigError(
                f"targets='shuffled' exchanges futures between episodes of a task, but {frames.tasks[lonely[0]]!r} has "
                "a single one to learn from; use more episodes, or --targets=future"
            )
        # Of each frame: where its task and its episode begin and end in the sorted list.
        self._block = {}
        for name, label in (("task", task[order]), ("episode", episode[order])):
            edges = np.flatnonzero(np.diff(label, prepend=label[0] - 1, append=label[-1] + 1))
            which = np.searchsorted(edges, np.arange(len(label)), side="right") - 1
            self._block[name] = np.stack([edges[which], edges[which + 1]], axis=1)
        self._place = np.empty(frames.n_frames, dtype=np.int64)
        self._place[self._sorted] = np.arange(len(index))

    def draw(self, index: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """A frame of another episode of the same task for each of `index` (b,), uniform over all there are."""
        place = self._place[index.numpy()]
        task, episode = self._block["task"][place], self._block["episode"][place]
        n_others = (task[:, 1] - task[:, 0]) - (episode[:, 1] - episode[:, 0])
        share = torch.rand(len(index), generator=generator, dtype=torch.float64).numpy()
        drawn = task[:, 0] + (share * n_others).astype(np.int64)
        drawn = drawn + (drawn >= episode[:, 0]) * (episode[:, 1] - episode[:, 0])
        return torch.from_numpy(self._sorted[drawn])
