"""The training loop of `wm-prophet`, its curve, and how it goes on after a kill."""

from __future__ import annotations

import json
import math
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from world_modality_core.encoders.sentence_encoder import SentenceEncoder
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import (
    holds_files,
    naming_full_disk,
    read_json,
    read_json_lines,
    reading,
    write_text,
    writing,
)
from world_modality_core.io.option_differences import option_differences
from world_modality_core.io.progress import Progress
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.prophet.data import CompanionFrames
from world_modality_core.prophet.episode_split import OtherEpisodes, Split
from world_modality_core.prophet.losses import frame_cosine, future_latent_loss, masked_mean, skill_metrics
from world_modality_core.prophet.network import Futures, Prophet
from world_modality_core.prophet.saved_prophet import CONFIG_FILE, CURVE_FILE, FORMAT_VERSION, WEIGHTS_FILE
from world_modality_core.prophet.training_options import ProphetTrainingConfig

RESUME_FILE = "state/resume.safetensors"


class StateSpace(nn.Module):
    """Standardisation of the robot's states.

    Args:
        states: (n, s) the states that are learned from.
    """

    def __init__(self, states: Tensor):
        super().__init__()
        states = states.double()
        self.register_buffer("mean", states.mean(0).float())
        # A value that never changes stays 0 rather than being blown up.
        self.register_buffer("std", states.std(0, correction=0).clamp(min=1e-6).float())

    def forward(self, states: Tensor) -> Tensor:
        """(..., s) states as recorded -> standardised."""
        return (states - self.mean) / self.std


