"""Configuration of qwen_world_fplus: a Qwen VLM that acts from `<ACT_i>` states, with world memory and text."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.utils.constants import OBS_STATE

from lerobot_policy_world_modality.hub.trusted_files import is_typed
from lerobot_policy_world_modality.policies.shared.planning_config import PlanningConfig
from lerobot_policy_world_modality.policies.shared.prophet_options import take_over_prophet
from lerobot_policy_world_modality.policies.shared.world_options import Arithmetic, VLAWorldOptions, check_amp
from world_modality_core.configs import check_at_least, check_choices, check_dropout
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import as_folder

# Closed choices have names: the help reads a field's comment only where its type has no quotes.
HeadKind = Literal["mse", "flow"]
TextMode = Literal["joint_after_act", "separate"]
Weights = Literal["pretrained", "random", "checkpoint"]
Trained = Literal["full", "lora", "frozen"]
PaddingSide = Literal["right", "left"]


# The seed's names for backbones (`--vlm_backbone qwen3_vl_2b_instruct`), and what they stand for on the Hub.
NICKNAMES = {
    **{f"qwen3_vl_{size}b_instruct": f"Qwen/Qwen3-VL-{size}B-Instruct" for size in (2, 4, 8, 32)},
    **{f"qwen2_5_vl_{size}b_instruct": f"Qwen/Qwen2.5-VL-{size}B-Instruct" for size in (3, 7)},
}
_NICKNAME = re.compile(r"qwen[\w.]*", re.IGNORECASE)


def backbone_id(name: str) -> str:
    """Hub id or folder that a name of a backbone stands for.

    Raises:
        ConfigError: if it looks like a nickname and isn't one.
    """
    if name in NICKNAMES:
        return NICKNAMES[name]
    if _NICKNAME.fullmatch(name) and not Path(name).is_dir():
        raise ConfigError(
            f"vlm_backbone={name!r} does not exist; there are {', '.join(NICKNAMES)}. Qwen3-VL has no 3B (that size is "
            "qwen2_5_vl_3b_instruct). Any Hub id or folder of a dense Qwen3-VL or Qwen2.5-VL works too"
        )
    return name


@dataclass
class LoraOptions:
    """Adapters on the language model's layers (`train_backbone=lora`)."""

    # Rank.
    rank: int = 16
    # Scale: an adapter's output is multiplied by alpha / rank.
    alpha: int = 32
    # Dropout before an adapter.
    dropout: float = 0.0
    # Linear layers that get one, by their names in a decoder layer.
    targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    )
    # Decoder layers that get them, counted from 0. None: all.
    layers: list[int] | None = None

    def __post_init__(self) -> None:
        check_at_least(self, 1, "rank", prefix="lora.")
        check_dropout(self, "lora.")
        if not self.targets:
            raise ConfigError("lora.targets=[]: name at least one layer, for instance q_proj, v_proj")


@dataclass
class ActionHeadConfig:
    """What turns the states at the action tokens into actions."""

    # "mse": LayerNorm + MLP, squared error. "flow": rectified flow, conditioned on the states.
    kind: HeadKind = "mse"
    # Width.
    d_model: int = 512
    # Transformer layers over the chunk (flow).
    n_layers: int = 2
    # Their attention heads (flow).
    n_heads: int = 8
    # Steps of the integration from noise to actions (flow).
    n_flow_steps: int = 10

    def __post_init__(self) -> None:
        check_choices(self, "head.")
        check_at_least(self, 1, "d_model", "n_layers", "n_heads", "n_flow_steps", prefix="head.")
        if self.kind == "flow" and (self.d_model % self.n_heads or self.d_model % 2):
            raise ConfigError(f"head.n_heads={self.n_heads} and 2 must divide head.d_model={self.d_model}")


@dataclass
class TextConfig:
    """The chain-of-causality text loss (`lambda_text` > 0)."""

    # "joint_after_act": labels follow the action tokens, in the same forward. "separate": a second forward, whose
    # sequence has no action tokens.
    mode: TextMode = "joint_after_act"
    # JSONL of labels (coc-label's, or lines of episode_index and coc_text), or hf://datasets/USER/NAME/FILE. None: the
    # dataset's language rows of style `coc`.
    jsonl: str | None = None
    # Leave samples without a label out of training altogether, instead of out of the text loss only.
    require_coc: bool = False
    # Most tokens of a label. A longer one is an error.
    max_tokens: int = 256

    def __post_init__(self) -> None:
        check_choices(self, "text.")
        check_at_least(self, 1, "max_tokens", prefix="text.")


