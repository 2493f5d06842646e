"""What smolvla_world costs over LeRobot's smolvla: training step, sampling, waits for the device, frames, checkpoint.

Both policies are of the same shape with random weights, live in one process and take turns, so that a machine whose
speed drifts slows both; ratios are taken pairwise. smolvla_world reads a table of random latents as it would read a
companion's. The shapes:

    450m   SmolVLM2-500M with 16 of its layers and its expert: SmolVLA as published, 512 px images, chunks of 50
    tiny   wm-doctor's backbone, 32 px images, chunks of 50

    training    forward, backward, clipping, AdamW, `update`, and reading what was logged
    sampling    noise to actions, the memory filled beforehand; and "whole": the gather, the Prophet and filling, too
    waits       of a training step (forward, backward, `update`) whose logged values nobody reads: host_syncs.py; the
                latents on the device, as is the default where they fit, and on the host
    frames      that the world encoder was given per environment step, T = 4, planning every 50 and 10 steps
    checkpoint  bytes and names that smolvla_world's weights have over smolvla's

CPU time and operations (matrix products and convolutions, as torch counts them) tell what wall times of a busy machine
can't.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import get_policy_class, make_policy_config
from safetensors import safe_open
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parent))
import host_syncs
from provenance import provenance
from random_latents import random_companion
from report import report

import lerobot_policy_world_modality  # noqa: F401  registers the types
from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA, make_smolvlm
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec

TYPES = ("smolvla", "smolvla_world")
CAMERA, ACTION, STATE, CHUNK = "observation.images.top", 7, 8, 50
PROMPT_TOKENS = 16
N_EPISODES, EPISODE_LENGTH = 50, 100
ENV_STEPS = 200
IMAGE_PX = {"tiny": 32, "450m": 512}


class Pair:
    """smolvla and smolvla_world of one shape, with the same weights of SmolVLA.

    Args:
        size: "tiny" or "450m".
        folder: Where the backbone's config and the table of latents are written.
        args: The command's arguments.
    """

    def __init__(self, size: str, folder: Path, args: argparse.Namespace):
        self.size, self.args = size, args
        self.vlm = make_smolvlm(folder / size, size)
        self.companion = random_companion(folder, N_EPISODES, EPISODE_LENGTH, args.tokens * args.dim)
        self.policies = {name: self.build(name) for name in TYPES}
        self.policies["smolvla_world"].latent_reader.companion = self.companion

    def build(self, policy_type: str, encoder: EncoderSpec | None = None, **options):
        """A policy in training mode."""
        px = IMAGE_PX[self.size]
        shape = TINY_SMOLVLA if self.size == "tiny" else {"push_to_hub": False}
        config = make_policy_config(
            policy_type,
            **shape
            | {
                "vlm_model_name": str(self.vlm),
                "load_vlm_weights": False,
                "chunk_size": CHUNK,
                "n_action_steps": CHUNK,
                "device": self.args.device,
                "input_features": {
                    CAMERA: PolicyFeature(FeatureType.VISUAL, (3, px, px)),
                    "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
                },
                "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
            }
            | options,
        )
        if policy_type == "smolvla_world":
            n, d = self.args.tokens, self.args.dim
            config.encoder = encoder or EncoderSpec(
                family="dinov2", cameras=[CAMERA], n_tokens=n, dim=d, raw_dims=[d]
            )  # fmt: skip
        torch.manual_seed(0)
        return get_policy_class(policy_type)(config).to(self.args.device).train()

    def batch(self) -> dict:
        """A training batch as the preprocessor hands it over."""
        b, px, device = self.args.batch_size, IMAGE_PX[self.size], self.args.device
        return {
            CAMERA: torch.rand(b, 3, px, px, device=device),
            "observation.state": torch.randn(b, STATE, device=device),
            "observation.language.tokens": torch.randint(10, 300, (b, PROMPT_TOKENS), device=device),
            "observation.language.attention_mask": torch.ones(b, PROMPT_TOKENS, dtype=torch.bool, device=device),
            "action": torch.randn(b, CHUNK, ACTION, device=device),
            "action_is_pad": torch.zeros(b, CHUNK, dtype=torch.bool, device=device),
            "index": torch.randint(N_EPISODES * EPISODE_LENGTH, (b,), device=device),
            "episode_index": torch.zeros(b, dtype=torch.int64, device=device),
            "task_index": torch.zeros(b, dtype=torch.int64, device=device),
            "task": ["push the puck"] * b,
        }

    def draws(self) -> dict:
        """Noise and time of a training step."""
        b, width = self.args.batch_size, self.policies["smolvla"].config.max_action_dim
        noise = torch.randn(b, CHUNK, width, device=self.args.device)
        return {"noise": noise, "time": torch.rand(b, device=self.args.device) * 0.998 + 0.001}


def seconds(work: Callable[[], object], device: str) -> tuple[float, float]:
    """Wall time of some work, the device's included, and this process' CPU time."""
    synchronise = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    synchronise()
    start, cpu_start = time.perf_counter(), time.process_time()
    work()
    synchronise()
    return time.perf_counter() - start, time.process_time() - cpu_start


def operations(work: Callable[[], object]) -> float:
    """Floating point operations in units of 1e9."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops() / 1e9


