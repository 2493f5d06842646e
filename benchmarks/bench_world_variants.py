"""What a world memory of 16 past and 4 future frames of 17 tokens costs its hosts.

    training   a step (forward, backward, AdamW, `update`) of `act_world` and `diffusion_world` over the plain policy's,
               at LeRobot's default sizes, images of 224 px
    sampling   a chunk, the memory filled beforehand, over the plain policy's
    gather     past, history and future of a batch of 256, over a copy of as many contiguous bytes, by CPU time
    frames     of the past that are encoded per environment step of a rollout, times its stride; and all that are, with
               the current frame of each plan
    lines      of the declaration of a host

Plain and world policy live in one process and take turns on one thread; ratios are taken pairwise. CPU time tells what
the wall time of a busy machine can't. Operations are matrix products and convolutions, as torch counts them.
"""

from __future__ import annotations

import argparse
import inspect
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
from provenance import provenance
from random_latents import random_companion

import lerobot_policy_world_modality  # noqa: F401  registers the types
from world_modality_core.configs import MemoryConfig, PastConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.latents.latent_table import LatentTable
from world_modality_core.latents.past_frames import RecordedPast

TOKENS, DIM, CAMERA, PX = 17, 64, "observation.image", 224
N_EPISODES, LENGTH = 100, 300
PAST = PastConfig(n_frames=16, stride=4, select="change")
OPTIONS = {"act": {"pretrained_backbone_weights": None}, "diffusion": {"pretrained_backbone_weights": None}}
TARGETS = {"act": 1.10, "diffusion": 1.05}


def make_policy(name: str, companion: SimpleNamespace):
    """A policy in training mode, its world's latents those of the companion."""
    plain = name.removesuffix("_world")
    world = {}
    if name != plain:
        spec = EncoderSpec(family="dinov2", cameras=[CAMERA], n_tokens=TOKENS, dim=DIM, raw_dims=[DIM])
        world = {"memory": MemoryConfig(past=PAST), "encoder": spec, "n_future_steps": 4}
    config = PreTrainedConfig.get_choice_class(name)(device="cpu", push_to_hub=False, **OPTIONS[plain] | world)
    config.input_features = {
        CAMERA: PolicyFeature(FeatureType.VISUAL, (3, PX, PX)),
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    }
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    torch.manual_seed(0)
    policy = get_policy_class(name)(config).train()
    if world:
        policy.latent_reader.companion = companion
    return policy


def make_batch(policy, b: int) -> dict:
    """A training batch as the preprocessor hands it over."""
    config = policy.config
    steps = () if config.observation_delta_indices is None else (len(config.observation_delta_indices),)
    h = len(config.action_delta_indices)
    return {
        CAMERA: torch.rand(b, *steps, 3, PX, PX),
        "observation.state": torch.randn(b, *steps, 8),
        "action": torch.randn(b, h, 7),
        "action_is_pad": torch.zeros(b, h, dtype=torch.bool),
        "index": torch.randint(N_EPISODES * LENGTH, (b,)),
        "episode_index": torch.zeros(b, dtype=torch.int64),
    }


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - start, time.process_time() - cpu