@PreTrainedConfig.register_subclass("qwen_world_fplus")
@dataclass
class QwenWorldFPlusConfig(VLAWorldOptions, PlanningConfig):
    """Backbone, action tokens, heads, world memory and text."""

    # Dense Qwen3-VL or Qwen2.5-VL: Hub id, folder, or a short name such as qwen3_vl_2b_instruct.
    vlm_backbone: str = "Qwen/Qwen3-VL-2B-Instruct"
    # Hub revision. Set in training to the commit that was loaded.
    vlm_revision: str | None = None
    # Run code from the backbone's repository; Qwen's need none. Counts only where it is typed, in the very command
    # (--policy.trust_remote_code=true): no file can ask for it, and it is not saved.
    trust_remote_code: bool = False
    # Where the backbone's weights come from: "pretrained", "random" (training from scratch), or "checkpoint" (set when
    # a checkpoint holds them).
    weights: Weights = "pretrained"
    # Attention kernels of transformers: "sdpa", "flash_attention_2", "eager". None lets transformers choose. None of
    # the Hub's ("user/name"), which would be code.
    attn_implementation: str | None = None
    # "full", "lora" (adapters by `lora`), or "frozen". Action tokens, heads and world are trained in any case.
    train_backbone: Trained = "lora"
    # With train_backbone=full: leave the vision tower as it is.
    freeze_vision: bool = False
    # The adapters.
    lora: LoraOptions = field(default_factory=LoraOptions)
    # Arithmetic of training and rollouts: "float32", "bfloat16" (autocast; trained weights stay fp32), or None for what
    # the launcher says.
    dtype: Arithmetic | None = None
    # Recompute each layer's activations in the backward pass.
    gradient_checkpointing: bool = False
    # Samples that go through the backbone at a time in training; 0: all of the batch. Gradients are accumulated over
    # the parts, and the memory is that of one part; each is computed once more in the backward pass.
    micro_batch_size: int = 0
    # Least pixels of an image in the vision tower. None: the backbone's.
    min_pixels: int | None = None
    # Most pixels of an image in the vision tower; 1024 (Qwen3-VL) or 784 (Qwen2.5-VL) make a token.
    max_pixels: int | None = 65536
    # Token id of <ACT_0>. Set in training; a backbone whose tokenizer gives another one is refused.
    first_act_id: int = 0
    # Where shorter sequences of a batch are filled up: "right" or "left".
    padding_side: PaddingSide = "right"
    # Action tokens = actions predicted at once, h.
    chunk_size: int = 8
    # Actions executed before planning again.
    n_action_steps: int = 8
    # Let the head see the robot's state, through a gate that starts at 0.
    use_state: bool = True
    # The action head.
    head: ActionHeadConfig = field(default_factory=ActionHeadConfig)
    # Let the action states read the world memory. False with lambda_world=0 is E0, with lambda_world>0 E1'.
    use_memory: bool = True
    # Weight of FLARE's alignment: the action states, through a projector, towards future latents.
    lambda_align: float = 0.0
    # Weight of the chain-of-causality text loss.
    lambda_text: float = 0.0
    # Its labels.
    text: TextConfig = field(default_factory=TextConfig)
    normalization_mapping: dict[str, NormalizationMode] = field(
        default_factory=lambda: {
            "VISUAL": NormalizationMode.IDENTITY,
            "STATE": NormalizationMode.MEAN_STD,
            "ACTION": NormalizationMode.MEAN_STD,
        }
    )
    # Peak learning rate (AdamW) of adapters, action tokens, heads and world.
    optimizer_lr: float = 1e-4
    # The backbone's learning rate over that one (train_backbone=full).
    backbone_lr_factor: float = 0.1
    # Weight decay; not on gates, biases, norms and embeddings.
    optimizer_weight_decay: float = 1e-2
    # Gradient clipping.
    optimizer_grad_clip_norm: float = 1.0
    # Warm-up steps of the cosine schedule.
    scheduler_warmup_steps: int = 500
    # Its length; shortened to the run's when that is shorter.
    scheduler_decay_steps: int = 30_000
    # Its last learning rate.
    scheduler_decay_lr: float = 1e-6

    def __post_init__(self) -> None:
        take_over_prophet(self)
        super().__post_init__()
        self.vlm_backbone = as_folder(backbone_id(self.vlm_backbone))
        self.trust_remote_code = False  # asked for by `runs_remote_code`; a file's doesn't count
        if "/" in (self.attn_implementation or ""):
            raise ConfigError(
                f"attn_implementation={self.attn_implementation!r} is code of the Hub, which is not run; expected "
                "'sdpa', 'flash_attention_2', 'eager' or another of transformers' own"
            )
        check_at_least(self, 0, "micro_batch_size", "backbone_lr_factor")
        self.check_world()
        check_amp(self)
        if self.freeze_vision and self.train_backbone != "full":
            raise ConfigError(
                f"freeze_vision=true has no effect with train_backbone={self.train_backbone!r}, which trains no vision "
                "tower anyway; drop it"
            )

    def validate_features(self) -> None:
        """Check what only the dataset or environment can tell.

        Raises:
            ConfigError: if there is no image, no action, or no state although it is used.
        """
        if not self.image_features:
            raise ConfigError(f"{self.type} needs an image; the dataset has {list(self.input_features or {})}")
        if self.action_feature is None:
            raise ConfigError(f"{self.type} needs a feature `action`; there is {list(self.output_features or {})}")
        if self.robot_state_feature is None and (self.use_state or self.prophet.use_state):
            name = "use_state" if self.use_state else "prophet.use_state"
            raise ConfigError(
                f"{name}=true needs a feature `{OBS_STATE}`; the dataset has {list(self.input_features or {})}. Set "
                f"--policy.{name}=false"
            )

    @property
    def runs_remote_code(self) -> bool:
        """Whether this process's command allows running code of the backbone's repository."""
        return is_typed("policy.trust_remote_code")

    @property
    def rollout_dtype(self) -> str | None:
        return self.dtype

    @property
    def reads_memory(self) -> bool:
        return self.use_memory

    @property
    def has_world(self) -> bool:
        return super().has_world or self.lambda_align > 0

    @property
    def needs_history(self) -> bool:
        return super().needs_history or self.lambda_align > 0

    @property
    def needs_future(self) -> bool:
        return super().needs_future or self.lambda_align > 0

    @property
    def least_future_steps(self) -> int:
        return 1 if self.lambda_align > 0 else super().least_future_steps

    @property
    def holds_backbone(self) -> bool:
        """Whether a checkpoint must hold the whole backbone: where it is trained, or can't be had again."""
        return self.train_backbone == "full" or self.weights != "pretrained"
