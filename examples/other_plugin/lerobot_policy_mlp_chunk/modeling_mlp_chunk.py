"""mlp_chunk: (b, s) state -> (b, h, a) actions."""

from collections import deque

import torch
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from lerobot_policy_mlp_chunk.configuration_mlp_chunk import MLPChunkConfig


class MLPChunkPolicy(PreTrainedPolicy):
    """One hidden state per action step, then a linear head."""

    config_class = MLPChunkConfig
    name = "mlp_chunk"

    def __init__(self, config: MLPChunkConfig, **kwargs):
        super().__init__(config)
        d = config.d_model
        self.embed = nn.Linear(config.robot_state_feature.shape[0], d)
        self.step = nn.Parameter(torch.randn(config.chunk_size, d) * 0.02)
        self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, d), nn.GELU())
        self.head = nn.Linear(d, config.action_feature.shape[0])
        self.reset()

    def get_optim_params(self):
        return self.parameters()

    def reset(self) -> None:
        self._actions: deque[Tensor] = deque()

    def _chunk(self, batch: dict[str, Tensor]) -> Tensor:
        return self.head(self.mlp(self.embed(batch[OBS_STATE])[:, None] + self.step))

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, float]]:
        loss = (self._chunk(batch) - batch[ACTION]).abs().mean()
        return loss, {"loss": loss.item()}

    @torch.no_grad()
    def predict_action_chunk(self, batch: dict[str, Tensor], **kwargs) -> Tensor:
        self.eval()
        return self._chunk(batch)

    @torch.no_grad()
    def select_action(self, batch: dict[str, Tensor], **kwargs) -> Tensor:
        if not self._actions:
            self._actions.extend(self.predict_action_chunk(batch)[:, : self.config.n_action_steps].unbind(1))
        return self._actions.popleft()
