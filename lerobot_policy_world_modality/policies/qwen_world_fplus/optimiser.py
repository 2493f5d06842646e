"""What of a qwen_world_fplus trains and is saved: groups of parameters, learning rates, the table that says so."""

from __future__ import annotations

from typing import Any

from torch import nn

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import QwenWorldFPlusConfig
from lerobot_policy_world_modality.policies.shared.host import gate_parameters

# Group -> part of a parameter's name; the first that fits counts.
GROUPS = {
    "adapters": ".lora_",
    "action tokens": ".act_rows.",
    "vision tower": "backbone.model.visual.",
    "token embeddings": ".embed_tokens.",
    "LM head": "backbone.lm_head.",
    "language model": "backbone.model.language_model.",
    "proprioception": "proprioception.",
    "action head": "action_head.",
    "memory reader": ".reader.",
    "alignment": ".alignment.",
    "Prophet": "world.",
}
BACKBONE = ("vision tower", "token embeddings", "LM head", "language model")
# What is trained beside the backbone, by the names of modules that LeRobot's `--peft` saves in full.
SAVED_WITH_ADAPTERS = ["act_rows", "action_head", "proprioception", "world"]


def is_of_hub(name: str) -> bool:
    """Whether a weight is the backbone's own, so that a checkpoint need not hold it while it is frozen."""
    return name.startswith("backbone.") and ".lora_" not in name and ".act_rows." not in name


def parameter_groups(policy: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """All parameters of a policy by group and name; gates are a group of their own, wherever they are."""
    gates = gate_parameters(policy.modules())
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in [*GROUPS, "gates"]}
    for name, parameter in policy.named_parameters():
        if "original_module" in name:
            continue  # what an adapter library keeps of a module that it has copied
        group = "gates" if id(parameter) in gates else next(g for g, part in GROUPS.items() if part in f".{name}")
        groups[group][name] = parameter
    return {name: parameters for name, parameters in groups.items() if parameters}


def learning_rate(group: str, config: QwenWorldFPlusConfig) -> float:
    """Peak learning rate of a group."""
    if group == "gates":
        return config.optimizer_lr * config.memory.gate_lr_factor
    return config.optimizer_lr * (config.backbone_lr_factor if group in BACKBONE else 1.0)


def optimizer_parameters(policy: nn.Module, config: QwenWorldFPlusConfig) -> list[dict[str, Any]]:
    """Parameter groups of the optimiser: by learning rate, matrices with weight decay and the rest without."""
    linear = [module for module in policy.modules() if isinstance(module, nn.Linear)]
    attention = [module for module in policy.modules() if isinstance(module, nn.MultiheadAttention)]
    matrices = {id(module.weight) for module in linear} | {id(module.in_proj_weight) for module in attention}
    found = []
    for group, parameters in parameter_groups(policy).items():
        # A tied LM head is the embedding table.
        decayed = matrices if group not in ("token embeddings", "gates") else set()
        for is_decayed in (True, False):
            some = [p for p in parameters.values() if p.requires_grad and (id(p) in decayed) is is_decayed]
            if some:
                options = {} if is_decayed else {"weight_decay": 0.0}
                found.append({"params": some, "lr": learning_rate(group, config), **options})
    return found


def training_table(policy: nn.Module, config: QwenWorldFPlusConfig) -> str:
    """Which groups train, how many of their parameters, and how fast."""
    lines = [f"{'group':<18}{'parameters':>16}{'trained':>16}{'learning rate':>16}"]
    total = [0, 0]
    for group, parameters in parameter_groups(policy).items():
        n = sum(p.numel() for p in parameters.values())
        n_trained = sum(p.numel() for p in parameters.values() if p.requires_grad)
        lr = f"{learning_rate(group, config):.1e}" if n_trained else "frozen"
        lines.append(f"{group:<18}{n:>16,}{n_trained:>16,}{lr:>16}")
        total = [total[0] + n, total[1] + n_trained]
    return "\n".join([*lines, f"{'all':<18}{total[0]:>16,}{total[1]:>16,}"])
