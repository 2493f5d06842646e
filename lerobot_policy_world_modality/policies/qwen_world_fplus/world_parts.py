"""What the world of a qwen_world_fplus has beyond every host's: the reader of its memory, and FLARE's alignment."""

from __future__ import annotations

from torch import Tensor

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import QwenWorldFPlusConfig
from lerobot_policy_world_modality.policies.qwen_world_fplus.heads import FutureAlignment
from lerobot_policy_world_modality.policies.shared.host import WorldParts
from lerobot_policy_world_modality.policies.shared.memory_filling import make_reader
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.prophet.losses import future_latent_loss
from world_modality_core.prophet.network import Futures


class QwenWorld(WorldParts):
    """Normaliser, Prophet and count of steps, and what connects them with the action states.

    Args:
        config: The policy's config, its encoder resolved.
        d: Width of the action states.
    """

    def __init__(self, config: QwenWorldFPlusConfig, d: int):
        super().__init__(config)
        self.reader: GatedCrossAttention | None = None
        if config.use_memory:
            self.reader = make_reader(config, d)
        self.lambda_align = config.lambda_align
        self.alignment: FutureAlignment | None = None
        if config.lambda_align > 0:
            self.alignment = FutureAlignment(
                d, config.prophet.d_model, config.n_future_steps, config.encoder.n_tokens, config.encoder.dim
            )

    def align(self, states: Tensor, world_batch: WorldBatch) -> tuple[Tensor | float, dict[str, Tensor]]:
        """Weighted loss per sample (b,) of the alignment of the action states (b, h, d), 0 without, and what to log."""
        if self.alignment is None:
            return 0.0, {}
        predicted = self.alignment(states, world_batch.current)
        futures = Futures(predicted[:, None], predicted.new_zeros(len(predicted), 1))
        loss = future_latent_loss(futures, world_batch.future, world_batch.future_is_pad)
        return self.lambda_align * loss, {"loss_align": loss.mean()}
