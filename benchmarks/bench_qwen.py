"""What world memory and alignment cost a training step of qwen_world_fplus: floating-point operations, and wall time.

FLOPs are counted at the 2B shape, on the meta device, so that it takes neither weights nor time: forward and backward
of vision tower, language model, head, and of all that E2 adds to E0 (Prophet, its loss, gated cross-attention). Wall
time is of whole steps of E0 and E2 in one process, taking turns, at a size that fits the machine.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config
from random_latents import random_companion
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText, Qwen3VLConfig

import lerobot_policy_world_modality  # noqa: F401  registers the type
from lerobot_policy_world_modality.policies.qwen_world_fplus.world_parts import QwenWorld
from lerobot_policy_world_modality.policies.shared.memory_filling import predict_futures
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from wm_tools.doctor.qwen_backbone import make_qwen
from world_modality_core.encoders.spec import EncoderSpec

# Qwen3-VL-2B-Instruct's config.json.
TEXT_2B = {
    "vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28,
    "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
    "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
}  # fmt: skip
VISION_2B = {
    "depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16,
    "out_hidden_size": 2048, "deepstack_visual_indexes": [5, 11, 17],
}  # fmt: skip
ACTION, STATE, CAMERA, LATENT = 7, 8, "observation.image", 1024


def policy_config(**options):
    """E2's config with one camera; latents of one vector, as DINOv2-large's."""
    config = make_policy_config(
        "qwen_world_fplus",
        chunk_size=8, n_action_steps=8, n_history_steps=4, n_future_steps=4, push_to_hub=False, train_backbone="full",
        input_features={
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, 256, 256)),
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        **options,
    )  # fmt: skip
    config.encoder = EncoderSpec(family="dinov2", cameras=[CAMERA], n_tokens=1, dim=LATENT, raw_dims=[LATENT])
    config.prophet.d_model = 256
    return config


def count_flops(b: int, n_text: int) -> dict[str, float]:
    """FLOPs of forward and backward at the 2B shape, one image of 256 x 256 px a sample (64 tokens)."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(
            Qwen3VLConfig(text_config=TEXT_2B, vision_config=VISION_2B, tie_word_embeddings=True)
        )
        world = QwenWorld(policy_config(device="cpu"), TEXT_2B["hidden_size"])
        latents = [torch.randn(b, n, 1, LATENT) for n in (4, 4)]
        pads = [torch.zeros(b, 4, dtype=torch.bool) for _ in range(2)]
        states = torch.randn(b, 8, TEXT_2B["hidden_size"], requires_grad=True)
        patches = torch.randn(b * 256, 3 * 2 * 16 * 16)
        embedded = torch.randn(b, n_text + 64, TEXT_2B["hidden_size"], requires_grad=True)
        places = torch.zeros(3, b, n_text + 64, dtype=torch.long)
    counts = {}
    with FlopCounterMode(display=False) as counter:
        grid = torch.tensor([[1, 16, 16]] * b)  # the tower reads these numbers
        model.model.visual(patches, grid_thw=grid).pooler_output.sum().backward()
    counts["vision tower"] = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        out = model.model.language_model(inputs_embeds=embedded, position_ids=places)
        out.last_hidden_state.sum().backward()
    counts["language model"] = counter.get_total_flops()
    world_batch = WorldBatch(b, history=latents[0], history_is_pad=pads[0], future=latents[1], future_is_pad=pads[1])
    with FlopCounterMode(display=False) as counter:
        informed = world.reader(states, predict_futures(world.prophet, world_batch).as_memory())
        loss, _ = world.objectives(informed, world_batch)
        (informed.sum() + loss.sum()).backward()
    counts["memory and alignment"] = counter.get_total_flops()
    return counts


def build(args: argparse.Namespace, vlm: Path, companion: SimpleNamespace, has_world: bool):
    """A policy in training mode on a table of random latents, and its optimiser."""
    options = {} if has_world else {"use_memory": False, "lambda_world": 0.0}
    config = policy_config(device=args.device, vlm_backbone=str(vlm), weights="random", **options)
    torch.manual_seed(0)
    policy = get_policy_class("qwen_world_fplus")(config).to(args.device).train()
    policy._awaits_weights = False  # random ones are wanted
    if has_world:
        policy.latent_reader.companion = companion
    return policy, torch.optim.AdamW(policy.get_optim_params())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--width", type=int, default=768, help="of the language model that is timed (default: 768)")
    parser.add_argument("--n_layers", type=int, default=12, help="its layers (default: 12)")
    parser.add_argument("--batch_size", type=int, default=4, help="samples per step (default: 4)")
    parser.add_argument("--repeats", type=int, default=10, help="timed pairs of steps; 0 counts only (default: 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    counts = count_flops(b=2, n_text=40)
    e0 = counts["vision tower"] + counts["language model"]
    print("FLOPs of a training step per sample at Qwen3-VL-2B's shape (1 image of 64 tokens, 40 further tokens)")
    for name, count in counts.items():
        print(f"  {name:<24}{count / 2 / 1e9:12.2f} G")
    print(f"  E2 / E0 = {1 + counts['memory and alignment'] / e0:.5f}  (figure to reach <= 1.02)")
    if args.repeats == 0:
        return
    with tempfile.TemporaryDirectory() as folder:
        vlm = make_qwen(
            Path(folder) / "vlm", d=args.width, n_layers=args.n_layers, n_heads=args.width // 64, d_vision=256,
            n_vision_layers=6, patch_px=16, save_weights=False,
        )  # fmt: skip
        companion = random_companion(Path(folder), 50, 100, LATENT)
        policies = {name: build(args, vlm, companion, name == "E2") for name in ("E0", "E2")}
        b, device = args.batch_size, args.device
        batch = {
            CAMERA: torch.rand(b, 3, 256, 256, device=device), "task": ["push the puck"] * b,
            "observation.state": torch.randn(b, STATE, device=device), "index": torch.arange(b) * 131 + 20,
            "action": torch.randn(b, 8, ACTION, device=device),
        }  # fmt: skip
        seconds: dict[str, list[float]] = {name: [] for name in policies}
        for repeat in range(args.repeats + 2):
            for name in policies if repeat % 2 else reversed(policies):
                policy, optimizer = policies[name]
                start = time.perf_counter()
                loss, logged = policy.forward(batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                policy.update()
                loss.item()
                dict(logged.items())
                if repeat >= 2:  # the first two warm up
                    seconds[name].append(time.perf_counter() - start)
    from report import report

    ratio = [e2 / e0 for e0, e2 in zip(seconds["E0"], seconds["E2"], strict=True)]
    n = sum(p.numel() for p in policies["E0"][0].backbone.parameters())
    measured = {f"{name} step (s)": values for name, values in seconds.items()}
    title = f"E2 over E0, wall time of a step, backbone of {n / 1e6:.0f}M parameters"
    report(title, measured, ratio, "<= 1.05", vars(args) | {"flops_ratio": 1 + counts["memory and alignment"] / e0})
    print(f"  ratio of medians: {statistics.median(seconds['E2']) / statistics.median(seconds['E0']):.4f}")


if __name__ == "__main__":
    main()
