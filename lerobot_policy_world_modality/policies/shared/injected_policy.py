"""A LeRobot policy whose forward pass stays upstream's, and whose layers read a world memory.

What is added happens before the forward pass (look at the world, predict, fill the memory) and inside layers that were
swapped (`world_modality_core.memory.injected_layer`).
"""

# Annotations are objects here, not strings: LeRobot reads that of `config`.

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from torch import Tensor, nn

from lerobot_policy_world_modality.policies.shared.base_weights import load_base_weights
from lerobot_policy_world_modality.policies.shared.host import (
    PolicyWithWorld,
    WorldParts,
    gate_parameters,
    optimizer_groups,
)
from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.prophet_start import check_starts
from lerobot_policy_world_modality.policies.shared.training_companion import open_world
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from lerobot_policy_world_modality.policies.shared.world_options import VLAWorldOptions
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.injected_layer import MemoryHolder
from world_modality_core.memory.sources import MemorySource
from world_modality_core.prophet.logged_values import LoggedValues


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
        """Swap the layers that read the memory."""
        raise NotImplementedError

    def _attention(self, d: int) -> GatedCrossAttention:
        """A reader for an action stream of width d."""
        n, k, p, d_memory = self.memory_shape
        options = self.config.memory
        return GatedCrossAttention(d, d_memory, n * k * p, options.n_heads, options.gate)

    def _reader_suffix(self, name: str) -> str:
        """What is appended to the names of the logged values of the reader called `name`."""
        return ""

    # Training.

    def _forward_with_world(
        self,
        batch: dict[str, Tensor],
        reduction: str,
        base_forward: Callable[[], tuple[Tensor, dict[str, float]]],
    ) -> tuple[Tensor, LoggedValues]:
        """The base's loss, its layers reading the memory, and the Prophet's.

        Args:
            batch: A preprocessed batch, with `index` (b,).
            reduction: "mean", or "none" for LeRobot's sample weighting.
            base_forward: Runs the base's `forward`.
        """
        world_batch = self.recorded_batch(batch)
        with self.reading(world_batch, self.config.memory.source):
            loss, values = base_forward()
            base_values = {("loss_action" if name == "loss" else name): value for name, value in values.items()}
            logged = LoggedValues(
                self._reader_values({name: self._reader_suffix(name) for name in self.readers}), floats=base_values
            )
        loss_world, world_values = self._world_objective(world_batch)
        logged.add(world_values)
        if isinstance(loss_world, Tensor):
            loss = loss + (loss_world if reduction == "none" else loss_world.mean())
        self._take_log(logged, loss, batch)
        return loss, logged

    @property
    def _watched(self) -> dict[str, nn.Module]:
        readers = {self._reader_suffix(name).lstrip("_") or "memory": reader for name, reader in self.readers.items()}
        return ({"prophet": self.world.prophet} if self.config.has_world else {}) | readers

    def get_optim_params(self) -> list[dict[str, Any]]:
        """The base's parameters as the base trains them; gates with a learning rate of their own, without decay."""
        gates = gate_parameters(self.modules())
        kinds: dict[str, list[nn.Parameter]] = {"base": [], "gate": []}
        for parameter in self.parameters():
            if parameter.requires_grad:
                kinds["gate" if id(parameter) in gates else "base"].append(parameter)
        lr = self.config.optimizer_lr * self.config.memory.gate_lr_factor
        return optimizer_groups(kinds, {"base": {}, "gate": {"lr": lr, "weight_decay": 0.0}})

    # Rollout.

    def reset(self) -> None:
        """Forget the episode; LeRobot calls this before each one."""
        super().reset()
        self._forget_episode()

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Remember the current frame, and return the next action of the plan (b, a), as the base does."""
        self.remember(batch)
        with self._autocast():
            return self._finite(super().select_action(batch, *args, **kwargs))

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """Remember the current frame and plan from it, as the base does: (b, h, a) normalised actions."""
        self.remember(batch)
        with self._autocast():
            return self._finite(super().predict_action_chunk(batch, *args, **kwargs))

    @contextlib.contextmanager
    def reading(self, world_batch: WorldBatch, source: MemorySource | str | None) -> Iterator[None]:
        """Give the memory to the layers that read it, for one forward pass or one sampled chunk; drop it afterwards."""
        holders = self._found(MemoryHolder).values()
        if holders:
            memory = self.memory_of(world_batch, source)
            for holder in holders:
                holder.remember(memory)
        try:
            yield
        finally:
            for holder in holders:
                holder.forget()

    @contextlib.contextmanager
    def _reading_live(self, batch: dict[str, Tensor]) -> Iterator[None]:
        """Give the memory of the current frame to the layers that read it, for one sampled chunk."""
        if not self.config.reads_memory:
            yield
            return
        with self.reading(self._live_batch(batch), self.config.memory.rollout_source):
            yield
