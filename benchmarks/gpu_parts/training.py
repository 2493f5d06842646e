"""world_F's training step over world_A's, and how many steps a second the device makes of them."""

from __future__ import annotations

from argparse import Namespace
from types import SimpleNamespace

import torch
from bench_training_step import EPISODE_LENGTH, LANGUAGE, N_EPISODES, STATE, build, step
from random_latents import random_companion

from gpu_parts.figures import Run
from gpu_parts.timing import in_turn, waits

PART = "training"


def measure(run: Run) -> None:
    companion = random_companion(run.folder, N_EPISODES, EPISODE_LENGTH, 768)
    b, device = (256 if run.is_real else 4), run.device
    policies = {name: build(name, Namespace(device=device), companion) for name in ("world_A", "world_F")}
    embedding = torch.randn(b, LANGUAGE, device=device)
    for policy, _ in policies.values():
        policy.latent_reader._sentences = SimpleNamespace(encode=lambda tasks: embedding)
    batch = {
        "index": torch.randint(N_EPISODES * EPISODE_LENGTH, (b,)).to(device),
        "observation.state": torch.randn(b, STATE, device=device),
        "action": torch.randn(b, 8, 7, device=device),
        "action_is_pad": torch.zeros(b, 8, dtype=torch.bool, device=device),
        "task": ["push the puck"] * b,
    }

    works = {name: lambda each=each: step(*each, dict(batch)) for name, each in policies.items()}
    taken = in_turn(works, device, 50 if run.is_real else 2, 5)
    for name, values in taken.items():
        run.figure(f"{name}: training step, batch {b}, width 512", values, "ms", part=PART)
        run.figure(f"{name}: training steps", [1e3 / value for value in values], "steps/s", part=PART)
    ratio = [f / a for a, f in zip(taken["world_A"], taken["world_F"], strict=True)]
    run.figure("world_F over world_A: training step", ratio, most=1.15, part=PART)
    if device.startswith("cuda"):
        for name, (policy, _) in policies.items():
            found = waits(lambda policy=policy: policy.forward(dict(batch))[0].backward())
            run.figure(f"{name}: waits for the device in forward and backward", found, equals=0, part=PART)
        companion.info.excluded = [N_EPISODES]  # one that no batch is of
        policy, _ = policies["world_F"]
        found = waits(lambda: policy.forward(dict(batch))[0].backward())
        run.figure("world_F, a companion without some episodes: waits for the device", found, equals=0, part=PART)
