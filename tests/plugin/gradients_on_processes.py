"""Started by torchrun on several processes: gradients of every policy type, each process with its share of a batch.

Each process wraps the policy as the trainer does and compares the averaged gradients with those of the whole batch in
one process. Prints one JSON line per type: how far they are, and how far half a batch is (the control).
"""

import json
import sys
import types
from pathlib import Path

# `tests` is no installed package; another distribution's may be.
package = types.ModuleType("tests")
package.__path__ = [str(Path(__file__).parents[1])]
sys.modules["tests"] = package

import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from tests.conftest import TinyCompanion  # noqa: E402
from tests.plugin import helpers, qwen_helpers, smolvla_helpers  # noqa: E402
from wm_tools.doctor.qwen_backbone import make_qwen  # noqa: E402
from wm_tools.doctor.smolvlm_backbone import make_smolvlm  # noqa: E402

# Middles and ends of episodes of 12, 17, 14 and 20 frames, so that the halves have different numbers of padded steps.
FRAMES = [3, 8, 20, 35, 11, 28, 42, 62]
# Without padding: SmolVLA's own loss is a mean over the unpadded steps of a process's share, not of its samples.
FRAMES_WITHIN = [3, 5, 20, 35, 7, 16, 31, 50]


def builders(companion: TinyCompanion, folder: Path):
    """Name and a function that builds (policy, dataset, processors), for each type; gates open and latents noisy."""
    for name in helpers.TYPES:
        yield name, lambda name=name: helpers.build(companion, name)
    everywhere = smolvla_helpers.fusion("f1", "f2", "f3a", "f3b")
    smolvlm, qwen = folder / "smolvlm", folder / "qwen"
    yield "smolvla_world", lambda: smolvla_helpers.build(companion, smolvlm, fusion=everywhere)
    yield "qwen_world_fplus", lambda: qwen_helpers.build(companion, qwen)


def gradients(policy, model, batch, frames: slice) -> dict[str, torch.Tensor]:
    """Gradients of one forward and backward of `model`, which is `policy` or what wraps it, on some of the batch."""
    b = len(batch["index"])
    part = {k: v[frames] if isinstance(v, (torch.Tensor, list)) and len(v) == b else v for k, v in batch.items()}
    arguments = {}
    if policy.name == "smolvla_world":  # its draws are per process; here they belong to the frames
        draw = torch.Generator().manual_seed(3)
        noise = torch.randn(b, policy.config.chunk_size, policy.config.max_action_dim, generator=draw)
        arguments = {"noise": noise[frames], "time": (0.1 + 0.8 * torch.rand(b, generator=draw))[frames]}
    loss, _ = model(part, **arguments)
    loss.backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def distance(found: dict, expected: dict) -> dict[str, float]:
    """Largest difference of each parameter's gradient, relative to its largest expected gradient."""
    return {
        key: ((found[key] - value).abs().max() / value.abs().max().clamp(min=1e-6)).item()
        for key, value in expected.items()
    }


def main() -> None:
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    source_root, companion_root, folder = map(Path, sys.argv[1:])
    if rank == 0:
        make_smolvlm(folder / "smolvlm", save_weights=True)
        make_qwen(folder / "qwen")
    dist.barrier()
    for name, build in builders(TinyCompanion("tests/source", source_root, companion_root), folder):
        (alone, dataset, (preprocessor, _)), (shared, _, _) = build(), build()
        shared.load_state_dict(alone.state_dict())
        helpers.open_gates(alone)
        helpers.open_gates(shared)
        batch = helpers.batch_of(dataset, preprocessor, FRAMES_WITHIN if name == "smolvla_world" else FRAMES)
        share = len(FRAMES) // world_size
        expected = gradients(alone, alone, batch, slice(None))
        wrapped = DistributedDataParallel(shared, find_unused_parameters=True)
        found = gradients(shared, wrapped, batch, slice(rank * share, (rank + 1) * share))
        assert found.keys() >= expected.keys(), expected.keys() - found.keys()
        alone.zero_grad()
        half = gradients(alone, alone, batch, slice(0, share))
        if rank == 0:
            far, control = distance(found, expected), distance(half, expected)
            parameter = max(far, key=far.get)
            line = {"type": name, "parameters": len(far), "parameter": parameter, "far": far[parameter]}
            print(json.dumps(line | {"half": max(control.values())}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