def compare(
    title: str, works: dict[str, Callable[[], object]], target: str, args: argparse.Namespace, n_warm_up: int = 1
) -> dict:
    """Time two things in turn and print their ratio, second over first."""
    base, other = works
    wall: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(args.repeats + n_warm_up):
        for name in works if repeat % 2 else reversed(works):
            taken = seconds(works[name], args.device)
            if repeat >= n_warm_up:
                wall[name].append(1e3 * taken[0])
                cpu[name].append(1e3 * taken[1])
    counted = {name: [operations(work)] for name, work in works.items()}
    measured = {f"{name} (ms)": values for name, values in wall.items()}
    measured |= {f"{name} (CPU ms)": values for name, values in cpu.items()}
    measured |= {f"{name} (1e9 operations)": values for name, values in counted.items()}
    ratio, measured["ratio of CPU time"], measured["ratio of operations"] = (
        [b / a for a, b in zip(values[base], values[other], strict=True)] for values in (wall, cpu, counted)
    )
    report(title, measured, ratio, target, {})
    return {"title": title, "target": target, "ratio": ratio} | measured


def training(pair: Pair) -> dict:
    """Whole training steps of both, on the same batches."""
    optimizers = {name: torch.optim.AdamW(p.get_optim_params(), lr=1e-4) for name, p in pair.policies.items()}
    batch, draws = pair.batch(), pair.draws()

    def step(name: str) -> None:
        policy = pair.policies[name]
        loss, logged = policy.forward(dict(batch), **draws)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 10.0)
        optimizers[name].step()
        optimizers[name].zero_grad()
        if name == "smolvla_world":
            policy.update()
        loss.item()
        dict(logged.items())  # LeRobot's trainer reads them each step

    works = {name: lambda name=name: step(name) for name in TYPES}
    figures = compare(f"{pair.size}: training step", works, "<= 1.05", pair.args)
    for policy in pair.policies.values():
        policy.zero_grad()
    return figures


def sampling(pair: Pair) -> list[dict]:
    """Sampling a chunk: with the memory ready, and with all that fills it but the encoder."""
    plain, world = (pair.policies[name].eval() for name in TYPES)
    batch, noise = pair.batch(), pair.draws()["noise"]

    def sample(policy) -> None:
        images, masks = policy.prepare_images(batch)
        prompt = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
        policy.model.sample_actions(images, masks, *prompt, policy.prepare_state(batch), noise=noise)

    with torch.no_grad():
        world_batch = world.recorded_batch(batch)
        with world.reading(world_batch, world.config.memory.source):
            works = {"smolvla": lambda: sample(plain), "smolvla_world": lambda: sample(world)}
            ready = compare(f"{pair.size}: sampling a chunk, memory ready", works, "<= 1.05", pair.args)
        works = {
            "smolvla": lambda: plain.predict_action_chunk(dict(batch), noise=noise),
            "smolvla_world": lambda: world.plan_recorded(dict(batch), noise=noise),
        }
        whole = compare(f"{pair.size}: sampling a chunk, whole", works, "no figure", pair.args)
    for policy in (plain, world):
        policy.train()
    return [ready, whole]


def waits(pair: Pair) -> dict:
    """Waits for the device in a training step, of both, and what reading the logged values adds."""
    host_syncs.check()
    policies = pair.policies
    world = policies["smolvla_world"]

    def count(policy, reads_log: bool = False) -> dict[str, int]:
        batch, draws = pair.batch(), pair.draws()
        with host_syncs.HostSyncs() as syncs:
            loss, logged = policy.forward(batch, **draws)
            loss.backward()
            if policy is world:
                policy.update()
            if reads_log:
                dict(logged.items())
        policy.zero_grad()
        return dict(syncs.waits)

    counted = {"smolvla": count(policies["smolvla"])}
    for place, on_device in (("device", True), ("host", False)):
        world.config.companion.on_device, world.latent_reader._gpu_table = on_device, None
        count(world)  # the first step opens the table
        counted[f"smolvla_world, latents on the {place}"] = count(world)
    counted["smolvla, log read"] = count(policies["smolvla"], True)
    world.config.companion.on_device, world.latent_reader._gpu_table = True, None
    count(world)
    counted["smolvla_world, latents on the device, log read"] = count(world, True)
    print(f"\n{pair.size}: waits for the device in a training step  (target: as many as smolvla)")
    base = counted["smolvla"]
    for name, found in counted.items():
        added = {kind: n - base.get(kind, 0) for kind, n in found.items() if n > base.get(kind, 0)}
        print(f"  {name:<50}{sum(found.values()):>5}   added {sum(found.values()) - sum(base.values())} {added or ''}")
    return counted


