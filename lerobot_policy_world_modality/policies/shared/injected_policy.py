"""A LeRobot policy whose forward pass stays upstream's, and whose layers read a world memory.

What is added happens before the forward pass (look at the world, predict, fill the memory) and inside layers that were
swapped (`world_modality_core.memory.injected_layer`).
"""

# Annotations are objects here, not strings: LeRobot reads that of `config`.

import contextlib
import inspect
import re
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.utils import populate_queues
from lerobot.utils.constants import ACTION, OBS_IMAGES
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.shared.base_weights import (
    check_has_weights,
    load_base_weights,
    load_own_weights,
)
from lerobot_policy_world_modality.policies.shared.host import (
    PolicyWithWorld,
    WorldParts,
    gate_parameters,
)
from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.memory_filling import make_reader
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts
from lerobot_policy_world_modality.policies.shared.training_companion import open_world
from lerobot_policy_world_modality.policies.shared.vectors import with_vectors
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from lerobot_policy_world_modality.policies.shared.world_options import VLAWorldOptions
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.injected_layer import MemoryHolder, MemoryReader, layer_width, read_memory_at
from world_modality_core.memory.sources import MemorySource
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.network import Futures


class InjectedWorldPolicy(PolicyWithWorld):
    """A mixin, before the policy class whose layers are to read the memory.

    Args:
        config: The config. In training its encoder and language fields are filled in from the companion.
        dataset_stats: Given by LeRobot; normalisation happens in the processors, so it serves a Prophet's start only.
        dataset_meta: Metadata of the training dataset; None at evaluation, where everything is computed live.

    Raises:
        ValueError: if the companion, the dataset or the checkpoint of `init_from` don't fit, before anything is built
            that takes long.
    """

    def __init__(
        self,
        config: VLAWorldOptions,
        dataset_stats: dict[str, dict[str, Tensor]] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
        **kwargs: Any,
    ):
        if config.init_from and config.pretrained_path:
            raise ValueError(
                f"init_from={config.init_from!r} starts a new run, pretrained_path={str(config.pretrained_path)!r} "
                "goes on from a checkpoint of this type; give one of them"
            )
        if config.init_from:
            check_has_weights(config.init_from)
        companion = open_world(config, dataset_meta)
        if config.prophet.use_state and config.robot_state_feature is None:
            raise ValueError("prophet.use_state=true needs a feature `observation.state`, which the dataset hasn't")
        check_starts(config, companion)
        super().__init__(config, **kwargs)
        # The base has drawn its initial weights already, and goes on drawing noise from the state that it left.
        with torch.random.fork_rng(devices=[]):
            self.latent_reader = LatentReader(config, companion)
            self.world = WorldParts(config)
            if config.reads_memory:
                self._inject()
        self._connect_world(companion, dataset_stats or (dataset_meta.stats if dataset_meta else None))
        if config.init_from:
            load_base_weights(self, config.init_from, config.init_revision)
            config.initialised_from, config.init_from = config.init_from, None
        self.reset()

    def _inject(self) -> None:
        """Let the layers read the memory that are to."""
        path = self.config.world_layer
        try:
            layer = self.get_submodule(path)
            width = layer_width(layer)
        except (AttributeError, TypeError) as error:
            raise ConfigError(
                f"{self.config.type}: world_variant(layer={path!r}) names no layer that can read a memory: {error}"
            ) from error
        read_memory_at(layer, self._attention(width))

    def _attention(self, d: int) -> GatedCrossAttention:
        """A reader for an action stream of width d."""
        return make_reader(self.config, d)

    def _reader_suffix(self, name: str) -> str:
        """What is appended to the names of the logged values of the reader called `name`."""
        return ""

    # Training.

    def forward(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, LoggedValues]:
        """Compute the base's loss, its layers reading the memory, and the Prophet's.

        Args:
            batch: A preprocessed batch, with `index` (b,).
            args, kwargs: As the base's, such as `noise` and `time` (SmolVLA), or `reduction`: "none" for LeRobot's
                sample weighting, where the base knows it.

        Returns:
            Loss, () or (b,), and the values to log (docs/metrics.md).
        """
        with self._autocast():
            return self._forward_with_world(batch, *args, **kwargs)

    def _forward_with_world(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> tuple[Tensor, LoggedValues]:
        reduction = kwargs.get("reduction", "mean")
        batch = with_vectors(batch, self.config)
        world_batch = self.recorded_batch(batch)
        with self.reading(world_batch, self.config.memory.source):
            loss, values = super().forward(batch, *args, **kwargs)
        values = {name: value for name, value in (values or {}).items() if isinstance(value, int | float)}
        base_values = {("loss_action" if name == "loss" else name): value for name, value in values.items()}
        logged = LoggedValues(
            self._reader_values({name: self._reader_suffix(name) for name in self.readers}), floats=base_values
        )
        if "loss_action" not in base_values:
            logged.add({"loss_action": loss.detach().mean()})
        loss_world, world_values = self._world_objective(world_batch)
        logged.add(world_values)
        if isinstance(loss_world, Tensor):
            loss = loss + (loss_world if reduction == "none" else loss_world.mean())
        self._take_log(logged, loss, batch)
        return loss, logged

    @property
    def _watched(self) -> dict[str, nn.Module]:
        readers = {self._reader_suffix(name).lstrip("_") or "memory": reader for name, reader in self.readers.items()}
        prophet = self.world.prophet
        return ({} if prophet is None else {"prophet": prophet}) | readers

    def update(self) -> None:
        """Count an optimiser step; LeRobot's trainer calls this after each."""
        super().update()
        for holder in self._found(MemoryHolder).values():
            holder.forget()

    def get_optim_params(self) -> list[dict[str, Any]] | dict[str, nn.Parameter]:
        """The base's parameters as the base trains them, what is of the world in their first group; gates in one more.

        By name where the base's optimiser wants names (X-VLA): that optimiser tells gates apart itself.
        """
        base = super().get_optim_params()
        if isinstance(base, dict):
            return base
        base = [*base]
        groups = base if base and isinstance(base[0], dict) else [{"params": base}]
        gates = gate_parameters(self.modules())
        groups = [{**group, "params": [p for p in group["params"] if id(p) not in gates]} for group in groups]
        known = gates.keys() | {id(p) for group in groups for p in group["params"]}
        groups[0]["params"] += [p for p in self.parameters() if id(p) not in known]
        lr = self.config.optimizer_lr * self.config.memory.gate_lr_factor
        groups.append({"params": [*gates.values()], "lr": lr, "weight_decay": 0.0})
        for group in groups:
            group["params"] = [p for p in group["params"] if p.requires_grad]
        return [group for group in groups if group["params"]]

    # Rollout.

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        super().reset()
        self._forget_episode()

    def remember(self, batch: dict[str, Tensor]) -> None:
        """Remember a frame that no action is asked for: for the memory, and in the queues of a base that has such."""
        super().remember(batch)
        populate_queues(self._observation_queues, self._as_queued(with_vectors(batch, self.config)))

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Remember the current frame, and return the next action of the plan (b, a), as the base does."""
        self._check_acts_alone()
        queues = (getattr(self, "_queues", None) or {}).get(ACTION), getattr(self, "_action_queue", None)
        self._drop_old_plan(batch, *queues)  # PI0 has both, and uses the second
        batch = with_vectors(batch, self.config)
        with self._acting(batch, super().remember):  # the base itself queues what it sees here
            return self._finite(super().select_action(batch, *args, **kwargs))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Remember the current frame and plan from it, as the base does: (b, h, a) normalised actions."""
        batch = self._as_queued(with_vectors(batch, self.config))
        with self._acting(batch, self.remember), self._reading_live(batch):
            return self._finite(super().predict_action_chunk(batch, *args, **kwargs))

    @property
    def _observation_queues(self) -> dict[str, deque]:
        """The queues of a base that sees several frames (Diffusion Policy, DiT); upstream only `select_action` fills
        them, and a policy server asks for plans."""
        return {key: queue for key, queue in (getattr(self, "_queues", None) or {}).items() if key != ACTION}

    def _as_queued(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """An observation with all cameras under one key, where the base queues them so."""
        if OBS_IMAGES not in self._observation_queues:
            return batch
        images = torch.stack([batch[key] for key in self.config.image_features], dim=-4)
        return {key: value for key, value in batch.items() if key != ACTION} | {OBS_IMAGES: images}

    def _get_action_chunk(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        # Where SmolVLA and X-VLA plan, whoever asked: select_action, predict_action_chunk, real-time chunking.
        with self._reading_live(batch):
            return super()._get_action_chunk(batch, *args, **kwargs)

    @torch.no_grad()
    def plan_recorded(
        self,
        batch: dict[str, Tensor],
        source: MemorySource | str | None = None,
        noise: Tensor | None = None,
        futures: Futures | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """Plan from recorded frames, with the memory of any source; for offline interventions.

        Args:
            batch: A preprocessed batch of the dataset, with `index` (b,).
            source: Memory source, `oracle` included; None for the training source.
            noise: Noise that the base starts from, where it takes any; drawn if None.
            futures: What the Prophet is to have predicted; None lets it predict.
            seed: Seed of the memory's draws, None for `memory.seed`; and of those of a base that takes no noise.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        world_batch = self._recorded_plan_batch(batch, futures, seed)
        devices = [] if self.device.type == "cpu" else [self.device]
        with (
            self.reading(world_batch, source),
            self._autocast(),
            torch.random.fork_rng(devices, enabled=noise is not None),
        ):
            if noise is not None:
                torch.manual_seed(seed or 0)
            return self._sample_recorded(with_vectors(batch, self.config), noise)

    def _sample_recorded(self, batch: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        """Sample a chunk (b, h, a) from recorded frames, as the base does."""
        plan = super().predict_action_chunk
        takes = inspect.signature(plan).parameters
        is_taken = noise is not None and ("noise" in takes or "kwargs" in takes)
        # Bases that queue observations (Diffusion Policy, DiT) are to plan from the batch's.
        queues, self._queues = getattr(self, "_queues", None), {}
        try:
            batch = super()._prepare_batch(batch) if hasattr(super(), "_prepare_batch") else batch
            batch.pop(ACTION, None)
            return plan(batch, **({"noise": noise} if is_taken else {}))
        finally:
            self._queues = queues

    @contextlib.contextmanager
    def _acting(self, batch: dict[str, Tensor], remember: Callable[[dict[str, Tensor]], None]) -> Iterator[None]:
        """Remember the current frame, once: a base's select_action may plan by predict_action_chunk."""
        if self.__dict__.get("_is_acting"):
            yield
            return
        remember(batch)
        self._is_acting = True
        try:
            with self._autocast():
                yield
        finally:
            self._is_acting = False

    @contextlib.contextmanager
    def reading(self, world_batch: WorldBatch, source: MemorySource | str | None) -> Iterator[None]:
        """Give the memory to the layers that read it, for one forward pass or one sampled chunk; drop it afterwards."""
        holders = self._found(MemoryHolder).values()
        if holders:
            memory = self.memory_of(world_batch, source)
            for holder in holders:
                holder.remember(memory)
        self._is_reading = True
        try:
            yield
            for name, reader in self._found(MemoryReader).items():
                if not reader.was_read:
                    raise RuntimeError(
                        f"{self.config.type} has run without calling {name.removesuffix('.world_reader')!r}, the layer "
                        "that reads the world memory: others use its weights by hand; let another layer read"
                    )
        finally:
            self._is_reading = False
            # Activation checkpointing runs layers once more in the backward pass; `update` drops the memory then.
            if not torch.is_grad_enabled():
                for holder in holders:
                    holder.forget()

    @contextlib.contextmanager
    def _reading_live(self, batch: dict[str, Tensor]) -> Iterator[None]:
        """Give the memory of the current frame to the layers that read it, for one sampled chunk."""
        if not self.config.reads_memory or self.__dict__.get("_is_reading"):
            yield
            return
        with self.reading(self._live_batch(batch), self.config.memory.rollout_source):
            yield

    # Checkpoints.

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path: str | Path, **kwargs: Any) -> "InjectedWorldPolicy":
        """Load a checkpoint of this type, as LeRobot does.

        Raises:
            ValueError: if a weight is missing, one is left over, or shapes differ.
        """
        # PI0 and PI0.5 would rename weights of older checkpoints, and only print what doesn't fit.
        return PreTrainedPolicy.from_pretrained.__func__(cls, pretrained_name_or_path, **kwargs)

    @classmethod
    def _load_as_safetensor(
        cls, model: "InjectedWorldPolicy", model_file: str, map_location: str, strict: bool
    ) -> "InjectedWorldPolicy":
        load_own_weights(model, Path(model_file))
        return model

    # Fine-tuning with adapters.

    @property
    def _saved_with_adapters(self) -> list[str]:
        """Modules of the world and around it: trained in full, and saved with an adapter.

        PEFT takes every module whose path ends so: a layer's last name, such as "1", would be many.
        """
        return ["world"] + ([self.config.world_layer] if self.config.reads_memory else [])

    def wrap_with_peft(self, peft_config=None, peft_cli_overrides: dict | None = None):
        """As LeRobot's; an adapter on `init_from`'s checkpoint names that checkpoint as its base."""
        if self.config.initialised_from and not self.config.pretrained_path:
            self.name_or_path = self.config.initialised_from
        return super().wrap_with_peft(peft_config, peft_cli_overrides)

    def _get_default_peft_targets(self) -> dict[str, Any] | None:
        """The base's targets without the layers that read the memory; those and the world are trained in full."""
        targets = super()._get_default_peft_targets()
        saved = self._saved_with_adapters
        if targets is None:  # `--peft.target_modules` is needed, as for the base
            return {"modules_to_save": saved}
        wanted = targets["target_modules"]
        if not isinstance(wanted, str):  # names of modules, wherever they are
            wanted = rf"(.*\.)?({'|'.join(map(re.escape, wanted))})"
        return targets | {
            "target_modules": rf"(?!.*({'|'.join(map(re.escape, saved))})$)({wanted})",
            "modules_to_save": [*(targets.get("modules_to_save") or []), *saved],
        }

    def _validate_peft_config(self, peft_config) -> None:
        if not self.config.initialised_from:
            super()._validate_peft_config(peft_config)
