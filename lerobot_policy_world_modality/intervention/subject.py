"""A loaded policy, seen through what all policy types share."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy, make_policy, make_pre_post_processors
from torch import Tensor, nn

from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint
from lerobot_policy_world_modality.policies.shared.latent_reader import LatentReader
from lerobot_policy_world_modality.policies.shared.memory_filling import memory_readers
from world_modality_core.configs import MemoryConfig
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.prophet.network import Prophet


class Subject:
    """A loaded policy, seen through what all policy types share.

    Args:
        config: The policy's config, with `pretrained_path`.
        checkpoint: Its checkpoint.
        meta: Metadata of the dataset.
    """

    def __init__(self, config: Any, checkpoint: Checkpoint, meta: LeRobotDatasetMetadata):
        self.config = config
        config.pretrained_path = checkpoint.folder
        if hasattr(config, "metrics_file"):
            config.metrics_file = None
        self.policy: PreTrainedPolicy = make_policy(config, ds_meta=meta)
        self.policy.eval()
        self.preprocess, self.postprocess = make_pre_post_processors(
            config,
            pretrained_path=str(checkpoint.folder),
            preprocessor_overrides={"device_processor": {"device": str(config.device)}},
        )
        self.device = torch.device(config.device)

    @property
    def memory(self) -> MemoryConfig | None:
        """Options of the memory that the action path reads; None where it reads none."""
        return self.config.memory if getattr(self.config, "reads_memory", False) else None

    @property
    def latent_reader(self) -> LatentReader | None:
        """What the policy looks through; None for a policy without a world."""
        return getattr(self.policy, "latent_reader", None)

    @property
    def has_latents(self) -> bool:
        """Whether the policy was given a companion, so that recorded latents can be looked up."""
        return self.latent_reader is not None and self.latent_reader.companion is not None

    @cached_property
    def prophet(self) -> Prophet | None:
        """The predictor, whatever holds it."""
        return next(iter(self.modules(Prophet).values()), None)

    @cached_property
    def space(self) -> LatentNormaliser | None:
        """The latents' space, whatever holds it."""
        return next(iter(self.modules(LatentNormaliser).values()), None)

    @cached_property
    def readers(self) -> dict[str, nn.Module]:
        """The modules through which the action path reads the memory, by name; each has a `gate`."""
        names = {id(module): name for name, module in self.policy.named_modules()}
        return {names[id(module)]: module for module in memory_readers(self.policy)}

    @property
    def memory_shape(self) -> tuple[int, int, int, int]:
        """(n, k, p, d) of one frame's memory."""
        holder = self.policy if hasattr(self.policy, "memory_shape") else self.policy.world
        return holder.memory_shape

    def modules(self, kind: type[nn.Module]) -> dict[str, nn.Module]:
        """All modules of a kind by name; without the frozen originals that adapters keep beside the trained copies."""
        named = self.policy.named_modules()
        return {name: module for name, module in named if isinstance(module, kind) and "original_module" not in name}

    def noise(self, b: int, seed: int) -> Tensor:
        """(b, h, a) noise for a policy that samples its actions; the same for the same seed."""
        width = getattr(self.config, "max_action_dim", None) or self.config.action_feature.shape[0]
        draws = torch.Generator().manual_seed(seed)
        return torch.randn(b, self.config.chunk_size, width, generator=draws).to(self.device)
