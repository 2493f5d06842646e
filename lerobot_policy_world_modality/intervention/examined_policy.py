"""A loaded policy, seen through what all policy types share."""

from __future__ import annotations

from typing import Any

import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import PreTrainedPolicy, make_policy, make_pre_post_processors
from torch import Tensor

from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint
from lerobot_policy_world_modality.policies.shared.host import PolicyWithWorld, host_of
from world_modality_core.configs import MemoryConfig
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.gated_attention import GatedReader
from world_modality_core.prophet.network import Prophet


class ExaminedPolicy:
    """A loaded policy, seen through what all policy types share.

    Args:
        config: The policy's config, with `pretrained_path`.
        checkpoint: Its checkpoint.
        meta: Metadata of the dataset.
    """

    def __init__(self, config: Any, checkpoint: Checkpoint, meta: LeRobotDatasetMetadata):
        self.config = config
        config.pretrained_path = checkpoint.folder
        config.metrics_file = None
        self.policy: PreTrainedPolicy = make_policy(config, ds_meta=meta)
        self.policy.eval()
        self.host: PolicyWithWorld = host_of(self.policy)
        self.preprocess, self.postprocess = make_pre_post_processors(
            config,
            pretrained_path=str(checkpoint.folder),
            preprocessor_overrides={"device_processor": {"device": str(config.device)}},
        )
        self.device = torch.device(config.device)

    @property
    def memory(self) -> MemoryConfig | None:
        """Options of the memory that the action path reads; None where it reads none."""
        return self.host.config.memory if self.host.config.reads_memory else None

    @property
    def has_latents(self) -> bool:
        """Whether the policy was given a companion, so that recorded latents can be looked up."""
        return self.host.latent_reader.companion is not None

    @property
    def prophet(self) -> Prophet | None:
        """The predictor; None without one."""
        return self.host.world.prophet

    @property
    def space(self) -> LatentNormaliser:
        """The latents' normaliser."""
        return self.host.world.space

    @property
    def readers(self) -> dict[str, GatedReader]:
        """The modules through which the action path reads the memory, by name; each has a `gate`."""
        return self.host.readers

    def noise(self, b: int, seed: int) -> Tensor:
        """(b, h, a) noise for a policy that samples its actions; the same for the same seed."""
        width = getattr(self.config, "max_action_dim", None) or self.config.action_feature.shape[0]
        draws = torch.Generator().manual_seed(seed)
        steps = getattr(self.config, "chunk_size", None) or self.config.horizon
        return torch.randn(b, steps, width, generator=draws).to(self.device)
