"""torch.compile of smolvla_world and smolvla: graphs made anew after the first step, and what a step then takes."""

from __future__ import annotations

import torch

from gpu_parts.figures import Run
from gpu_parts.smolvla_world import Trained, make_pair
from gpu_parts.timing import in_turn


def measure(run: Run) -> None:
    if not run.device.startswith("cuda"):  # a compiler takes minutes on a CPU
        return
    pair = make_pair(run)
    batch, draws, say = pair.batch(), pair.draws(), {"part": "compilation"}
    options = {"compile_model": True, "compile_mode": "default"}
    policies = {name: pair.build(name, **options) for name in ("smolvla", "smolvla_world")}
    policies["smolvla_world"].latent_reader.companion = pair.policies["smolvla_world"].latent_reader.companion
    trained = {name: Trained(pair, policy, batch, draws, run.device) for name, policy in policies.items()}
    for name, each in trained.items():
        torch._dynamo.utils.counters.clear()
        each.step()
        before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        for _ in range(3):
            each.batch = pair.batch()
            each.step()
        added = torch._dynamo.utils.counters["stats"]["unique_graphs"] - before
        run.figure(
            f"{name}, compiled: graphs compiled anew after the first step", added, equals=0, graphs=before, **say
        )
    taken = in_turn({name: each.step for name, each in trained.items()}, run.device, 10)
    ratio = [w / p for p, w in zip(taken["smolvla"], taken["smolvla_world"], strict=True)]
    run.figure("smolvla_world over smolvla, both compiled: training step", ratio, most=1.05, **say)
