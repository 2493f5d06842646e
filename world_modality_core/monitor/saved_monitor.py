"""A monitor and its folder: one safetensors and one JSON, all that is needed beside a policy that it never asks.

monitor.json          windows, Prophets' options, encoder spec, tasks, names of the scores, what it was fitted on
monitor.safetensors   prophets.*, space.* (standardisation and PCA of the latents), state.*, language, bank.*,
                      calibration.*
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors.torch import save_file
from torch import Tensor, nn

from world_modality_core.configs import ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.io.files import as_dataclass, read_json, read_tensors, reading, write_text, writing
from world_modality_core.io.hub_transfer import hub_errors
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.monitor.calibration import Calibration
from world_modality_core.monitor.score_types.chunk_disagreement import ChunkDisagreement
from world_modality_core.monitor.score_types.command_error import CommandError, CommandModel
from world_modality_core.monitor.score_types.disagreement import Disagreement
from world_modality_core.monitor.score_types.elapsed_time import ElapsedTime
from world_modality_core.monitor.score_types.end_mismatch import EndMismatch
from world_modality_core.monitor.score_types.forecast_error import ForecastError
from world_modality_core.monitor.score_types.nearest_latent import LatentBank, NearestLatent
from world_modality_core.monitor.score_types.score import MonitorScore
from world_modality_core.monitor.score_types.state_error import StateError
from world_modality_core.monitor.score_types.stillness import Stillness
from world_modality_core.prophet.network import Prophet

FORMAT_VERSION = 2
MONITOR_FILE = "monitor.json"
TENSORS_FILE = "monitor.safetensors"
_AGAIN = "take a copy that is whole, or fit it again with wm-monitor fit"
# Larger than any that can be meant: a description is read before anything is built from it.
_MOST = {"n_tasks": 10_000, "n_phases": 100, "n_kept": 100_000, "n_maxima": 100_000, "n_prophets": 100}


@dataclass
class MonitorDescription:
    """Contents of `monitor.json`.

    Attributes:
        encoder: The resolved spec of the latents, as a dict.
        prophet: The Prophets' options, as a dict.
        n_prophets: How many there are.
        n_obs_steps, history_stride, n_future_steps, future_stride: Their windows. A tick is every `future_stride`.
        state_dim, language_dim: Widths of the robot's state and of a task's embedding, 0 where they aren't read.
        action_dim: Width of the robot's action, 0 where no model of its commands was fitted.
        fps: Steps a second.
        tasks: The instructions that it knows.
        lengths: Usual length of a successful episode of each, in steps.
        n_phases: Parts of that length that have thresholds of their own.
        n_kept: Latents kept of each task and phase, at most.
        n_maxima: Calibration episodes that say how scores are combined, at most, of a task.
        window: Ticks over which the combined score is averaged.
        false_alarm_rate: What is promised of successful episodes.
        fitted_on: What it was fitted on, for people and for comparisons.
        format_version: Version of these two files' layout.
    """

    encoder: dict
    prophet: dict
    n_prophets: int
    n_obs_steps: int
    history_stride: int
    n_future_steps: int
    future_stride: int
    state_dim: int
    language_dim: int
    action_dim: int
    fps: float
    tasks: list[str]
    lengths: list[int]
    n_phases: int
    n_kept: int
    n_maxima: int
    window: int
    false_alarm_rate: float
    fitted_on: dict = field(default_factory=dict)
    format_version: int = FORMAT_VERSION

    def check(self, path: Path) -> None:
        """Refuse numbers that no monitor has.

        Raises:
            DamagedFileError: naming the field.
        """
        counts = ("n_prophets", "n_obs_steps", "history_stride", "n_future_steps", "future_stride", "n_phases",
                  "n_kept", "n_maxima", "window")  # fmt: skip
        for name in counts:
            if not 1 <= getattr(self, name) <= _MOST.get(name, 10_000):
                raise DamagedFileError(f"{path}: {name}={getattr(self, name)}; {_AGAIN}")
        if len(self.lengths) != len(self.tasks) or not self.tasks or min(self.lengths) < 1:
            raise DamagedFileError(f"{path}: lengths={self.lengths!r:.60} for {len(self.tasks)} tasks; {_AGAIN}")
        if not (0 < self.false_alarm_rate < 1 and 0 < self.fps < 1e6):
            raise DamagedFileError(f"{path}: false_alarm_rate={self.false_alarm_rate}, fps={self.fps}; {_AGAIN}")


class _CalibrationTensors(nn.Module):
    """Shapes and values of a `Calibration`, as they are saved."""

    def __init__(self, n_tasks: int, n_phases: int, n_scores: int, n_maxima: int):
        super().__init__()
        self.register_buffer("maxima", torch.zeros(n_tasks, n_phases, n_scores, n_maxima))
        self.register_buffer("count", torch.zeros(n_tasks, n_phases, n_scores, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(n_tasks, n_phases, dtype=torch.float64))
        self.register_buffer("std", torch.ones(n_tasks, n_phases, dtype=torch.float64))
        self.register_buffer("quantile", torch.zeros(n_tasks, dtype=torch.float64))


class Monitor(nn.Module):
    """What watches episodes: Prophets, the space that they see in, successful latents, and calibration.

    Args:
        description: What it is.
    """

    def __init__(self, description: MonitorDescription):
        super().__init__()
        self.description = this = description
        self.spec = as_dataclass(EncoderSpec, this.encoder, MONITOR_FILE)
        self.space = LatentNormaliser(self.spec)
        self.options = as_dataclass(ProphetConfig, this.prophet, MONITOR_FILE)
        self.prophets = nn.ModuleList(
            Prophet(
                self.spec.n_tokens,
                self.spec.dim,
                this.n_obs_steps,
                this.n_future_steps,
                self.options,
                state_dim=this.state_dim,
                language_dim=this.language_dim,
            )
            for _ in range(this.n_prophets)
        )
        if self.options.use_language:
            self.register_buffer("language", torch.zeros(len(this.tasks), this.language_dim))
        if self.options.use_state:
            self.register_buffer("state_shift", torch.zeros(this.state_dim))
            self.register_buffer("state_scale", torch.ones(this.state_dim))
        if this.action_dim:
            self.commands = CommandModel(this.state_dim, this.action_dim)
        n_tasks = len(this.tasks)
        self.bank = LatentBank(n_tasks, this.n_phases, this.n_kept, self.spec.n_tokens * self.spec.dim)
        n_scores = len(self.score_names)
        self.calibration_tensors = _CalibrationTensors(n_tasks, this.n_phases, n_scores, this.n_maxima)
        self.requires_grad_(False)
        self.eval()

    @cached_property
    def scores(self) -> list[MonitorScore]:
        """What is told at each tick, in the order of `score_names`."""
        this, is_several = self.description, self.description.n_prophets * self.options.n_hypotheses > 1
        return [
            ForecastError(this.n_future_steps),
            *([StateError(this.n_future_steps)] if self.tells_state else []),
            *([CommandError(self.commands)] if this.action_dim else []),
            EndMismatch(this.n_future_steps),
            *([Disagreement()] if is_several else []),
            NearestLatent(self.bank),
            Stillness(this.n_future_steps),
            ElapsedTime(),
            ChunkDisagreement(),
        ]

    @property
    def tells_state(self) -> bool:
        """Whether the Prophets read the robot's state and say where it will be."""
        return self.options.use_state and self.options.tells_state

    @property
    def score_names(self) -> list[str]:
        """Names of all c raw scores."""
        return [name for score in self.scores for name in score.names]

    @property
    def groups(self) -> list[int]:
        """Which of the c raw scores count as one in the combination: those of one `MonitorScore`; -1 for none."""
        return [-1 if name in score.uncombined else i for i, score in enumerate(self.scores) for name in score.names]

    @cached_property
    def calibration(self) -> Calibration:
        """How raw scores become alarms."""
        this = self.description
        arrays = {name: value.cpu().numpy() for name, value in self.calibration_tensors.named_buffers()}
        return Calibration(this.lengths, this.n_phases, self.groups, this.window, **arrays)

    def take_calibration(self, calibration: Calibration) -> None:
        """Take another calibration, of the tasks' lengths too."""
        this = self.description
        this.lengths = [int(length) for length in calibration.lengths]
        this.n_maxima, this.window = calibration.maxima.shape[-1], calibration.window
        shape = (len(this.tasks), this.n_phases, len(self.score_names), this.n_maxima)
        self.calibration_tensors = _CalibrationTensors(*shape)
        for name in dict(self.calibration_tensors.named_buffers()):
            getattr(self.calibration_tensors, name).copy_(torch.from_numpy(getattr(calibration, name)))
        self.__dict__.pop("calibration", None)

    def task_numbers(self, tasks: list[str]) -> list[int]:
        """Numbers of instructions.

        Raises:
            ConfigError: if one is unknown: nothing was calibrated for it.
        """
        known = self.description.tasks
        if unknown := [task for task in tasks if task not in known]:
            raise ConfigError(
                f"task={unknown[0]!r:.100} is none that the monitor was fitted on ({', '.join(map(repr, known))[:300]})"
                "; give the episodes that instruction, or fit a monitor on episodes of it with wm-monitor fit"
            )
        return [known.index(task) for task in tasks]

    def save(self, folder: str | Path) -> None:
        """Write the two files; the tensors first, so that a folder with a description is whole."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: value.contiguous().cpu() for name, value in self.state_dict().items()}
        with writing(folder / TENSORS_FILE) as aside:
            save_file(tensors, aside)
        write_text(folder / MONITOR_FILE, json.dumps(asdict(self.description), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, field: str = "monitor") -> Monitor:
        """Read a monitor's two files.

        Args:
            folder: Where they are: a folder, or a repository on the Hub.
            field: The option that named it, for messages.

        Raises:
            ConfigError: if there are none.
            DamagedFileError: naming the tensor or the field that is missing, unknown, or of another shape or type.
        """
        folder = at_hand(folder)
        path, weights = folder / MONITOR_FILE, folder / TENSORS_FILE
        for file in (path, weights):
            if not file.is_file():
                raise ConfigError(
                    f"{field}={str(folder)!r} has no {file.name}: name a folder that wm-monitor fit wrote"
                )
        raw = read_json(path, dict)
        if raw.get("format_version") != FORMAT_VERSION:
            raise DamagedFileError(
                f"{path}: format_version {raw.get('format_version')!r:.60}, expected {FORMAT_VERSION}; use the release "
                "of this package that wrote it, or fit it again with wm-monitor fit"
            )
        description = as_dataclass(MonitorDescription, raw, path)
        description.check(path)
        with reading(path, "a monitor", _AGAIN), torch.device("meta"):  # shapes only: nothing is allocated
            monitor = cls(description)
        tensors = read_tensors(weights)
        check_tensors(monitor.state_dict(), tensors, weights)
        monitor.load_state_dict(tensors, assign=True)
        return monitor.requires_grad_(False)


def at_hand(name: str | Path) -> Path:
    """The folder of a monitor, downloaded if its name is one of the Hub's."""
    if Path(name).exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+", str(name)):
        return Path(name)
    with hub_errors(str(name)):
        return Path(snapshot_download(str(name), allow_patterns=[MONITOR_FILE, TENSORS_FILE]))


