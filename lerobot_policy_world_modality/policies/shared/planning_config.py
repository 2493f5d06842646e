"""What LeRobot asks of the config of a policy of ours: how it is trained, and which windows it takes."""

from __future__ import annotations

from lerobot.configs import PreTrainedConfig
from lerobot.optim import AdamWConfig, CosineDecayWithWarmupSchedulerConfig

from world_modality_core.configs import check_at_least


class PlanningConfig(PreTrainedConfig):
    """The base, after its options, of a config whose policy has a forward pass of its own (`PlanningPolicy`)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(self, 1, "chunk_size", "n_action_steps", "scheduler_decay_steps")
        check_at_least(self, 0, "optimizer_weight_decay", "optimizer_grad_clip_norm")
        check_at_least(self, 0, "scheduler_warmup_steps", "scheduler_decay_lr")

    def get_optimizer_preset(self) -> AdamWConfig:
        return AdamWConfig(
            lr=self.optimizer_lr,
            weight_decay=self.optimizer_weight_decay,
            grad_clip_norm=self.optimizer_grad_clip_norm,
        )

    def get_scheduler_preset(self) -> CosineDecayWithWarmupSchedulerConfig:
        return CosineDecayWithWarmupSchedulerConfig(
            peak_lr=self.optimizer_lr,
            decay_lr=self.scheduler_decay_lr,
            num_warmup_steps=self.scheduler_warmup_steps,
            num_decay_steps=self.scheduler_decay_steps,
        )

    @property
    def observation_delta_indices(self) -> None:
        # LeRobot would apply them to every `observation.*` key and decode history images; latents come by index.
        return None

    @property
    def action_delta_indices(self) -> list[int]:
        return list(range(self.chunk_size))

    @property
    def reward_delta_indices(self) -> None:
        return None
