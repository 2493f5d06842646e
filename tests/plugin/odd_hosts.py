"""A policy of somebody else's, whose last layer is one of several that our own tests' policies don't have."""

from dataclasses import dataclass, field

import torch
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.optim import AdamWConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.processor import make_default_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import nn

from lerobot_policy_world_modality.policies.shared.world_variant import (
    WorldVariantConfig,
    variant_member,
    world_variant,
)

__getattr__ = variant_member
D = 16


@PreTrainedConfig.register_subclass("odd")
@dataclass
class OddConfig(PreTrainedConfig):
    """A chunk of actions from the state."""

    kind: str = ""
    chunk_size: int = 4
    n_action_steps: int = 4
    optimizer_lr: float = 1e-3
    normalization_mapping: dict[str, NormalizationMode] = field(default_factory=dict)
    observation_delta_indices = reward_delta_indices = None

    def get_optimizer_preset(self):
        return AdamWConfig(lr=self.optimizer_lr)

    def get_scheduler_preset(self):
        return None

    def validate_features(self):
        pass

    @property
    def action_delta_indices(self):
        return list(range(self.chunk_size))


@world_variant(layer="heads.0.out")
class OddWorldConfig(WorldVariantConfig, OddConfig):
    """The same with a world memory."""


class OddPolicy(PreTrainedPolicy):
    """(b, s) -> (b, h, a), by the head that `config.kind` names."""

    config_class = OddConfig
    name = "odd"

    def __init__(self, config: OddConfig, **kwargs):
        super().__init__(config)
        a = config.action_feature.shape[0]
        self.embed = nn.Linear(config.robot_state_feature.shape[0], D)
        self.step = nn.Parameter(torch.randn(config.chunk_size, D) * 0.02)
        self.heads = nn.ModuleList([nn.ModuleDict({"out": nn.Linear(D, a)})])
        self.alias = self.heads[0]["out"]
        self.conv = nn.Conv1d(D, a, 3, padding=1, bias=False)
        self.attention = nn.MultiheadAttention(D, 2, batch_first=True)
        self.norm = nn.LayerNorm(D)
        self.few = nn.Linear(a, a)
        self.reset()

    def get_optim_params(self):
        return self.parameters()

    def reset(self):
        self._actions = []

    def _chunk(self, batch):
        x = self.embed(batch[OBS_STATE])[:, None] + self.step
        head = self.heads[0]["out"]
        match self.config.kind:
            case "twice":
                return head(x) + head(x.flip(1)).flip(1)
            case "conv":
                return self.conv(x.mT).mT
            case "flat":
                return head(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            case "by hand":
                return nn.functional.linear(x, head.weight, head.bias)
            case "keyword":
                return head(input=x)
            case "attention":
                return head(self.attention(x, x, x)[0])
        return head(x)

    def forward(self, batch):
        loss = (self._chunk(batch) - batch[ACTION]).abs().mean()
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch, **kwargs):
        return self._chunk(batch)

    @torch.no_grad()
    def select_action(self, batch, **kwargs):
        if not self._actions:
            self._actions = [*self.predict_action_chunk(batch).unbind(1)]
        return self._actions.pop(0)


def make_odd_pre_post_processors(config, dataset_stats=None):
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
