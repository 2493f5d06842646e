"""Options that make LeRobot's policies tiny, with backbones of the real classes and random weights, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from wm_tools.doctor.smolvlm_backbone import make_tokenizer


def make_clip(folder: Path) -> Path:
    """Write a CLIP of one thin layer and its tokenizer, for `multi_task_dit`; the folder's name must hold "clip"."""
    from transformers import CLIPConfig, CLIPModel

    tokenizer = make_tokenizer()
    layer = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text = layer | ids | {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = CLIPConfig(text_config=text, vision_config=layer | {"image_size": 28, "patch_size": 14})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_text_tokenizer(folder: Path) -> Path:
    """Write a byte-level tokenizer."""
    make_tokenizer().save_pretrained(folder)
    return folder


def tiny_host(plain: str, folder: Path) -> dict[str, Any]:
    """Options of a tiny `act`, `diffusion`, `multi_task_dit` or `xvla`, for images of 28 px and more.

    Args:
        plain: LeRobot's name of the policy.
        folder: Where a backbone or tokenizer is written, if it needs one.
    """
    resnet = {"vision_backbone": "resnet18", "pretrained_backbone_weights": None}
    diffusion = {"n_obs_steps": 2, "horizon": 8, "n_action_steps": 2, "num_train_timesteps": 4, "drop_n_last_frames": 0}
    match plain:
        case "act":
            layers = {"n_encoder_layers": 1, "n_vae_encoder_layers": 1, "n_heads": 2, "dim_feedforward": 32}
            return resnet | layers | {"dim_model": 32, "latent_dim": 4, "chunk_size": 4, "n_action_steps": 2}
        case "diffusion":
            unet = {
                "down_dims": (16, 32),
                "n_groups": 4,
                "use_group_norm": True,
                "diffusion_step_embed_dim": 8,
                "kernel_size": 3,
            }
            return resnet | diffusion | unet | {"spatial_softmax_num_keypoints": 4}
        case "multi_task_dit":
            clip = str(make_clip(folder / "clip"))
            transformer = {"hidden_dim": 32, "num_layers": 1, "num_heads": 2, "timestep_embed_dim": 8}
            images = {"image_resize_shape": (28, 28), "image_crop_shape": None, "tokenizer_max_length": 16}
            return diffusion | transformer | images | {"vision_encoder_name": clip, "text_encoder_name": clip}
        case "xvla":
            tokenizer = str(make_text_tokenizer(folder / "tokenizer"))
            stages = {"depths": [1, 1], "embed_dim": [8, 16], "num_heads": [2, 2], "num_groups": [2, 2]}
            patches = {"patch_size": [7, 3], "patch_stride": [4, 2], "patch_padding": [3, 1]}
            vision = stages | patches | {"patch_prenorm": [False, True], "window_size": 2, "projection_dim": 16}
            text = {"vocab_size": 512, "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2}
            text |= {"encoder_ffn_dim": 32, "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 32}
            sizes = {"hidden_size": 32, "depth": 1, "num_heads": 2, "num_domains": 2, "len_soft_prompts": 2}
            sizes |= {"max_len_seq": 128, "max_state_dim": 8, "max_action_dim": 8, "tokenizer_max_length": 16}
            return sizes | {
                "florence_config": {"vision_config": vision, "text_config": text},
                "tokenizer_name": tokenizer,
                "resize_imgs_with_padding": (32, 32),
                "action_mode": "auto",
                "num_denoising_steps": 2,
                "chunk_size": 4,
                "n_action_steps": 2,
            }
    raise ValueError(f"no tiny {plain!r}")
