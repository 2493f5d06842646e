"""Frames encoded per environment step at rollout, and milliseconds per step, of a world_F policy with random weights.

T = 4 history frames, n_action_steps = 10: a plan needs four new frames at most, so at most 0.4 frames per step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config

import lerobot_policy_world_modality  # noqa: F401  registers the types
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec

CAMERA, STEPS = "observation.image", 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where to act (default: cpu)")
    parser.add_argument("--image_px", type=int, default=128, help="side of the images (default: 128)")
    parser.add_argument("--n_envs", type=int, default=1, help="environments that step together (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="episodes of 200 steps (default: 3)")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    spec = EncoderSpec(family="efficientnet_lite0", cameras=[CAMERA], height_px=args.image_px, width_px=args.image_px)
    config = make_policy_config(
        "world_F",
        n_obs_steps=4, chunk_size=10, n_action_steps=10, n_future_steps=8, use_language=False,
        device=args.device, push_to_hub=False,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (4,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )  # fmt: skip
    config.encoder = make_world_encoder(spec).spec
    policy = get_policy_class("world_F")(config).to(args.device).eval()
    frames, milliseconds = [], []
    for _ in range(args.repeats):
        policy.reset()
        for _ in range(STEPS):
            batch = {
                CAMERA: torch.rand(args.n_envs, 3, args.image_px, args.image_px),
                "observation.state": torch.randn(args.n_envs, 4, device=args.device),
            }
            start = time.perf_counter()
            policy.select_action(batch).cpu()
            milliseconds.append(1e3 * (time.perf_counter() - start))
        frames.append(policy.latent_reader.frames.n_encoded / STEPS)
    figures = {"frames_per_step": frames, "ms_per_step": milliseconds}
    print(f"device {args.device}, {args.n_envs} environment(s), {args.repeats} episodes of {STEPS} steps")
    print(f"frames encoded per environment step: {statistics.median(frames):.3f} (figure to reach: <= 0.4)")
    slowest = sorted(milliseconds)[-len(milliseconds) // 10 :]
    print(
        f"milliseconds per step: mean {statistics.mean(milliseconds):.2f}, median "
        f"{statistics.median(milliseconds):.2f}, median of the steps that plan {statistics.median(slowest):.2f}"
    )
    if args.json:
        Path(args.json).write_text(json.dumps({"args": vars(args), "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
