"""The frames of one or several companions as one sequence, and windows of latents, states and tasks from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from world_modality_core.io.dataset_files import first_bad_frame, read_column
from world_modality_core.io.errors import ConfigError, DiskFullError, UserError
from world_modality_core.latents.companion import Companion, CompanionError, default_root, open_companion
from world_modality_core.latents.gpu_latent_table import GpuLatentTable

# Share of the accelerator's free memory that the latents may take.
ON_DEVICE_SHARE = 0.5


def open_companions(names: Sequence[str], field: str = "companions") -> list[Companion]:
    """Open companions and hold them against each other.

    Args:
        names: Folders or repository ids.
        field: The option that named them, for messages.

    Raises:
        ConfigError: if one can't be opened, two were not made by the same encoder and PCA, or at another frame rate, or
            two are one: what is held out of the first would be learned from the second.
    """
    companions: list[Companion] = []
    for name in names:
        try:
            companion = open_companion(root=name) if Path(name).exists() else open_companion(name)
            bad = companion.table.bad_rows()
        except DiskFullError:
            raise
        except (UserError, OSError) as error:
            raise ConfigError(f"{field}={name!r}: {error}") from error
        bad = bad[~np.isin(companion.table.episode_index[bad], companion.info.excluded)]
        if len(bad):
            raise ConfigError(
                f"{field}={name!r}: row {bad[0]} and {len(bad) - 1} others hold NaN or Inf; run wm-precompute with "
                "the same options into a new folder"
            )
        first = companions[0] if companions else companion
        wrong = first.spec.differences(companion.spec)
        if first.fps != companion.fps:
            wrong.append(f"fps: {first.fps} != {companion.fps}")
        if wrong:
            raise ConfigError(
                f"companions {names[0]!r} and {name!r} don't hold the same kind of latents: {'; '.join(wrong)}. Make "
                f"the second with wm-precompute --reuse_from={names[0]}"
            )
        for before, other in zip(names, companions, strict=False):
            if other.info.content_sha256 == companion.info.content_sha256:
                raise ConfigError(f"{field}={name!r} holds the very latents of {before!r}; name each once")
        companions.append(companion)
    return companions


def default_source(companion: Companion) -> Path:
    """Where the source of a companion is looked for: its stripped copy beside it, else LeRobot's folder."""
    stripped = companion.root.with_name(companion.root.name + "_stripped")
    return stripped if stripped.is_dir() else default_root(companion.source.repo_id)


