"""The host: what every policy with a world does alike, whatever policy it is otherwise.

    index or frames  ->  LatentReader  ->  WorldBatch  ->  Prophet  ->  memory  ->  readers of the action path

A type says which of its modules read the memory and runs its own forward pass; everything else is here: recorded and
live latents, the memory and its draws, gates and their warm-up, the world objective, the count of optimiser steps, the
log, a rollout's frames, and what evaluations and interventions ask of a policy.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lerobot.configs import parser
from lerobot.utils.constants import OBS_STATE, RNG_STATE, TRAINING_STATE_DIR
from lerobot.utils.random_utils import load_rng_state
from torch import Tensor, nn

from lerobot_policy_world_modality.hub.on_hub import OnHub
from lerobot_policy_world_modality.hub.trusted_files import is_typed
from lerobot_policy_world_modality.policies.shared.kept_frames import KEPT_TASK
from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.memory_filling import (
    draw_generator,
    fill_memory,
    future_mass,
    memory_shape,
    predict_futures,
    prophet_objective,
)
from lerobot_policy_world_modality.policies.shared.prophet_start import start_prophet
from lerobot_policy_world_modality.policies.shared.training_log import TrainingLog
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from lerobot_policy_world_modality.policies.shared.world_options import MemoryOptions, WorldOptions
from world_modality_core.io.errors import ObservationError
from world_modality_core.latents.companion import Companion
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.gated_attention import Gate, GatedReader
from world_modality_core.memory.sources import Memory, MemorySource
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.network import Futures, Prophet


def make_prophet(config: MemoryOptions) -> Prophet:
    """The Prophet of a policy whose encoder is resolved."""
    spec, options = config.encoder, config.prophet
    return Prophet(
        spec.n_tokens,
        spec.dim,
        config.n_history,
        config.n_future_steps,
        options,
        state_dim=config.robot_state_feature.shape[0] if options.use_state or options.tells_state else 0,
        language_dim=config.language.dim,
    )


class CountsSteps:
    """A mixin, before a module: counts optimiser steps, in its state and beside it, where nobody waits for a device.

    Attributes:
        step: The same number as `train_step`.
        is_loaded: Whether it was loaded.
    """

    def _begin_count(self) -> None:
        self.register_buffer("train_step", torch.zeros((), dtype=torch.int64))
        self.step, self.is_loaded = 0, False

    def count_step(self) -> None:
        """Count one more."""
        self.step += 1
        self.train_step.add_(1)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.step, self.is_loaded = int(self.train_step), True


class WorldParts(CountsSteps, nn.Module):
    """What of a policy's world is trained or saved, apart from what reads it.

    Args:
        config: The policy's config, its encoder resolved. Without a world (E0) only the count of steps is left.
    """

    def __init__(self, config: MemoryOptions):
        super().__init__()
        self._begin_count()
        self.space = self.prophet = None
        if config.has_world:
            config.prophet.d_model = config.prophet.d_model or 256
            self.space = LatentNormaliser(config.encoder)
            self.prophet = make_prophet(config) if config.n_future_steps else None


class PolicyWithWorld(OnHub):
    """A mixin, before LeRobot's policy class.

    Attributes:
        world: Holds `space` (the latent normaliser), `prophet` and `train_step`, the count of optimiser steps: what
            `scheduled` memory and all draws depend on, so that a resumed run goes on alike.
        latent_reader: Everything frozen that the policy looks through.
    """

    config: WorldOptions
    latent_reader: LatentReader

    # Construction.

    def _connect_world(self, companion: Companion | None, stats: dict[str, dict[str, Tensor]] | None) -> None:
        """Connect the parts of the world, once all are built.

        Args:
            companion: In training.
            stats: The dataset's statistics, in training.
        """
        config, world = self.config, self.world
        self.latent_reader.space = world.space
        if companion is not None:
            world.space.fill(companion.mean, companion.std, companion.pca, companion.codebook)
            if config.prophet is not None:
                start_prophet(config, world.prophet, world.space, stats)
        if config.pretrained_path and not (is_typed("resume") or parser.parse_arg("policy.metrics_file")):
            config.metrics_file = None  # a checkpoint's own: what a file names is not written to
        self._log = TrainingLog(config.metrics_file, config.metrics_every)
        self._last, self._has_trained = None, False
        self._largest_batch = 2 if is_typed("resume") else 0  # a run may go on with what an epoch left over

    @property
    def _step(self) -> int:
        """Optimiser steps so far."""
        return self.world.step

    @property
    def device(self) -> torch.device:
        """Where the policy is."""
        return self.world.train_step.device

    # The world batch and the memory made of it.

    def recorded_batch(self, batch: dict[str, Tensor], everything: bool = False) -> WorldBatch:
        """What the policy sees of the world at recorded frames; see `LatentReader.recorded`."""
        if self.training and not self._has_trained:
            self._has_trained = True
            self._restore_generators()
        world_batch = self.latent_reader.recorded(batch, self.device, everything and self.config.has_world)
        if not self.training:  # in training once the step's loss is read: see `update`
            self.latent_reader.check_excluded(batch)
        return world_batch

    def _restore_generators(self) -> None:
        """Before the first step after `--resume=true`: dropout and flow noise go on where the checkpoint's run was.

        LeRobot restores the generators too, and then starts its data loader, which draws from them.
        """
        state = Path(self.config.pretrained_path or "").parent / TRAINING_STATE_DIR
        if is_typed("resume") and (state / RNG_STATE).is_file():
            load_rng_state(state)

    def remember(self, batch: dict[str, Tensor]) -> None:
        """Remember the current frame of a rollout, if any memory or input needs it.

        Raises:
            ObservationError: if the robot's state isn't finite.
        """
        state = batch.get(OBS_STATE)
        if state is not None and not torch.isfinite(state).all():
            bad = (~torch.isfinite(state)).reshape(-1, state.shape[-1]).any(0).nonzero().flatten().tolist()
            raise ObservationError(f"{OBS_STATE} is NaN or Inf in dimension(s) {bad}: no action can follow from it")
        if self.config.needs_live_history or self.config.needs_live_tokens:
            self.latent_reader.remember(batch)

    def memory_of(self, world_batch: WorldBatch, source: MemorySource | str | None = None) -> Memory:
        """Fill the memory that the action path reads, and hold its gates shut while they warm up.

        Args:
            world_batch: What the policy sees.
            source: Where the memory comes from; None for the training source.
        """
        config, prophet = self.config.memory, self.world.prophet
        is_held = self._step < config.gate_warmup_steps
        for reader in self.readers.values():
            reader.gate.is_held = is_held
        seed = config.seed if world_batch.draw_seed is None else world_batch.draw_seed
        generator = draw_generator(seed, self._step if self.training else self._n_plans, self.device)
        source = config.source if source is None else MemorySource(source)
        self._largest_batch = max(self._largest_batch, world_batch.batch_size)
        is_remainder = self.training and world_batch.batch_size < self._largest_batch
        given = (world_batch, source, config, self.memory_shape, generator, self._step, is_remainder)
        return fill_memory(prophet, *given)

    @property
    def memory_shape(self) -> tuple[int, int, int, int] | None:
        """(n, k, p, d) of one sample's memory; None where the action path reads none."""
        return memory_shape(self.config) if self.config.reads_memory else None

    @property
    def readers(self) -> dict[str, GatedReader]:
        """The modules through which the action path reads the memory behind a gate, by name."""
        return self._found(GatedReader)

    def _found(self, kind: type[nn.Module]) -> dict[str, Any]:
        """All modules of a kind by name, without the frozen originals that adapters keep beside the trained copies.

        Looked for once: a walk through a VLA's modules in every step costs milliseconds. It is done again once adapters
        have wrapped and copied modules, and where training turns into evaluation.
        """
        found = self.__dict__.setdefault("_modules_found", {})
        if kind not in found:
            named = self.named_modules()
            found[kind] = {
                name: module for name, module in named if isinstance(module, kind) and "original_module" not in name
            }
        return found[kind]

    def train(self, mode: bool = True):
        if mode != self.training:
            self.__dict__.pop("_modules_found", None)
        return super().train(mode)

    def wrap_with_peft(self, peft_config=None, peft_cli_overrides: dict | None = None):
        """As LeRobot's; modules that are asked to be trained in full come beside those of the world."""
        self.__dict__.pop("_modules_found", None)
        ours = (self._get_default_peft_targets() or {}).get("modules_to_save", [])
        if named := (peft_cli_overrides or {}).get("full_training_modules"):
            peft_cli_overrides = peft_cli_overrides | {"full_training_modules": [*dict.fromkeys([*named, *ours])]}
        return super().wrap_with_peft(peft_config, peft_cli_overrides)

    # Training.

    def _world_objective(self, world_batch: WorldBatch) -> tuple[Tensor | float, dict[str, Tensor]]:
        """The Prophet's weighted loss per sample (b,), 0 without one, and what to log."""
        if not self.config.trains_prophet:
            return 0.0, {}
        loss, skill = prophet_objective(self.world.prophet, world_batch)
        weight = self.config.world_weight
        return (weight * loss if weight > 0 else 0.0), {"loss_world": loss.mean()} | skill

    def _reader_values(self, suffixes: dict[str, str]) -> dict[str, Tensor]:
        """Gate, attention entropy and attention mass per future step of each reader's last call.

        Args:
            suffixes: Reader's name -> what is appended to the names of its values.
        """
        values = {}
        for name, reader in self.readers.items():
            suffix = suffixes[name]
            values[f"world_gate{suffix}"] = reader.last_gate
            whole = reader.last_attention_mass
            if whole is None:
                continue
            values[f"memory_entropy{suffix}"] = reader.last_attention_entropy
            mass = future_mass(whole, self.memory_shape)
            if self.config.memory.shows_seen:
                values[f"memory_mass_seen{suffix}"] = whole.sum() - mass.sum()
            values |= {f"memory_mass{suffix}_{i}": share for i, share in enumerate(mass, start=1)}
        return values

    @property
    def _watched(self) -> dict[str, nn.Module]:
        """Modules whose gradient norm is logged."""
        return {}

    def _take_log(self, logged: LoggedValues, loss: Tensor, batch: dict[str, Tensor]) -> None:
        if self.training:
            self._last = loss.detach(), batch
            self._log.watch(self._watched)
            self._log.take(logged)

    def update(self) -> None:
        """Count an optimiser step; LeRobot's trainer calls this after each."""
        if self._last is not None:
            # The trainer reads the loss next, so these wait for nothing.
            loss, batch = self._last
            self.latent_reader.check_excluded(batch)
            check_finite_loss(loss, batch, self._step)
            self._last = None  # holds a batch
        self.world.count_step()
        self._log.write(self._step)

    # Rollout.

    def _forget_episode(self) -> None:
        """What `reset` does for the world."""
        self._n_plans, self._acted_by, self._instruction = 0, {}, None
        if "latent_reader" not in self.__dict__:  # upstream's constructors reset before there is a world
            return
        self.latent_reader.frames.clear()
        if self.world.is_loaded and self.latent_reader.companion is None:  # a rollout begins, or will
            self.latent_reader.load(self.device)

    def _live_batch(self, batch: dict[str, Tensor]) -> WorldBatch:
        """Count a plan, and look at the world as it is now."""
        self._n_plans += 1
        return self.latent_reader.live(batch, self.device)

    def _check_acts_alone(self) -> None:
        """Refuse a second thread between two resets: histories and queues of several tasks would mix, without an error.

        Raises:
            ObservationError: naming LeRobot's option that does so.
        """
        thread = threading.get_ident()
        if self._acted_by.setdefault("thread", thread) != thread:  # in one step: both may come at once
            raise ObservationError(
                "two threads act with one policy, whose memory is of one episode: use --env.max_parallel_tasks=1"
            )

    def _drop_old_plan(self, batch: dict[str, Tensor], *queues: deque | None) -> None:
        """Drop the actions that are left of a plan once the instruction has changed.

        Args:
            batch: The current observation.
            queues: Where a policy that plans ahead keeps its actions.
        """
        instruction = batch.get(KEPT_TASK, batch.get("task"))
        if self.config.reads_task and self._instruction != instruction:
            for actions in filter(None, queues):
                actions.clear()
        self._instruction = instruction

    def _finite(self, actions: Tensor) -> Tensor:
        """The actions, if a robot can be given them.

        Raises:
            ObservationError: if one is NaN or Inf.
        """
        if not torch.isfinite(actions).all():
            raise ObservationError(
                f"{self.config.type} planned actions that are NaN or Inf: its weights or its input aren't finite"
            )
        return actions

    def _autocast(self) -> contextlib.AbstractContextManager:
        """bf16 arithmetic where `dtype` says so.

        In training LeRobot 0.6.1's launcher, told by the same, does it already; later ones have an option of their own.
        """
        if self.config.rollout_dtype != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    # What evaluations and interventions ask.

    @torch.no_grad()
    def predict_futures(self, batch: dict[str, Tensor]) -> Futures:
        """Let the Prophet predict from recorded frames; standardised latents, and states where it tells them."""
        return predict_futures(self.world.prophet, self.recorded_batch(batch, everything=True))

    @torch.no_grad()
    def predict_latents(self, batch: dict[str, Tensor]) -> Tensor:
        """Predict future latents of recorded frames.

        Args:
            batch: A preprocessed batch with `index` (b,), and state and task where the Prophet is conditioned.

        Returns:
            (b, k, p, d) latents as the companion stores them, of the hypothesis that the Prophet believes in.
        """
        return self.world.space.restore(self.predict_futures(batch).best())

    def _recorded_plan_batch(self, batch: dict[str, Tensor], futures: Futures | None, seed: int | None) -> WorldBatch:
        """The world batch of a plan from recorded frames, with futures and draws that are given."""
        world_batch = self.recorded_batch(batch, everything=self.config.reads_memory)
        world_batch.futures, world_batch.draw_seed = futures, seed
        return world_batch

    def close_gates(self, is_closed: bool) -> None:
        """Close the gates of all readers, or give them back to what training made of them."""
        for reader in self.readers.values():
            reader.gate.is_closed = is_closed


