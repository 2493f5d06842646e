"""smolvla_world: LeRobot's SmolVLA whose action path reads predicted futures (docs/smolvla_world.md).

SmolVLA's own `forward`, sampling and denoising run as they are; `InjectedWorldPolicy` does the rest.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.injected_policy import InjectedWorldPolicy
from lerobot_policy_world_modality.policies.shared.vectors import action_vectors, state_vectors
from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import SmolVLAWorldConfig
from lerobot_policy_world_modality.policies.smolvla_world.fusion import MemoryTokens, read_at_layer, read_at_prefix
from world_modality_core.memory.sources import MemorySource
from world_modality_core.prophet.logged_values import LoggedValues
from world_modality_core.prophet.network import Futures

# The module that each fusion lives in: trained in full, and saved with an adapter.
SAVED_WITH_ADAPTERS = {
    "f1": "action_out_proj", "f2": "action_time_mlp_out", "f3a": "world_tokens", "f3b": "world_prefix_reader"
}  # fmt: skip


class SmolVLAWorldPolicy(InjectedWorldPolicy, SmolVLAPolicy):
    """SmolVLA + Model F memory; see `InjectedWorldPolicy` for its arguments."""

    config_class = SmolVLAWorldConfig
    name = "smolvla_world"
    # FSDP shards what is called as a module. SmolVLA calls the parts of a decoder layer, never the layer itself.
    # Accelerate asks for the first name (LeRobot 0.6.1), LeRobot for the second (0.6.2 and later).
    _no_split_modules = _fsdp_wrap_modules = ["SmolVLMEncoderLayer", "LlamaMLP"]

    def _inject(self) -> None:
        fusion, options = self.config.fusion, self.config.memory
        vlm = self.model.vlm_with_expert
        d_expert, d_prefix = vlm.expert_hidden_size, vlm.config.text_config.hidden_size
        if fusion.f1:
            read_at_layer(self.model, "action_out_proj", self._attention(d_expert), at="input")
        if fusion.f2:
            read_at_layer(self.model, "action_time_mlp_out", self._attention(d_expert), at="output")
        if fusion.f3a or fusion.f3b:
            n, k, p, d = self.memory_shape
            attention = self._attention(d_prefix) if fusion.f3b else None
            tokens = (d, n * k * p, d_prefix, d_expert, options.n_heads, options.gate)
            read_at_prefix(vlm, attention, MemoryTokens(*tokens) if fusion.f3a else None)

    def _reader_suffix(self, name: str) -> str:
        return next(f"_{fusion}" for fusion, module in SAVED_WITH_ADAPTERS.items() if f".{module}" in name)

    def forward(
        self, batch: dict[str, Tensor], noise: Tensor | None = None, time: Tensor | None = None, reduction: str = "mean"
    ) -> tuple[Tensor, LoggedValues]:
        """Compute SmolVLA's flow-matching loss, its action path reading the memory, and the Prophet's.

        Args:
            batch: A preprocessed batch, with `index` (b,).
            noise: (b, h, max_action_dim) noise; drawn if None.
            time: (b,) flow-matching time; drawn if None.
            reduction: "mean", or "none" for LeRobot's sample weighting.

        Returns:
            Loss, () or (b,), and the values to log (docs/metrics.md).
        """
        base = super().forward
        with self._autocast():
            return self._forward_with_world(batch, reduction, lambda: base(batch, noise, time, reduction))

    def prepare_state(self, batch: dict[str, Tensor]) -> Tensor:
        """As SmolVLA's, of a state of one number too."""
        return super().prepare_state(batch | {OBS_STATE: state_vectors(batch, self.config)})

    def prepare_action(self, batch: dict[str, Tensor]) -> Tensor:
        """As SmolVLA's, of an action of one number too."""
        return super().prepare_action(batch | {ACTION: action_vectors(batch, self.config)})

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
            noise: (b, h, max_action_dim) noise to start from; drawn if None.
            futures: What the Prophet is to have predicted; None lets it predict.
            seed: Seed of the memory's draws; None for `memory.seed`.

        Returns:
            (b, h, a) normalised actions.
        """
        self.eval()
        world_batch = self._recorded_plan_batch(batch, futures, seed)
        with self.reading(world_batch, source), self._autocast():
            return super()._get_action_chunk(self._prepare_batch(batch), noise)

    def _get_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None, **kwargs: Any) -> Tensor:
        # Where SmolVLA plans, whoever asked: select_action, predict_action_chunk, real-time chunking.
        with self._reading_live(batch):
            return super()._get_action_chunk(batch, noise, **kwargs)

    # Fine-tuning with adapters.

    def wrap_with_peft(self, peft_config=None, peft_cli_overrides: dict | None = None):
        """As LeRobot's; an adapter on `init_from`'s checkpoint names that checkpoint as its base."""
        if self.config.initialised_from and not self.config.pretrained_path:
            self.name_or_path = self.config.initialised_from
        return super().wrap_with_peft(peft_config, peft_cli_overrides)

    def _get_default_peft_targets(self) -> dict[str, Any]:
        """SmolVLA's targets without the swapped layers; those and the world are trained in full and saved."""
        targets = super()._get_default_peft_targets()
        saved = ["world"] + [SAVED_WITH_ADAPTERS[fusion] for fusion in self.config.fusion.names]
        return targets | {
            "target_modules": rf"(?!.*({'|'.join(saved)})$)({targets['target_modules']})",
            "modules_to_save": targets["modules_to_save"] + saved,
        }

    def _validate_peft_config(self, peft_config) -> None:
        if not self.config.initialised_from:
            super()._validate_peft_config(peft_config)
