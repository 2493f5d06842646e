"""smolvla_world: LeRobot's SmolVLA whose action path reads predicted futures (docs/smolvla_world.md).

SmolVLA's own `forward`, sampling and denoising run as they are; `InjectedWorldPolicy` does the rest.
"""

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.injected_policy import InjectedWorldPolicy
from lerobot_policy_world_modality.policies.shared.memory_filling import n_memory_tokens
from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import SmolVLAWorldConfig
from lerobot_policy_world_modality.policies.smolvla_world.fusion import MemoryTokens, read_at_prefix
from world_modality_core.memory.injected_layer import read_memory_at

# The module that each fusion lives in: trained in full, and saved with an adapter.
SAVED_WITH_ADAPTERS = {
    "f1": "action_out_proj", "f2": "action_time_mlp_out", "f3a": "world_tokens", "f3b": "world_prefix_reader"
}  # fmt: skip


class SmolVLAWorldPolicy(InjectedWorldPolicy, SmolVLAPolicy):
    """SmolVLA + Model F memory; see `InjectedWorldPolicy` for its arguments."""

    config_class = SmolVLAWorldConfig
    name = "smolvla_world"
    # Accelerate asks for the first name (LeRobot 0.6.1), LeRobot for the second (0.6.2 and later).
    _no_split_modules = _fsdp_wrap_modules = [*SmolVLAWorldConfig.world_wraps]

    def _inject(self) -> None:
        fusion, options = self.config.fusion, self.config.memory
        vlm = self.model.vlm_with_expert
        d_expert, d_prefix = vlm.expert_hidden_size, vlm.config.text_config.hidden_size
        if fusion.f1:
            super()._inject()
        if fusion.f2:
            read_memory_at(self.model.action_time_mlp_out, self._attention(d_expert), at="output")
        if fusion.f3a or fusion.f3b:
            attention = self._attention(d_prefix) if fusion.f3b else None
            size = (self.memory_shape[-1], n_memory_tokens(self.config))
            tokens = (*size, d_prefix, d_expert, options.n_heads, options.gate, options.past.n_frames > 0)
            read_at_prefix(vlm, attention, MemoryTokens(*tokens) if fusion.f3a else None)

    def _reader_suffix(self, name: str) -> str:
        return next(f"_{fusion}" for fusion, module in SAVED_WITH_ADAPTERS.items() if f".{module}" in name)

    def _sample_recorded(self, batch: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        return self._get_action_chunk(self._prepare_batch(batch), noise)

    @property
    def _saved_with_adapters(self) -> list[str]:
        return ["world"] + [SAVED_WITH_ADAPTERS[fusion] for fusion in self.config.fusion.names]