def check_finite_loss(loss: Tensor, batch: dict[str, Tensor], step: int) -> None:
    """Stop a training that can only go wrong from here on.

    Args:
        loss: Of the last step, () or (b,).
        batch: What it is of.
        step: Optimiser steps before it.

    Raises:
        ValueError: naming the frames, and what of them isn't finite.
    """
    if torch.isfinite(loss).all():
        return
    floats = {key: value for key, value in batch.items() if torch.is_tensor(value) and value.is_floating_point()}
    bad = {key: (~torch.isfinite(value)).reshape(len(value), -1).any(1) for key, value in floats.items() if value.ndim}
    found = [
        f"{key} isn't finite at index {batch['index'][rows.to(batch['index'].device)].tolist()}"
        for key, rows in bad.items()
        if rows.any() and len(rows) == len(batch["index"])
    ]
    what = "; ".join(found) or f"inputs are finite (index {batch['index'].tolist()}); lower the learning rate"
    raise ValueError(f"the loss of step {step + 1} is {loss.mean().item()}: {what}")


def host_of(policy: nn.Module) -> PolicyWithWorld | None:
    """The policy with a world in what LeRobot loaded, be it wrapped by adapters; None for any other policy."""
    return next((module for module in policy.modules() if isinstance(module, PolicyWithWorld)), None)


def gate_parameters(modules: Iterable[nn.Module]) -> dict[int, nn.Parameter]:
    """The parameters of all gates among `modules`, by id: they have a learning rate of their own."""
    return {id(p): p for module in modules if isinstance(module, Gate) for p in module.parameters()}


def optimizer_groups(kinds: dict[str, list[nn.Parameter]], options: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Parameter groups in the order of `kinds`, without the empty ones."""
    return [{"params": parameters, **options[kind]} for kind, parameters in kinds.items() if parameters]
