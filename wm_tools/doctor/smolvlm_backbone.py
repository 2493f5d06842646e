"""SmolVLM backbones of the real classes with random weights, built on the spot and offline.

A folder of `make_smolvlm` stands where a user writes `HuggingFaceTB/SmolVLM2-500M-Video-Instruct`: as
`--policy.vlm_model_name`, for LeRobot's SmolVLA and for this plugin's types alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    LlamaConfig,
    PreTrainedTokenizerFast,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
    SmolVLMVisionConfig,
)

# Options with which LeRobot's SmolVLA fits a "tiny" backbone; a new dict for each policy: `SmolVLAConfig(**...)`.
TINY_SMOLVLA: dict[str, Any] = {
    "resize_imgs_with_padding": (32, 32),
    "num_vlm_layers": 2,
    "chunk_size": 4,
    "n_action_steps": 2,
    "max_state_dim": 8,
    "max_action_dim": 8,
    "num_steps": 3,
    "device": "cpu",
    "push_to_hub": False,
}

# The names that SmolVLM's processor and SmolVLA look for; transformers keeps them with the tokenizer in this form.
NAMED_TOKENS = {
    "image_token": "<image>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
}
ORDINARY_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2, as in SmolVLM2
# Not 0, which others use: a model built at seed 0 would pass for one that has loaded these weights.
WEIGHTS_SEED = 500
# What the tokenizer learns its merges from: words of instructions.
CORPUS = [
    "push the puck", "open the drawer", "close the drawer", "pick up the red block and place it on the blue plate",
    "reach the goal", "press the button", "follow the light", "Assistant: User: describe the image",
]  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Sizes of a backbone."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vision_hidden_size: int
    vision_layers: int
    vision_heads: int
    image_px: int
    patch_px: int
    scale_factor: int

    @property
    def image_seq_len(self) -> int:
        """Tokens that one image becomes."""
        return (self.image_px // self.patch_px // self.scale_factor) ** 2


SHAPES = {
    "tiny": Shape(512, 64, 128, 2, 4, 2, 16, 32, 2, 2, 32, 8, 2),
    # SmolVLM2-500M-Video-Instruct's config.json. SmolVLA keeps 16 of the 32 layers: 450M parameters with its expert.
    "450m": Shape(49280, 960, 2560, 32, 15, 5, 64, 768, 12, 12, 512, 16, 4),
}


def make_smolvlm(folder: Path, size: Literal["tiny", "450m"] = "tiny", save_weights: bool = False) -> Path:
    """Write a SmolVLM that `AutoConfig`, `AutoProcessor` and `AutoTokenizer` load without a network.

    Args:
        folder: Where to write; made if it isn't there.
        size: "tiny" (fewer than 200,000 parameters, images of 32 px) or "450m" (the shape of SmolVLM2-500M).
        save_weights: Also write random weights (always the same), for `load_vlm_weights=True`.

    Returns:
        The folder.
    """
    shape = SHAPES[size]
    tokenizer = make_tokenizer()
    config = SmolVLMConfig(
        text_config=LlamaConfig(
            vocab_size=shape.vocab_size,
            hidden_size=shape.hidden_size,
            intermediate_size=shape.intermediate_size,
            num_hidden_layers=shape.num_hidden_layers,
            num_attention_heads=shape.num_attention_heads,
            num_key_value_heads=shape.num_key_value_heads,
            head_dim=shape.head_dim,  # SmolVLA reads it; Llama would leave it to be derived
            max_position_embeddings=8192,
            rms_norm_eps=1e-5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        vision_config=SmolVLMVisionConfig(
            hidden_size=shape.vision_hidden_size,
            intermediate_size=4 * shape.vision_hidden_size,
            num_hidden_layers=shape.vision_layers,
            num_attention_heads=shape.vision_heads,
            image_size=shape.image_px,
            patch_size=shape.patch_px,
        ),
        scale_factor=shape.scale_factor,
        image_token_id=tokenizer.image_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    side = {"longest_edge": shape.image_px}
    images = SmolVLMImageProcessor(size=side, max_image_size=side, do_image_splitting=False)
    videos = SmolVLMVideoProcessor(size=side, max_image_size=side)
    config.save_pretrained(folder)
    SmolVLMProcessor(images, tokenizer, videos, image_seq_len=shape.image_seq_len).save_pretrained(folder)
    if save_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(WEIGHTS_SEED)
            SmolVLMForConditionalGeneration(config).save_pretrained(folder)
    return Path(folder)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer, like SmolVLM2's, with merges learnt from `CORPUS`."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=ORDINARY_TOKENS + list(NAMED_TOKENS.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|im_start|>",
        eos_token="<end_of_utterance>",
        unk_token="<|endoftext|>",
        pad_token="<|im_end|>",
        extra_special_tokens=NAMED_TOKENS,
    )
