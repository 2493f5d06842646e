"""smolvla_world with 16 past frames in its memory, over smolvla at 450M: training step and chunk latency."""

from __future__ import annotations

from gpu_parts.figures import Run
from gpu_parts.smolvla_world import Trained, latency, make_pair, training
from world_modality_core.configs import MemoryConfig, PastConfig


def measure(run: Run) -> None:
    pair = make_pair(run)
    plain, repeats = pair.policies["smolvla"], 10 if run.is_real else 2
    batch, draws = pair.batch(), pair.draws()
    companion = pair.policies["smolvla_world"].latent_reader.companion
    for select in ("stride", "change"):
        options = {"memory": MemoryConfig(past=PastConfig(16, stride=5, select=select))}
        world = pair.policies["smolvla_world"] = pair.build("smolvla_world", **options)
        world.latent_reader.companion = companion
        say = {"part": "past", "batch_size": pair.args.batch_size, "latent_tokens": pair.args.tokens}
        title = f"16 past frames ({select})"
        trained = {"smolvla": Trained(pair, plain, batch, draws, run.device),
                   "smolvla_world": Trained(pair, world, batch, draws, run.device)}  # fmt: skip
        training(run, trained, repeats, title, say)
        latency(run, pair, repeats, say, f", {title}")