def operations(work: Callable[[], object]) -> float:
    """Matrix products and convolutions, in 10^9."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def compare(plain: Callable[[], object], world: Callable[[], object], repeats: int) -> dict:
    """Ratios of two pieces of work that take turns."""
    plain(), world()
    pairs = [(seconds(plain), seconds(world)) for _ in range(repeats)]
    ratios = {
        name: [w[i] / p[i] for p, w in pairs] for i, name in enumerate(("ratio of wall times", "ratio of CPU times"))
    }
    made = {"n": repeats} | {
        name: {"median": float(np.median(each)), "min": min(each), "max": max(each)} for name, each in ratios.items()
    }
    counted = operations(plain), operations(world)
    return made | {"operations (1e9)": counted, "ratio of operations": counted[1] / counted[0]}


def training_and_sampling(host: str, companion: SimpleNamespace, b: int, repeats: int) -> dict:
    """Of a host: both comparisons, and its parameters."""
    plain, world = (make_policy(name, companion) for name in (host, f"{host}_world"))
    batch = make_batch(plain, b)
    steps = {}
    for policy in (plain, world):
        optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-5)

        def step(policy=policy, optimizer=optimizer):
            policy.train()
            policy.forward(dict(batch))[0].backward()
            optimizer.step()
            optimizer.zero_grad()
            if hasattr(policy, "update"):
                policy.update()

        steps[policy.name] = step
    made = {"training": compare(steps[host], steps[f"{host}_world"], repeats)}
    made["parameters (1e6)"] = [sum(p.numel() for p in policy.parameters()) / 1e6 for policy in (plain, world)]

    plain.eval(), world.eval()
    seen = {name: value[:1] for name, value in batch.items()}
    noise = torch.randn(1, plain.config.horizon, 7) if host == "diffusion" else None
    given = {} if noise is None else {"noise": noise}
    with torch.no_grad(), world.reading(world.recorded_batch(seen), "pred"):
        made["sampling"] = compare(
            lambda: plain.predict_action_chunk(dict(seen), **given),
            lambda: world._sample_recorded(dict(seen), noise),
            repeats,
        )
    return made


def gather(table: LatentTable, repeats: int) -> dict:
    """Past, history and future in one read, over a copy of as many bytes."""
    rng, offsets = np.random.default_rng(0), [-3, -2, -1, 0, 1, 2, 3, 4]
    n_rows = 256 * (PAST.n_frames + len(offsets))
    found = {}
    for select in ("stride", "change"):
        past = RecordedPast(table.latents, table.bounds, PAST.n_frames, PAST.stride, select, torch.device("cpu"))
        ratios = []
        for _ in range(20 * repeats):
            index = torch.from_numpy(rng.integers(0, table.n_frames, 256))
            first = int(rng.integers(0, table.n_frames - n_rows))
            start = time.process_time()
            table.read(np.concatenate([past.rows(index)[0].numpy(), table.rows(index, offsets)[0]], axis=1))
            middle = time.process_time()
            np.array(table.latents[first : first + n_rows])
            ratios.append((middle - start) / (time.process_time() - middle))
        found[select] = {"n": len(ratios), "median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios)}
    return found


def frames_per_step(n_action_steps: int, n_steps: int = 400) -> dict:
    """Frames encoded in a rollout that plans every so many steps, times the stride, over its steps: past, and all."""
    frames = FrameHistory([CAMERA], 1, 1, 1, 1, past=(PAST.n_frames, PAST.stride, PAST.select))

    seen = []

    class Encoder:
        def encode(self, windows):
            seen.extend(windows[CAMERA][:, -1, 0, 0, 0].int().tolist())
            return windows[CAMERA].flatten(2).mean(-1)[..., None]

    for step in range(n_steps):
        frames.append({CAMERA: torch.full((1, 3, 2, 2), float(step))})
        if step % n_action_steps == 0:
            frames.latents(Encoder())
    assert len(seen) == len(set(seen)) == frames.n_encoded  # each once
    share = PAST.stride / n_steps
    return {"past": sum(step % PAST.stride == 0 for step in seen) * share, "all": len(seen) * share}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--hosts", nargs="+", default=["act", "diffusion"], choices=list(OPTIONS))
    cli.add_argument("--batch_size", type=int, default=8)
    cli.add_argument("--repeats", type=int, default=5)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    torch.set_num_threads(1)
    record = provenance() | {"settings": {k: v for k, v in vars(args).items() if k != "json"}}
    with tempfile.TemporaryDirectory() as folder:
        companion = random_companion(Path(folder), N_EPISODES, LENGTH, TOKENS * DIM)
        for host in args.hosts:
            record[host] = {"target of training": TARGETS[host], "target of sampling": 1.05}
            record[host] |= training_and_sampling(host, companion, args.batch_size, args.repeats)
            print(host, json.dumps(record[host], indent=1), flush=True)
        record["gather"] = {"target": 2} | gather(companion.table, args.repeats)
    multiples = {f"planning every {n}": frames_per_step(n) for n in (4, 10, 50)}
    record["frames per step, times the stride"] = {"target": 1} | multiples
    declared = PreTrainedConfig.get_choice_class("act_world")
    record["lines of a host"] = {"target": 10, "act_world": len(inspect.getsource(declared).splitlines())}
    print(json.dumps({name: record[name] for name in list(record)[-3:]}, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