def check_tensors(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
    """Hold tensors against what a description asks for.

    Raises:
        DamagedFileError: naming the first that is missing, unknown, not finite, or of another shape or type.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise DamagedFileError(f"{path} has no tensor {name!r}; {_AGAIN}")
        if name not in expected:
            raise DamagedFileError(f"{path}: the tensor {name[:100]!r} is none of a monitor's; {_AGAIN}")
        want, have = expected[name], found[name]
        if want.shape != have.shape or want.dtype != have.dtype:
            raise DamagedFileError(
                f"{path}: {name} is {have.dtype} {tuple(have.shape)}, and {MONITOR_FILE} asks for {want.dtype} "
                f"{tuple(want.shape)}; {_AGAIN}"
            )
        if have.is_floating_point() and not torch.isfinite(have).all():
            raise DamagedFileError(f"{path}: {name} holds NaN or Inf; {_AGAIN}")
    counts = {"bank.count": expected["bank.latents"].shape[2], "calibration_tensors.count": None}
    counts["calibration_tensors.count"] = expected["calibration_tensors.maxima"].shape[3]
    for name, most in counts.items():
        if found[name].min() < 0 or found[name].max() > most:
            raise DamagedFileError(f"{path}: {name} goes from {found[name].min()} to {found[name].max()}; {_AGAIN}")


def described(monitor: Monitor) -> dict[str, Any]:
    """What a monitor was fitted on, and what it promises, for records."""
    this = monitor.description
    return {"false_alarm_rate": this.false_alarm_rate, "tasks": this.tasks, "fitted_on": this.fitted_on}
