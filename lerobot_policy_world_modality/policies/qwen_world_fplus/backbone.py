"""The Qwen-VL backbone as `transformers` has it, rows for action tokens beside its embedding table, and adapters."""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import (
    NICKNAMES,
    LoraOptions,
    QwenWorldFPlusConfig,
)
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.first_look import check_weights

FAMILIES = ("qwen3_vl", "qwen2_5_vl")


class ActEmbedding(nn.Embedding):
    """An embedding table, and rows of its own for the action tokens.

    The table is the backbone's own parameter (an LM head that is tied to it stays so). Nothing is resized: Qwen's
    tables have more rows than the tokenizer has tokens, so that `resize_token_embeddings` would cut them, and rows in
    the table could not be trained, decayed or saved apart from the others.

    Args:
        table: The backbone's input embeddings.
        first_id: Token id of `<ACT_0>`.
        n_act: Action tokens, with consecutive ids.
        std: Spread of the rows at the start.
    """

    def __init__(self, table: nn.Embedding, first_id: int, n_act: int, std: float):
        super().__init__(table.num_embeddings, table.embedding_dim, table.padding_idx, device="meta")
        self.weight = table.weight
        self.first_id, self.n_act = first_id, n_act
        self.act_rows = nn.Embedding(n_act, table.embedding_dim, device=table.weight.device, dtype=torch.float32)
        nn.init.normal_(self.act_rows.weight, std=std)

    def forward(self, ids: Tensor) -> Tensor:
        """Embed token ids (b, n), action tokens among them: (b, n, d)."""
        row = ids - self.first_id
        is_act = (row >= 0) & (row < self.n_act)
        plain = F.embedding(ids.masked_fill(is_act, 0), self.weight, self.padding_idx)
        act = self.act_rows(row.clamp(0, self.n_act - 1)).to(plain.dtype)
        return torch.where(is_act[..., None], act, plain)


def load_backbone_config(config: QwenWorldFPlusConfig) -> PretrainedConfig:
    """The backbone's own config.

    Raises:
        ConfigError: if its folder isn't there.
        ValueError: if it can't be had, or is of another family.
    """
    name = config.vlm_backbone
    check_weights("vlm_backbone", name, config.vlm_revision)
    try:
        found = AutoConfig.from_pretrained(
            name, revision=config.vlm_revision, trust_remote_code=config.runs_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        refuse_remote_code(name, error)
        raise ValueError(
            f"vlm_backbone={name!r} cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0]}). Give the "
            f"Hub id or folder of a Qwen3-VL or Qwen2.5-VL, or one of {', '.join(NICKNAMES)}"
        ) from error
    if found.model_type not in FAMILIES:
        raise ValueError(
            f"vlm_backbone={name!r} is a {found.model_type!r}; qwen_world_fplus runs on the dense families "
            f"{', '.join(FAMILIES)}: {', '.join(NICKNAMES.values())}"
        )
    return found


def refuse_remote_code(name: str, error: Exception) -> None:
    """Say which option to type, if that is why transformers does not load a backbone.

    Raises:
        ConfigError: naming the option.
    """
    if "trust_remote_code" in str(error):
        raise ConfigError(
            f"vlm_backbone={name!r} is loaded by code of its own, which runs only if the command says so: type "
            "--policy.trust_remote_code=true if you trust it (in a config file it does not count)"
        ) from error


def build_backbone(config: QwenWorldFPlusConfig, vlm_config: PretrainedConfig, first_id: int) -> PreTrainedModel:
    """Build the backbone, with action tokens and adapters, and say by `requires_grad` which of it is trained.

    Args:
        config: The policy's config.
        vlm_config: Of `load_backbone_config`.
        first_id: Token id of `<ACT_0>`.

    Returns:
        The model with its LM head; `.model(...)` runs it without.

    Raises:
        ValueError: if no layer fits `lora.targets` and `lora.layers`.
    """
    is_trained = config.train_backbone == "full"
    # Autocast casts frozen fp32 weights to bf16 at every use; holding them so costs half the memory.
    dtype = torch.bfloat16 if config.dtype == "bfloat16" and not is_trained else torch.float32
    options = {"dtype": dtype, "attn_implementation": config.attn_implementation}
    if config.weights == "pretrained":
        model = AutoModelForImageTextToText.from_pretrained(
            config.vlm_backbone,
            revision=config.vlm_revision,
            trust_remote_code=config.runs_remote_code,
            use_safetensors=True,
            config=vlm_config,
            **options,
        )
    elif config.weights == "random":
        model = AutoModelForImageTextToText.from_config(vlm_config, **options)
    else:
        with no_init_weights():  # all of them are in the checkpoint
            model = AutoModelForImageTextToText.from_config(vlm_config, **options)
        model.tie_weights()
    model.requires_grad_(is_trained)
    if config.freeze_vision:
        model.model.visual.requires_grad_(False)
    if is_trained and config.lambda_text == 0 and model.lm_head.weight is not model.get_input_embeddings().weight:
        model.lm_head.requires_grad_(False)
    if config.train_backbone == "lora":
        add_adapters(model, config.lora)
    std = vlm_config.text_config.initializer_range
    model.set_input_embeddings(ActEmbedding(model.get_input_embeddings(), first_id, config.chunk_size, std))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return model


def add_adapters(model: PreTrainedModel, options: LoraOptions) -> None:
    """Put LoRA adapters into the language model, in place; only they are trained afterwards.

    Raises:
        ValueError: if an option names nothing that the model has.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layer = re.compile(r"model\.language_model\.layers\.(\d+)\.(?:.+\.)?(\w+)")
    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    found = [(name, match) for name in linear if (match := layer.fullmatch(name))]
    unknown = sorted(set(options.targets) - {match[2] for _, match in found})
    if unknown:
        known = sorted({match[2] for _, match in found})
        raise ValueError(f"lora.targets names {unknown}; a decoder layer of this backbone has {known}")
    n_layers = len(model.model.language_model.layers)
    layers = range(n_layers) if options.layers is None else options.layers
    beyond = [i for i in layers if not 0 <= i < n_layers]
    if beyond or not len(layers):
        raise ValueError(f"lora.layers={options.layers}: this backbone has the layers 0 to {n_layers - 1}")
    names = [name for name, match in found if int(match[1]) in layers and match[2] in options.targets]
    lora = LoraConfig(
        r=options.rank, lora_alpha=options.alpha, lora_dropout=options.dropout, target_modules=names, bias="none"
    )
    inject_adapter_in_model(lora, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
        if ".lora_" in name:  # bf16 would round an adapter's steps away
            parameter.data = parameter.data.float()
