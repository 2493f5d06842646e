"""Qwen3-VL and Qwen2.5-VL backbones of the real classes with random weights, built on the spot and offline.

A folder of `make_qwen` stands where a user writes `Qwen/Qwen3-VL-2B-Instruct`: as `--policy.vlm_backbone`. From the
command line: `python -m wm_tools.doctor.qwen_backbone FOLDER --d=128`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    AutoModelForImageTextToText,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

FAMILIES = ("qwen3_vl", "qwen2_5_vl")
# Qwen's special tokens; the first two are the ids of padding and of the end of a turn.
SPECIAL_TOKENS = [
    "<|endoftext|>", "<|im_end|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
    "<|video_pad|>",
]  # fmt: skip
# What the tokenizer learns its merges from: words of instructions and labels.
CORPUS = [
    "push the puck", "Push the puck to a goal", "open the drawer", "pick up the red block and place it on the plate",
    "system user assistant You are a helpful assistant.", "The gripper moves down because the puck is below it.",
    "Then it pushes the puck towards the goal.",
]  # fmt: skip
# As Qwen3-VL's own, for messages of images and texts.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}{{- '<|im_start|>' + message.role + '\n' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}{{- '<|vision_start|><|image_pad|><|vision_end|>' -}}"
    "{%- elif part.type == 'text' -%}{{- part.text -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{{- '<|im_end|>\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%}"
)
# Not 0, which others use: a model built at seed 0 would pass for one that has loaded these weights.
WEIGHTS_SEED = 500


def make_tokenizer(corpus: Sequence[str] = CORPUS, vocab_size: int = 320) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens.

    Args:
        corpus: What the merges are learnt from.
        vocab_size: Most tokens, the 256 bytes and the special ones included.
    """
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="right"
    )


def make_qwen(
    folder: Path,
    family: str = "qwen3_vl",
    *,
    d: int = 32,
    n_layers: int = 2,
    n_heads: int = 2,
    d_vision: int = 32,
    n_vision_layers: int = 2,
    patch_px: int = 8,
    vocab_size: int = 384,
    tie: bool = True,
    context: int = 1024,
    corpus: Sequence[str] = CORPUS,
    save_weights: bool = True,
) -> Path:
    """Write a backbone that `AutoConfig`, `AutoProcessor` and `AutoModelForImageTextToText` load without a network.

    Args:
        folder: Where to write; made if it isn't there.
        family: One of `FAMILIES`.
        d: Width of the language model.
        n_layers: Its layers.
        n_heads: Its attention heads; half as many for keys.
        d_vision: Width of the vision tower (4 heads).
        n_vision_layers: Its layers.
        patch_px: Side of a patch; 2x2 patches are one token.
        vocab_size: Rows of the embedding table. More than the tokenizer has tokens, as with Qwen's own.
        tie: Whether embedding and LM head share weights, as in the sizes up to 4B.
        context: `max_position_embeddings`.
        corpus: What the tokenizer learns from.
        save_weights: Also write random weights (always the same).

    Returns:
        The folder.
    """
    tokenizer = make_tokenizer(corpus)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    head_dim = d // n_heads
    section = [head_dim // 2 - 2 * (head_dim // 6), head_dim // 6, head_dim // 6]
    text = {
        "vocab_size": vocab_size, "hidden_size": d, "intermediate_size": 3 * d, "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads, "num_key_value_heads": max(n_heads // 2, 1),
        "max_position_embeddings": context, "eos_token_id": ids["<|im_end|>"], "pad_token_id": ids["<|endoftext|>"],
        "tie_word_embeddings": tie,
    }  # fmt: skip
    vision = {
        "depth": n_vision_layers, "hidden_size": d_vision, "intermediate_size": 2 * d_vision, "num_heads": 4,
        "patch_size": patch_px, "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": d,
    }  # fmt: skip
    common = {
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": tie,
    }  # fmt: skip
    pixels = {"size": {"shortest_edge": (2 * patch_px) ** 2, "longest_edge": 1024**2}, "patch_size": patch_px}
    if family == "qwen3_vl":
        text |= {"head_dim": head_dim, "rope_parameters": _rope(section, mrope_interleaved=True)}
        vision |= {"num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        config = Qwen3VLConfig(text_config=text, vision_config=vision, **common)
        half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        parts = (Qwen2VLImageProcessor(**pixels, **half), tokenizer, Qwen3VLVideoProcessor(**pixels, **half))
        processor = Qwen3VLProcessor(*parts, chat_template=CHAT_TEMPLATE)
    else:
        text |= {"rope_parameters": _rope(section)}
        vision |= {"window_size": 4 * patch_px, "fullatt_block_indexes": [n_vision_layers - 1]}
        config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **common)
        parts = (Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels))
        processor = Qwen2_5_VLProcessor(*parts, chat_template=CHAT_TEMPLATE)
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    if save_weights:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(WEIGHTS_SEED)
            AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    return Path(folder)


def _rope(section: list[int], **options) -> dict:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section, **options}


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a small Qwen3-VL to train from scratch (weights=random).")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--d", type=int, default=128, help="width of language model and vision tower")
    parser.add_argument("--n_layers", type=int, default=2, help="layers of each")
    args = parser.parse_args()
    sizes = {"d": args.d, "d_vision": args.d, "n_layers": args.n_layers, "n_vision_layers": args.n_layers}
    print(make_qwen(args.folder, n_heads=4, save_weights=False, **sizes))


if __name__ == "__main__":
    main()
