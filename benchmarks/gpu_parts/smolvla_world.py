"""smolvla_world over smolvla at 450M: training step, chunk latency, memory, waits, fusions."""

from __future__ import annotations

import gc
from argparse import Namespace

import torch
from bench_smolvla_world import Pair

from gpu_parts.figures import Run
from gpu_parts.timing import autocast, in_turn, peak_gib, percentile, waits
from lerobot_policy_world_modality.policies.smolvla_world.configuration_smolvla_world import FusionConfig

FUSIONS = ("f1", "f2", "f3a", "f3b")
PART = "smolvla_world"


class Trained:
    """A policy, its optimiser and one batch: `step()` is a whole training step as LeRobot's trainer makes it."""

    def __init__(self, pair: Pair, policy, batch: dict, draws: dict, device: str):
        self.policy, self.batch, self.draws, self.device = policy, batch, draws, device
        self.optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-5)

    def forward_backward(self) -> torch.Tensor:
        with autocast(self.device):
            loss, _ = self.policy.forward(dict(self.batch), **self.draws)
        loss.backward()
        if hasattr(self.policy, "update"):
            self.policy.update()
        return loss

    def step(self) -> float:
        loss = self.forward_backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 10.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item()


def make_pair(run: Run) -> Pair:
    """Both policies at the run's size."""
    size, b, dim, tokens = ("450m", 64, 768, 17) if run.is_real else ("tiny", 2, 8, 2)
    return Pair(size, run.folder, Namespace(device=run.device, batch_size=b, dim=dim, tokens=tokens))


def measure(run: Run) -> None:
    pair = make_pair(run)
    repeats = 20 if run.is_real else 2
    batch, draws = pair.batch(), pair.draws()
    trained = {name: Trained(pair, policy, batch, draws, run.device) for name, policy in pair.policies.items()}
    say = {"part": PART, "batch_size": pair.args.batch_size, "latent_tokens": pair.args.tokens}

    training(run, trained, repeats, "F1", say)
    latency(run, pair, repeats, say)
    if run.device.startswith("cuda"):
        on_cuda(run, trained, pair.size, say)
    fusions(run, pair, trained["smolvla"], repeats, say)


def training(run: Run, trained: dict[str, Trained], repeats: int, title: str, say: dict) -> None:
    """Whole training steps of both, in turn."""
    taken = in_turn({name: each.step for name, each in trained.items()}, run.device, repeats)
    for name, values in taken.items():
        run.figure(f"{name}: training step, {title}", values, "ms", **say)
    ratio = [w / p for p, w in zip(taken["smolvla"], taken["smolvla_world"], strict=True)]
    run.figure(f"smolvla_world over smolvla: training step, {title}", ratio, most=1.05, **say)


def latency(run: Run, pair: Pair, repeats: int, say: dict, title: str = "") -> None:
    """One observation, as on a robot: with the memory ready, and with the Prophet and the memory's filling."""
    plain, world = (pair.policies[name].eval() for name in ("smolvla", "smolvla_world"))
    one = {k: v[:1] for k, v in pair.batch().items()}
    noise = pair.draws()["noise"][:1]
    prompt = one["observation.language.tokens"], one["observation.language.attention_mask"]

    def sample(policy) -> None:
        images, masks = policy.prepare_images(one)
        policy.model.sample_actions(images, masks, *prompt, policy.prepare_state(one), noise=noise)

    with torch.no_grad(), autocast(run.device):
        world_batch = world.recorded_batch(one)
        with world.reading(world_batch, world.config.memory.source):
            works = {"smolvla": lambda: sample(plain), "smolvla_world": lambda: sample(world)}
            ready = in_turn(works, run.device, 5 * repeats)
        works = {
            "smolvla": lambda: plain.predict_action_chunk(dict(one), noise=noise),
            "smolvla_world": lambda: world.plan_recorded(dict(one), noise=noise),
        }
        whole = in_turn(works, run.device, 5 * repeats)
    for part, taken, most in (("memory ready", ready, 1.05), ("with Prophet and filling", whole, None)):
        for name, values in taken.items():
            tail = round(percentile(values, 0.99), 2)
            run.figure(f"{name}: chunk latency, {part}{title}", values, "ms", p99=tail, **say)
        ratio = [w / p for p, w in zip(taken["smolvla"], taken["smolvla_world"], strict=True)]
        run.figure(f"smolvla_world over smolvla: chunk latency, {part}{title}", ratio, most=most, **say)
    for policy in (plain, world):
        policy.train()


def on_cuda(run: Run, trained: dict, size: str, say: dict) -> None:
    """Memory that a training step adds, and waits for the device."""
    peaks = {name: [peak_gib(each.step) for _ in range(3)] for name, each in trained.items()}
    # Both policies and their optimisers lie on the device: what a step adds to that is its own.
    run.figure(f"smolvla {size}: peak of a training step, both policies there", peaks["smolvla"], "GiB", **say)
    added = [w - p for p, w in zip(peaks["smolvla"], peaks["smolvla_world"], strict=True)]
    run.figure(f"smolvla_world {size}: peak over smolvla's", added, "GiB", **say)
    counted = {name: waits(each.forward_backward) for name, each in trained.items()}
    for each in trained.values():
        each.optimizer.zero_grad()
    run.figure("smolvla: waits for the device in forward and backward", counted["smolvla"], **say)
    run.figure("smolvla_world: waits that it adds", counted["smolvla_world"] - counted["smolvla"], equals=0, **say)


def fusions(run: Run, pair: Pair, plain: Trained, repeats: int, say: dict) -> None:
    """The training step of each fusion alone, and of all, over smolvla's."""
    for names in [(name,) for name in FUSIONS] + [FUSIONS]:
        policy = pair.build("smolvla_world", fusion=FusionConfig(**{name: name in names for name in FUSIONS}))
        policy.latent_reader.companion = pair.policies["smolvla_world"].latent_reader.companion
        other = Trained(pair, policy, plain.batch, plain.draws, run.device)
        taken = in_turn({"plain": plain.step, "fused": other.step}, run.device, max(2, repeats // 2))
        ratio = [w / p for p, w in zip(taken["plain"], taken["fused"], strict=True)]
        run.figure(f"smolvla_world over smolvla: training step, fusion {'+'.join(names).upper()}", ratio, **say)
        del other, policy
        gc.collect()
