"""Training step of world_F over world_A, same sizes: forward, backward, clipping and AdamW on latents of a real table.

Both policies live in one process and take turns, so that a machine whose speed drifts slows both; with --cpu, processor
seconds, which hold on a machine that does other work as well. Sizes are those of
the figure to reach: width 512, 4 layers, latents of 768, 3 history frames, 8 actions, 8 future frames, batch 256.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config
from provenance import provenance
from random_latents import random_companion

import lerobot_policy_world_modality  # noqa: F401  registers the types
from world_modality_core.encoders.spec import EncoderSpec

N_EPISODES, EPISODE_LENGTH, ACTION, STATE, LANGUAGE = 100, 100, 7, 8, 384


def build(policy_type: str, args: argparse.Namespace, companion: SimpleNamespace):
    """A policy in training mode on a table of random latents, and its optimiser."""
    config = make_policy_config(
        policy_type,
        d_model=512, n_layers=4, n_heads=8, n_obs_steps=3, chunk_size=8, n_action_steps=8, n_future_steps=8,
        dropout=0.1, device=args.device, push_to_hub=False,
        input_features={"observation.state": PolicyFeature(FeatureType.STATE, (STATE,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
    )  # fmt: skip
    config.encoder = EncoderSpec(family="dinov2", cameras=["observation.image"], n_tokens=1, dim=768, raw_dims=[768])
    config.language.dim = LANGUAGE
    policy = get_policy_class(policy_type)(config).to(args.device).train()
    policy.latent_reader.companion = companion
    return policy, torch.optim.AdamW(policy.get_optim_params(), lr=1e-4)


def step(policy, optimizer, batch: dict, clock: Callable[[], float]) -> float:
    """Seconds of one training step."""
    start = clock()
    loss, logged = policy.forward(batch)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
    optimizer.step()
    optimizer.zero_grad()
    policy.update()
    loss.item()
    dict(logged.items())  # LeRobot's trainer reads them each step
    return clock() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--repeats", type=int, default=15, help="timed pairs of steps (default: 15)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    parser.add_argument("--batch_size", type=int, default=256, help="samples per step (default: 256)")
    parser.add_argument("--cpu", action="store_true", help="compare processor seconds")
    parser.add_argument("--json", help="also write the figures to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        companion = random_companion(Path(folder), N_EPISODES, EPISODE_LENGTH, 768)
        policies = {name: build(name, args, companion) for name in ("world_A", "world_F")}
        for policy, _ in policies.values():
            # One lookup in a table of embedded tasks is all that language costs in training.
            embedding = torch.randn(args.batch_size, LANGUAGE, device=args.device)
            policy.latent_reader._sentences = SimpleNamespace(encode=lambda tasks, e=embedding: e)
        seconds: dict[str, list[float]] = {name: [] for name in policies}
        for repeat in range(args.repeats + 2):
            batch = {
                "index": torch.randint(N_EPISODES * EPISODE_LENGTH, (args.batch_size,)),
                "observation.state": torch.randn(args.batch_size, STATE, device=args.device),
                "action": torch.randn(args.batch_size, 8, ACTION, device=args.device),
                "action_is_pad": torch.zeros(args.batch_size, 8, dtype=torch.bool, device=args.device),
                "task": ["push the puck"] * args.batch_size,
            }
            for name in policies if repeat % 2 else reversed(policies):
                taken = step(*policies[name], batch, time.process_time if args.cpu else time.perf_counter)
                if repeat >= 2:  # the first two warm up
                    seconds[name].append(taken)
    ratios = [f / a for a, f in zip(seconds["world_A"], seconds["world_F"], strict=True)]
    figures = {
        "world_A_ms": [1e3 * s for s in seconds["world_A"]],
        "world_F_ms": [1e3 * s for s in seconds["world_F"]],
        "ratio": ratios,
    }
    n_parameters = {name: sum(p.numel() for p in policy.parameters()) for name, (policy, _) in policies.items()}
    print(f"device {args.device}, {args.threads} thread(s), batch {args.batch_size}, n = {args.repeats} pairs")
    print(f"parameters: world_A {n_parameters['world_A']:,}, world_F {n_parameters['world_F']:,}")
    print(f"{'':12} {'median':>9} {'min':>9} {'max':>9}")
    for name, values in figures.items():
        print(f"{name:12} {statistics.median(values):9.3f} {min(values):9.3f} {max(values):9.3f}")
    print("figure to reach: ratio <= 1.15")
    if args.json:
        Path(args.json).write_text(json.dumps(provenance() | {"args": vars(args), "figures": figures}, indent=2))


if __name__ == "__main__":
    main()