class ProphetModel(nn.Module):
    """A Prophet, the spaces that it sees in, and the head of the state loss.

    Args:
        cfg: Options.
        frames: What it learns from.
        split: Which of it.
        language_dim: Width of a task embedding.
    """

    def __init__(self, cfg: ProphetTrainingConfig, frames: CompanionFrames, split: Split, language_dim: int):
        super().__init__()
        first = frames.companions[0]
        self.space = LatentNormaliser(first.spec)
        self.space.fill(*frames.moments(), first.pca, None)
        self.state = StateSpace(frames.states[split.training]) if cfg.reads_states else None
        state_dim = frames.states.shape[1] if cfg.reads_states else 0
        self.prophet = Prophet(
            first.spec.n_tokens,
            first.spec.dim,
            cfg.n_obs_steps,
            cfg.n_future_steps,
            cfg.prophet,
            state_dim=state_dim,
            language_dim=language_dim,
        )
        # Only for the loss: never part of what policies load. A Prophet that forecasts states has a head of its own.
        needs_head = cfg.state_loss_weight and not cfg.prophet.tells_state
        self.future_state = nn.Linear(cfg.prophet.d_model, state_dim) if needs_head else None

    def future_states(self, futures: Futures, now: Tensor) -> Tensor:
        """Predicted states (b, k, s), standardised, from the present ones (b, s), as recorded."""
        if self.future_state is None:
            return self.state(now)[:, None] + futures.displacement
        return self.future_state(futures.hidden.mean(2))

    def shared(self) -> dict[str, Tensor]:
        """The weights that policies load."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith("future_state.")}


def _check_tasks(frames: CompanionFrames) -> None:
    """Refuse frames whose task has no text, where the Prophet reads it.

    Raises:
        ConfigError: naming the first such episode.
    """
    blank = [number for number, text in enumerate(frames.tasks) if not text.strip()]
    bad = np.flatnonzero(np.isin(frames.task.numpy(), blank))
    if len(bad):
        episode = np.searchsorted(frames.bounds[:, 0], bad, side="right") - 1
        companion, first = frames.origin[episode[0]]
        raise ConfigError(
            f"prophet.use_language=true, but {len(np.unique(episode))} episodes have an empty task, the first is "
            f"episode {first} of {frames.companions[companion].root}; give the source's episodes one with "
            "lerobot-edit-dataset (--operation.type=modify_tasks) and run wm-precompute again, or use "
            "--prophet.use_language=false"
        )


class ProphetTraining:
    """A run: its model, data, optimiser and curve.

    Args:
        cfg: Options.
        frames: All frames.
        split: Which are learned from and measured on.
        device: Where to compute.

    Attributes:
        step: Optimiser steps so far.
        curve: Lines of `curve.jsonl` so far.
    """

    def __init__(self, cfg: ProphetTrainingConfig, frames: CompanionFrames, split: Split, device: torch.device):
        self.cfg, self.frames, self.split, self.device = cfg, frames, split, device
        self.root = Path(cfg.output_dir).resolve()
        self.language = None
        if cfg.prophet.use_language:
            _check_tasks(frames)
            sentences = SentenceEncoder(cfg.language.model_id, revision=cfg.language.revision)
            self.language = sentences.encode(frames.tasks).to(device)
            cfg.language.dim = sentences.dim
        self.others = OtherEpisodes(frames, split.training) if cfg.targets == "shuffled" else None
        torch.manual_seed(cfg.seed)
        self.model = ProphetModel(cfg, frames, split, cfg.language.dim).to(device)
        matrices = [p for p in self.model.parameters() if p.ndim == 2]
        rest = [p for p in self.model.parameters() if p.ndim != 2]
        groups = [{"params": matrices, "weight_decay": cfg.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=cfg.lr, fused=True)
        self._history = [-i * cfg.history_stride for i in reversed(range(cfg.n_obs_steps))]
        self._future = [i * cfg.future_stride for i in range(1, cfg.n_future_steps + 1)]
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self._sums: dict[str, Tensor] = {}  # of the losses since the last line of the curve
        frames.keep_on(device)

    def run(self) -> None:
        """Train to the end, from where the folder's last save left off.

        Raises:
            ConfigError: if the folder holds something else.
            UserError: if the loss isn't finite.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.root.with_name(f".{self.root.name}.lock"), timeout=0):
                self._run()
        except Timeout:
            raise ConfigError(
                f"output_dir={str(self.root)!r}: another wm-prophet is writing there; wait for it, or give another"
            ) from None

    def _run(self) -> None:
        self._resume()
        with Progress("Prophet", self.cfg.steps, "steps", self.step) as progress:
            while self.step < self.cfg.steps:
                self._train_step()
                progress.update()
                is_last = self.step == self.cfg.steps
                if self.step % self.cfg.eval_freq == 0 or is_last:
                    self._add_line()
                    progress.note(**{name: f"{v:.3f}" for name, v in self.curve[-1].items() if name in _SHOWN})
                if self.step % self.cfg.save_freq == 0 or is_last:
                    self._save()
        shutil.rmtree((self.root / RESUME_FILE).parent, ignore_errors=True)

    # One step.

    def _train_step(self) -> None:
        cfg = self.cfg
        # Batches, shuffled targets and dropout depend on the number of the step alone: a run that was cut off goes on
        # with what it would have drawn.
        number = (cfg.seed * 2**40 + self.step) % 2**64
        generator = torch.Generator().manual_seed(number)
        torch.manual_seed(number)
        picked = torch.randint(len(self.split.training), (cfg.batch_size,), generator=generator)
        index = self.split.training[picked]
        target = index if self.others is None else self.others.draw(index, generator)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, cfg)
        losses = self._losses(index, target)
        total = sum(losses.values())
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), cfg.grad_clip_norm)
        self.optimizer.step()
        self.step += 1
        values = {"loss": losses["world"], "grad_norm": norm}
        if "state" in losses:
            values["loss_state"] = losses["state"] / cfg.state_loss_weight
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()

    def _losses(self, index: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Weighted losses at frames (b,), with the futures of frames `target` (b,)."""
        history, history_is_pad, future, future_is_pad = self._windows(index, target)
        futures = self.model.prophet(history, history_is_pad, *self._conditions(index))
        losses = {"world": future_latent_loss(futures, future, future_is_pad).mean()}
        if self.cfg.state_loss_weight:
            predicted, true, _ = self._states(futures, index, target)
            error = masked_mean((predicted - true).square().mean(-1), future_is_pad)
            losses["state"] = self.cfg.state_loss_weight * error
        return losses

    def _states(self, futures: Futures, index: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predicted and true states (b, k, s) and present ones (b, 1, s), standardised."""
        now = self.frames.states[index].to(self.device)
        true = self.model.state(self.frames.states_at(target, self._future).to(self.device))
        return self.model.future_states(futures, now), true, self.model.state(now)[:, None]

    def _windows(self, index: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """History (b, t, p, d), its padding, future (b, k, p, d) and its padding, standardised."""
        n, frames = len(self._history), self.frames
        if target is index:
            latents, is_pad = frames.latents(index, self._history + self._future, self.device)
        else:
            past, future = (
                frames.latents(i, o, self.device) for i, o in ((index, self._history), (target, self._future))
            )
            latents, is_pad = (torch.cat(pair, dim=1) for pair in zip(past, future, strict=True))
        latents = self.model.space.standardise_rows(latents)
        return latents[:, :n].contiguous(), is_pad[:, :n], latents[:, n:], is_pad[:, n:]

    def _conditions(self, index: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """State (b, s) and language (b, l) at frames, where the Prophet reads them."""
        config = self.cfg.prophet
        state = self.model.state(self.frames.states[index].to(self.device)) if config.use_state else None
        return state, self.language[self.frames.task[index].to(self.device)] if config.use_language else None

    # The curve.

    @torch.no_grad()
    def skill(self) -> dict[str, float]:
        """Skill over copying the last latent (and state), on the held-out frames; always on their true futures."""
        if not len(self.split.held_out):
            return {}
        self.model.eval()
        parts, state_parts = [], []
        for index in self.split.held_out.split(self.cfg.batch_size):
            history, history_is_pad, future, is_pad = self._windows(index, index)
            futures = self.model.prophet(history, history_is_pad, *self._conditions(index))
            parts.append((frame_cosine(futures.best(), future), frame_cosine(history[:, -1:], future), is_pad))
            if self.cfg.state_loss_weight:
                predicted, true, now = self._states(futures, index, index)
                errors = ((guess - true).square().mean(-1) for guess in (predicted, now))
                state_parts.append((*errors, is_pad))
        self.model.train()
        values = skill_metrics(*(torch.cat(part) for part in zip(*parts, strict=True)))
        if state_parts:
            values["state_skill"] = _state_skill(*(torch.cat(part) for part in zip(*state_parts, strict=True)))
        return {name: float(value) for name, value in values.items()}

    def _add_line(self) -> None:
        n_steps = self.step - (self.curve[-1]["step"] if self.curve else 0)
        means = {name: float(total) / n_steps for name, total in sorted(self._sums.items())}
        if not all(math.isfinite(value) for value in means.values()):
            raise UserError(f"loss is {means} at step {self.step}; lower lr={self.cfg.lr}")
        self._sums = {}
        self.curve.append({"step": self.step} | means | self.skill())
        with naming_full_disk(self.root / CURVE_FILE), open(self.root / CURVE_FILE, "a") as file:
            file.write(json.dumps(self.curve[-1]) + "\n")

    # Saving and going on.

    def describe(self) -> dict:
        """What `config.json` says."""
        cfg, companions = self.cfg, self.frames.companions
        return {
            "type": "prophet",
            "format_version": FORMAT_VERSION,
            "n_obs_steps": cfg.n_obs_steps,
            "history_stride": cfg.history_stride,
            "n_future_steps": cfg.n_future_steps,
            "future_stride": cfg.future_stride,
            "prophet": asdict(cfg.prophet),
            "encoder": companions[0].spec.to_dict(),
            "language": asdict(cfg.language),
            "fps": companions[0].fps,
            "training": cfg.recipe()
            | {
                "companions": [
                    {
                        "repo_id": companion.repo_id,
                        "content_sha256": companion.info.content_sha256,
                        "episodes": self.split.episodes[i],
                        "held_out_episodes": self.split.held_out_episodes[i],
                    }
                    for i, companion in enumerate(companions)
                ]
            },
            "n_training_frames": len(self.split.training),
        }

    def _machine(self) -> dict[str, str]:
        """What the last bits of a result depend on, beside the options."""
        return {
            "device": str(self.device),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
        }

    def _save(self) -> None:
        """Write the weights for policies, and in one file all that going on needs."""
        weights = {name: value.contiguous().cpu() for name, value in self.model.shared().items()}
        _write_aside(weights, self.root / WEIGHTS_FILE, {"step": str(self.step)})
        names = {id(p): name for name, p in self.model.named_parameters()}
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for parameter, state in self.optimizer.state.items():
            tensors |= {f"optimizer.{key}.{names[id(parameter)]}": value for key, value in state.items()}
        tensors |= {f"sums.{name}": torch.as_tensor(value) for name, value in self._sums.items()}
        tensors = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
        progress = {"step": str(self.step), "curve": json.dumps(self.curve)} | self._machine()
        (self.root / RESUME_FILE).parent.mkdir(exist_ok=True)
        _write_aside(tensors, self.root / RESUME_FILE, progress)

    def _resume(self) -> None:
        """Begin a folder, or take up the state of the run in it."""
        described, config_file = json.loads(json.dumps(self.describe())), self.root / CONFIG_FILE
        if config_file.is_file():
            stored = read_json(config_file, dict)
            if stored != described:
                raise ConfigError(
                    f"output_dir={str(self.root)!r} holds a Prophet of other options "
                    f"({'; '.join(option_differences(stored, described))}). Give another --output_dir, or delete that "
                    "folder"
                )
        elif holds_files(self.root):
            raise ConfigError(
                f"output_dir={str(self.root)!r} is not empty and holds no Prophet; give another --output_dir"
            )
        else:
            write_text(config_file, json.dumps(described, indent=2))
        if (self.root / RESUME_FILE).is_file():
            self._take_up(self.root / RESUME_FILE)
        elif finished_step(self.root) == self.cfg.steps:
            self.step = self.cfg.steps
            self.curve = read_json_lines(self.root / CURVE_FILE)
            return
        # The lines beyond the last save come again.
        write_text(self.root / CURVE_FILE, "".join(json.dumps(line) + "\n" for line in self.curve))

    def _take_up(self, file: Path) -> None:
        with reading(file, "the state of a run", "delete it, and the run begins anew"):
            with safe_open(file, "pt", device=str(self.device)) as saved:
                progress = saved.metadata()
                tensors = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118 - not a dict
            self.step, self.curve = int(progress["step"]), json.loads(progress["curve"])
            self.model.load_state_dict(_part(tensors, "model."))
            for name, parameter in self.model.named_parameters():
                self.optimizer.state[parameter] = {
                    key: tensors[f"optimizer.{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")
                }
        self._sums = _part(tensors, "sums.")
        print(f"Going on from step {self.step} of {self.cfg.steps}")
        other = [f"{name} {progress[name]} -> {now}" for name, now in self._machine().items() if progress[name] != now]
        if other:
            print(
                f"wm-prophet: the run was begun elsewhere ({'; '.join(other)}): its last bits will differ from those "
                "of an uninterrupted run",
                file=sys.stderr,
            )


# Values of the curve that the progress bar shows.
_SHOWN = ("loss", "loss_state", "prophet_skill", "state_skill")


def _state_skill(predicted: Tensor, copied: Tensor, is_pad: Tensor) -> Tensor:
    """One minus the squared error (b, k) of predicted future states over that of staying, over all steps that exist."""
    return 1 - predicted[~is_pad].sum() / copied[~is_pad].sum().clamp(min=1e-12)


def learning_rate(step: int, cfg: ProphetTrainingConfig) -> float:
    """Linear warm-up to `lr`, then a cosine down to a hundredth of it."""
    if step < cfg.warmup_steps:
        return cfg.lr * (step + 1) / (cfg.warmup_steps + 1)
    share = (step - cfg.warmup_steps) / max(1, cfg.steps - cfg.warmup_steps)
    return cfg.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


def finished_step(root: Path) -> int:
    """Optimiser steps behind the weights in a folder; 0 without any."""
    if not (root / WEIGHTS_FILE).is_file():
        return 0
    with reading(root / WEIGHTS_FILE, "a Prophet"), safe_open(root / WEIGHTS_FILE, "pt") as saved:
        return int(saved.metadata()["step"])


def _write_aside(tensors: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    with writing(file) as aside:
        save_file(tensors, aside, metadata=metadata)


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