def frames(pair: Pair) -> list[dict]:
    """Frames that the world encoder was given per environment step."""
    found = []
    spec = EncoderSpec(family="efficientnet_lite0", cameras=[CAMERA], height_px=32, width_px=32)
    encoder = make_world_encoder(spec)
    for n_action_steps, target in ((50, 0.08), (10, 0.4)):
        policy = pair.build("smolvla_world", encoder.spec, n_action_steps=n_action_steps, n_history_steps=4).eval()
        counting = CountingEncoder(encoder)
        policy.latent_reader._encoder = counting
        policy.reset()
        one = {key: value[:1] for key, value in pair.batch().items() if key.startswith("observation.")}
        for _ in range(ENV_STEPS):
            policy.select_action(one | {"task": ["push the puck"]})
        share = counting.n_frames / ENV_STEPS
        found.append(
            {"n_action_steps": n_action_steps, "frames_per_step": share, "calls": counting.n_calls, "of": ENV_STEPS}
        )
        print(
            f"\n{pair.size}: frames encoded per environment step, planning every {n_action_steps}: {share:.3f} in "
            f"{counting.n_calls} calls over {ENV_STEPS} steps  (target <= {target})"
        )
    return found


class CountingEncoder:
    """A world encoder that counts what it is given."""

    def __init__(self, encoder):
        self.encoder, self.n_frames, self.n_calls = encoder, 0, 0

    def encode(self, windows: dict):
        self.n_calls += 1
        self.n_frames += len(windows[CAMERA])
        return self.encoder.encode(windows)


def checkpoint(pair: Pair, folder: Path) -> dict:
    """Bytes and tensors that the checkpoint of smolvla_world has over smolvla's."""
    sizes: dict[str, dict[str, int]] = {}
    for name, policy in pair.policies.items():
        policy.save_pretrained(folder / name)
        path = folder / name / "model.safetensors"
        with safe_open(path, "pt") as file:
            sizes[name] = {key: file.get_slice(key).get_shape() for key in file.keys()}
            sizes[name] = {key: _n_bytes(file, key) for key in sizes[name]}
        path.unlink()
    base, world = (sizes[name] for name in TYPES)
    changed = sorted(key for key in base if world.get(key) != base[key])
    added = {key: n for key, n in world.items() if key not in base}
    parts: dict[str, int] = {}
    for key, n in added.items():
        part = key if not key.startswith("world.") else ".".join(key.split(".")[:2])
        part = "model.action_out_proj.world_reader" if "world_reader" in key else part
        parts[part] = parts.get(part, 0) + n
    total = sum(added.values())
    print(f"\n{pair.size}: checkpoint  (target: the world modules only)")
    print(
        f"  {'smolvla':<50}{sum(base.values()) / 1e6:>12.2f} MB in {len(base)} tensors; changed or missing: {changed}"
    )
    print(f"  {'added':<50}{total / 1e6:>12.2f} MB, {total / sum(base.values()):.1%}, in {len(added)} tensors:")
    for part, n in parts.items():
        print(f"    {part:<48}{n / 1e6:>12.3f} MB")
    return {"base_bytes": sum(base.values()), "added_bytes": parts, "changed": changed}


def _n_bytes(file, key: str) -> int:
    tensor = file.get_tensor(key)
    return tensor.numel() * tensor.element_size()


def main() -> None:
    parts = ("training", "sampling", "waits", "frames", "checkpoint")
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--sizes", nargs="+", choices=["tiny", "450m"], default=["tiny", "450m"])
    cli.add_argument("--parts", nargs="+", choices=parts, default=parts)
    cli.add_argument("--batch_size", type=int, default=1)
    cli.add_argument("--dim", type=int, default=768, help="width of a latent token")
    cli.add_argument("--tokens", type=int, default=1, help="latent tokens per frame")
    cli.add_argument("--repeats", type=int, default=15, help="timed pairs")
    cli.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads")
    cli.add_argument("--device", default="cpu")
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    torch.set_num_threads(args.threads)
    record = provenance() | {
        "settings": {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    }
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            pair = Pair(size, Path(folder), args)
            found = record[size] = {"parameters": {}}
            for name, policy in pair.policies.items():
                found["parameters"][name] = sum(p.numel() for p in policy.parameters())
            print(f"\n{size}: parameters " + ", ".join(f"{k} {v:,}" for k, v in found["parameters"].items()))
            if "training" in args.parts:
                found["training"] = training(pair)
            if "sampling" in args.parts:
                found["sampling"] = sampling(pair)
            if "waits" in args.parts:
                found["waits"] = waits(pair)
            if "checkpoint" in args.parts:
                found["checkpoint"] = checkpoint(pair, Path(folder) / f"{size}_checkpoints")
            # How many frames are encoded doesn't depend on the shape: the small one says it sooner.
            if "frames" in args.parts and size == "tiny":
                found["frames"] = frames(pair)
            del pair
    if args.json:
        args.json.write_text(json.dumps(record, indent=1))


if __name__ == "__main__":
    main()