class CompanionFrames:
    """Frames of companions, numbered through.

    Args:
        companions: Of one encoder; see `open_companions`.
        states_from: Folder of each one's source (or a copy of it), to read the robot's states from; None for no states.

    Attributes:
        bounds: (e, 2) int64, first frame and one past the last frame of each episode.
        origin: (e, 2) int64, companion and episode in that companion, of each episode.
        tasks: The distinct task strings.
        task: (n,) int64 task of each frame.
        states: (n, s) float32 states as recorded, or None.
    """

    def __init__(self, companions: list[Companion], states_from: Sequence[str | Path] | None = None):
        self.companions = companions
        sizes = [int(companion.bounds[-1, 1]) for companion in companions]
        self._starts = np.cumsum([0, *sizes])
        self.bounds = np.concatenate([c.bounds + s for c, s in zip(companions, self._starts, strict=False)])
        self.origin = np.concatenate([
            np.stack([np.full(len(c.bounds), i), np.arange(len(c.bounds))], axis=1) for i, c in enumerate(companions)
        ])  # fmt: skip
        self.tasks: list[str] = []
        self.task = torch.cat([self._read_tasks(companion) for companion in companions])
        self.states = None
        if states_from is not None:
            self.states = _read_states(companions, states_from)
        self._sources = states_from
        self._gpu_tables: list[GpuLatentTable] | None = None

    @property
    def n_frames(self) -> int:
        """Frames in all."""
        return int(self._starts[-1])

    @cached_property
    def actions(self) -> Tensor | None:
        """(n, a) float32 actions as recorded; None where the sources weren't named or one has none."""
        metas = [LeRobotDatasetMetadata(Path(source).name, root=source) for source in self._sources or ()]
        if not metas or any(ACTION not in meta.features for meta in metas):
            return None
        parts = []
        for meta in metas:
            shape = meta.features[ACTION]["shape"]
            if bad := first_bad_frame(meta.root, ACTION, shape):
                raise ConfigError(f"{str(meta.root)!r}: {bad}; mend the values")
            parts.append(torch.tensor(read_column(meta.root, ACTION, shape)).float())
        return torch.cat(parts)

    def episode_task(self) -> np.ndarray:
        """(e,) task of each episode: its first frame's."""
        return self.task.numpy()[self.bounds[:, 0]]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents over all frames, each (p * d,) float32."""
        weight = torch.tensor(np.diff(self._starts) / self.n_frames)[:, None]
        means = torch.stack([c.mean for c in self.companions]).double()
        stds = torch.stack([c.std for c in self.companions]).double()
        mean = (weight * means).sum(0)
        # Written so that a single companion's figures come out as they are.
        variance = (weight * (stds.square() + (means - mean).square())).sum(0)
        return mean.float(), variance.sqrt().float()

    def keep_on(self, device: torch.device) -> bool:
        """Copy the latents to an accelerator if they fit there; says whether."""
        n_bytes = sum(companion.table.latents.nbytes for companion in self.companions)
        if device.type != "cuda" or n_bytes > ON_DEVICE_SHARE * torch.cuda.mem_get_info(device)[0]:
            return False
        self._gpu_tables = [GpuLatentTable(companion.table, device) for companion in self.companions]
        return True

    def latents(self, index: Tensor, offsets: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Read latents at `index[i] + offsets[j]`, staying inside the episode of `index[i]`.

        Args:
            index: (b,) frames, on the CPU.
            offsets: w offsets in frames.
            device: Where to.

        Returns:
            latents (b, w, p * d) float16 and is_pad (b, w), as `LatentTable.gather`.
        """
        owner = np.searchsorted(self._starts[1:], index.numpy(), side="right")
        parts, places = [], []
        for i in np.unique(owner):
            place = torch.from_numpy(np.flatnonzero(owner == i))
            local = index[place] - int(self._starts[i])
            if self._gpu_tables is not None:
                parts.append(self._gpu_tables[i].gather(local.to(device), offsets))
            else:
                latents, is_pad = self.companions[i].table.gather(local, offsets)
                parts.append((latents.to(device), is_pad.to(device)))
            places.append(place)
        if len(parts) == 1:
            return parts[0]
        back = torch.cat(places).argsort().to(device)
        return tuple(torch.cat(part)[back] for part in zip(*parts, strict=True))

    def states_at(self, index: Tensor, offsets: Sequence[int]) -> Tensor:
        """(b, w, s) states at `index[i] + offsets[j]`; outside the episode, its nearest frame's."""
        episode = np.searchsorted(self.bounds[:, 0], index.numpy(), side="right") - 1
        rows = index.numpy()[:, None] + np.asarray(offsets)
        rows = np.clip(rows, self.bounds[episode, :1], self.bounds[episode, 1:] - 1)
        return self.states[torch.from_numpy(rows)]

    def _read_tasks(self, companion: Companion) -> Tensor:
        meta = LeRobotDatasetMetadata(companion.repo_id, root=companion.root)
        texts = {int(row.task_index): str(task) for task, row in meta.tasks.iterrows()}
        own = read_column(companion.root, "task_index").reshape(-1)
        number = np.zeros(max(texts) + 1, dtype=np.int64)
        for index, text in texts.items():
            if text not in self.tasks:
                self.tasks.append(text)
            number[index] = self.tasks.index(text)
        return torch.from_numpy(number[own])


def _read_states(companions: Sequence[Companion], sources: Sequence[str | Path]) -> Tensor:
    """(n, s) states of all frames."""
    parts: list[Tensor] = []
    for companion, source in zip(companions, sources, strict=True):
        remedy = (
            "name the folder of the companion's source, or of its stripped copy, with --sources, or leave the state "
            "out (--prophet.use_state=false, --state_loss_weight=0)"
        )
        if not (Path(source) / "meta/info.json").exists():
            raise ConfigError(
                f"no dataset at {str(source)!r} to read the states of {companion.repo_id!r} from; {remedy}"
            )
        meta = LeRobotDatasetMetadata(Path(source).name, root=source)
        try:
            companion.check_source(meta)
        except CompanionError as error:
            raise ConfigError(str(error)) from error
        if OBS_STATE not in meta.features:
            raise ConfigError(f"{str(source)!r} has no feature {OBS_STATE!r}, only {sorted(meta.features)}; {remedy}")
        shape = meta.features[OBS_STATE]["shape"]
        if bad := first_bad_frame(source, OBS_STATE, shape):
            raise ConfigError(f"{str(source)!r}: {bad}; mend the values, or leave the state out")
        parts.append(torch.tensor(read_column(source, OBS_STATE, shape)).float())
    if len({part.shape[1] for part in parts}) > 1:
        raise ConfigError(
            f"the states of the companions' sources have widths {[part.shape[1] for part in parts]}; one Prophet reads "
            "one kind of robot"
        )
    return torch.cat(parts)
