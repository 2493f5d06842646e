"""What the code computes, to the last bit: the record that holds a refactor to "nothing moved".

    python tests/equality/make.py

writes numbers.json (losses of ten optimiser steps and one chunk of actions for each of `variants`) and options.json
(the options of every command); test_nothing_moved.py computes both again. Run it where a change means to move them, and
say in the commit which moved and why.

Of ours only public names are used: options as they are typed, LeRobot's factory, what a policy has to have for
LeRobot, and the commands of pyproject.toml. So modules, classes and functions can move freely.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import types
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

if __name__ == "__main__":
    os.environ |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    os.environ.setdefault("MUJOCO_GL", "egl")
    # `tests` is no installed package; another distribution's may be.
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["tests"] = package

import draccus  # noqa: E402
import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from torch.utils.data import default_collate

import lerobot_policy_world_modality  # noqa: F401  registers the types
from tests.fixtures_datasets import make_dataset
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA, make_smolvlm

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
NUMBERS, OPTIONS = HERE / "numbers.json", HERE / "options.json"
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
SOURCE = "equality/source"
TEXTS = {0: "The gripper moves down because the puck is below it.", 1: "Then it pushes the puck.", 2: "It opens."}

# One frame of each episode; the second one's future is padded at its end.
TRAIN, LIVE = [3, 27, 33, 50], [[9, 40], [10, 41], [11, 42]]
N_STEPS = 10

COMMON = {"device": "cpu", "push_to_hub": False, "chunk_size": 4, "n_action_steps": 2, "n_future_steps": 2}
TRUNK = COMMON | {"d_model": 32, "n_layers": 1, "n_heads": 2, "n_obs_steps": 3, "dropout": 0.0, "optimizer_lr": 1e-3}
VLA = COMMON | {"n_history_steps": 3, "optimizer_lr": 1e-3}
# Conditioned Prophets, and words in the trunk, cost a sentence encoder each: only where they are what is recorded.
SILENT = {"use_language": False}
NO_FUSION = {f"fusion.{name}": False for name in ("f1", "f2", "f3a", "f3b")}
# A gate's value at the start, so that what it lets through counts. None: shut as it comes, and trained from there.
OPEN = 0.5


def variants() -> dict[str, tuple[str, float | None, dict[str, Any]]]:
    """Name -> (policy type, the gates' value at the start, options over those of `base_options`)."""
    made: dict[str, tuple[str, float | None, dict[str, Any]]] = {
        "world_A": ("world_A", None, {}),
        "world_A l2 frames": ("world_A", None, SILENT | {"action_loss": "l2", "per_cell": False}),
        "world_A blind": ("world_A", None, SILENT | {"use_vision": False}),
        "world_B": ("world_B", None, SILENT),
        "world_B_cont": ("world_B_cont", None, SILENT),
        "world_B_cont absolute": ("world_B_cont", None, SILENT | {"residual_targets": False}),
        "world_C": ("world_C", None, SILENT),
        "world_C no world input": ("world_C", None, SILENT | {"use_world_input": False}),
        "world_F": ("world_F", None, {"prophet.use_state": True, "prophet.use_language": True}),
    }
    sources = ("pred", "oracle", "zero", "random", "shuffle", "shuffle_within_task", "copy_current", "scheduled")
    reads = {f"source {source}": {"memory.source": source} for source in sources}
    reads["source scheduled"] |= {"memory.schedule_steps": 6}
    reads |= {
        "per_head": {"memory.gate": "per_head"},
        "per_token warm-up": {"memory.gate": "per_token", "memory.gate_warmup_steps": 4},
        "detach": {"memory.detach": True},
        "hypotheses": {"prophet.n_hypotheses": 3, "prophet.per_cell": True},
        "from a frozen Prophet": {"prophet.init_from": "prophet", "prophet.freeze": True},
        "gated hidden": {"memory.content": "hidden"},
        "appended latents": {"memory.entry": "appended"},
        "appended hidden": {"memory.entry": "appended", "memory.content": "hidden"},
        "appended states": {
            "memory.entry": "appended", "memory.content": "states", "prophet.init_from": "prophet",
        },
        "through memory only": {"use_vision": False, "see_through_memory": True},
    }  # fmt: skip
    made |= {f"world_F {name}": ("world_F", OPEN, SILENT | options) for name, options in reads.items()}

    made["smolvla_world none"] = ("smolvla_world", None, NO_FUSION | {"lambda_world": 0.0})
    made["smolvla_world"] = ("smolvla_world", None, {})
    for names in ("f1", "f2", "f3a", "f3b", "f1 f2 f3a f3b"):
        fusion = NO_FUSION | {f"fusion.{name}": True for name in names.split()}
        made[f"smolvla_world {names}"] = ("smolvla_world", OPEN, fusion)
    reads = {
        "source shuffle": {"memory.source": "shuffle"},
        "source scheduled": {"memory.source": "scheduled", "memory.schedule_steps": 6},
        "hypotheses": {"prophet.n_hypotheses": 3, "memory.gate": "per_head"},
        "prophet told": {"prophet.use_state": True, "prophet.use_language": True, "memory.content": "hidden"},
    }
    made |= {f"smolvla_world {name}": ("smolvla_world", OPEN, options) for name, options in reads.items()}

    text = {"lambda_text": 0.1, "text.jsonl": "labels.jsonl"}
    made["qwen_world_fplus E0"] = ("qwen_world_fplus", None, {"use_memory": False, "lambda_world": 0.0})
    made["qwen_world_fplus"] = ("qwen_world_fplus", None, {})
    reads = {
        "mse": {},
        "flow": {"head.kind": "flow", "head.n_heads": 4, "head.n_flow_steps": 3},
        "align": {"lambda_align": 0.1, "memory.source": "zero"},
        "joint text": text,
        "separate text": text | {"text.mode": "separate", "padding_side": "left"},
        "hypotheses": {"prophet.n_hypotheses": 3, "memory.gate": "per_token"},
        "source shuffle": {"memory.source": "shuffle"},
        "source scheduled": {"memory.source": "scheduled", "memory.schedule_steps": 6},
        "hidden": {"memory.content": "hidden", "prophet.use_state": True},
        "lora": {"train_backbone": "lora", "lora.rank": 2},
        "frozen, in parts": {"train_backbone": "frozen", "micro_batch_size": 2},
        "qwen2_5": {"vlm_backbone": "qwen2_5_vl"},
    }
    return made | {f"qwen_world_fplus {name}": ("qwen_world_fplus", OPEN, options) for name, options in reads.items()}


def base_options(policy_type: str) -> dict[str, Any]:
    """Options that make a type tiny."""
    if policy_type == "smolvla_world":
        return TINY_SMOLVLA | VLA | {"vlm_model_name": "smolvlm"}
    if policy_type == "qwen_world_fplus":
        sizes = {"head.d_model": 32, "prophet.d_model": 32, "max_pixels": 1024}
        return VLA | sizes | {"vlm_backbone": "qwen3_vl", "train_backbone": "full"}
    return TRUNK


def run_command(name: str, *args: str) -> str:
    """Run a command of ours in this process; returns what it printed."""
    module, function = SCRIPTS[name].split(":")
    out = io.StringIO()
    with mock.patch.object(sys, "argv", [name, *args]), contextlib.redirect_stdout(out):
        getattr(importlib.import_module(module), function)()
    return out.getvalue()


def make_inputs(folder: Path) -> None:
    """Write what the variants share: the dataset, its companion, a Prophet, backbones and labels."""
    # Images, not video: an encoder's threads are no part of the record.
    make_dataset(folder / "source", SOURCE, use_videos=False)
    run_command(
        "wm-precompute",
        f"--dataset.repo_id={SOURCE}", f"--dataset.root={folder / 'source'}", "--output.repo_id=equality/world",
        f"--output.root={folder / 'companion'}", "--encoder.family=efficientnet_lite0", "--encoder.height_px=32",
        "--encoder.width_px=32", "--encoder.pca_dim=8", "--tokens.n_codes=8", "--device=cpu", "--batch_size=8",
        "--num_workers=0",
    )  # fmt: skip
    run_command(
        "wm-prophet",
        f"--companions={folder / 'companion'}", f"--sources={folder / 'source'}", f"--output_dir={folder / 'prophet'}",
        "--prophet.d_model=32", "--prophet.n_layers=1", "--prophet.n_heads=2", "--prophet.use_state=true",
        "--prophet.tells_state=true", "--state_loss_weight=1", "--n_obs_steps=3", "--n_future_steps=2", "--steps=20",
        "--warmup_steps=1", "--lr=1e-2", "--batch_size=16", "--eval_split=0", "--device=cpu",
    )  # fmt: skip
    make_smolvlm(folder / "smolvlm")
    for family in ("qwen3_vl", "qwen2_5_vl"):
        make_qwen(folder / family, family)
    lines = [json.dumps({"episode_index": i, "coc_text": text}) + "\n" for i, text in TEXTS.items()]
    (folder / "labels.jsonl").write_text("".join(lines))


def read_config(folder: Path, policy_type: str, options: dict[str, Any]) -> PreTrainedConfig:
    """The config that options mean on a command line; those that name an input get its path."""
    chosen = base_options(policy_type) | options
    for name in ("vlm_model_name", "vlm_backbone", "text.jsonl", "prophet.init_from"):
        if name in chosen:
            chosen[name] = folder / chosen[name]
    args = [f"--{name}={list(value) if isinstance(value, tuple) else value}" for name, value in chosen.items()]
    args.append(f"--companion.root={folder / 'companion'}")
    return draccus.parse(PreTrainedConfig.get_choice_class(policy_type), args=args)


def record(folder: Path, policy_type: str, gate: float | None, options: dict[str, Any]) -> dict[str, Any]:
    """What a variant computes: ten steps as lerobot-train does them, a validation, and a rollout.

    Args:
        folder: Of `make_inputs`.
        policy_type: Type.
        gate: The gates' value at the start; None leaves them.
        options: Over `base_options`.

    Returns:
        Lists of numbers by name, one for each step, and the actions; and two hashes: `state_dict` (names, shapes and
        types) and `weights` (after the steps).
    """
    config = read_config(folder, policy_type, options)
    source = LeRobotDataset(SOURCE, root=folder / "source")
    delta = {"action": [i / source.fps for i in config.action_delta_indices]}
    dataset = LeRobotDataset(SOURCE, root=folder / "source", delta_timestamps=delta)
    torch.manual_seed(0)
    policy = make_policy(config, ds_meta=dataset.meta).train()
    preprocess, postprocess = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    # A gate is a module named `gate`; the layers `gate_proj` of a language model aren't meant.
    for name, parameter in policy.named_parameters():
        if gate is not None and "gate" in name.split("."):
            torch.nn.init.constant_(parameter, gate)
    state = {name: [list(value.shape), str(value.dtype)] for name, value in policy.state_dict().items()}

    preset = config.get_optimizer_preset()
    optimizer = preset.build(policy.get_optim_params())
    batch = preprocess(default_collate([dataset[i] for i in TRAIN]))
    made: dict[str, list[float]] = {}
    for step in range(N_STEPS):
        torch.manual_seed(step)
        loss, logged = policy.forward(dict(batch))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), preset.grad_clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        _append(made, {"loss": loss.detach(), "grad_norm": norm} | dict(logged.items()))

    policy.eval()
    torch.manual_seed(N_STEPS)
    with torch.no_grad():
        loss, logged = policy.forward(dict(batch))
    _append(made, {f"validation {name}": value for name, value in ({"loss": loss} | dict(logged.items())).items()})

    policy.reset()
    torch.manual_seed(N_STEPS + 1)
    frames = [preprocess(_observation(source, indices)) for indices in LIVE]
    acted = [postprocess(policy.select_action(dict(frame))) for frame in frames[:2]]
    chunk = policy.predict_action_chunk(dict(frames[2]))
    made |= {"actions": _numbers(torch.stack(acted).flatten()), "chunk": _numbers(chunk.flatten())}
    return made | {"state_dict": _sha256(json.dumps(sorted(state.items())).encode()), "weights": _hash_weights(policy)}


def _append(made: dict[str, list[float]], values: dict[str, Any]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float | torch.Tensor):
            made.setdefault(name, []).extend(_numbers([value]))


def _numbers(values: Iterable[float | torch.Tensor]) -> list[float]:
    """Each float32 as the shortest decimal that only it has (0.1, not 0.10000000149011612): short, and exact."""
    doubles = [float(value) for value in values]
    return [float(str(np.float32(x))) if float(np.float32(x)) == x else x for x in doubles]


def _observation(dataset: LeRobotDataset, indices: list[int]) -> dict[str, Any]:
    """What as many environments show at these frames: no index, no action."""
    items = [dataset[i] for i in indices]
    keys = [key for key in items[0] if key.startswith("observation.")]
    return {key: torch.stack([item[key] for item in items]) for key in keys} | {
        "task": [item["task"] for item in items]
    }


def _hash_weights(policy: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for _, value in sorted(policy.state_dict().items(), key=lambda item: item[0]):
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Sums are added up in one order, whatever the machine's cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def arithmetic() -> dict[str, str]:
    """What the last bits depend on beside our code: where it is what it was, so must they be."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, 33, 65, generator=generator) for _ in range(2))
    image, kernel = torch.randn(2, 3, 32, 32, generator=generator), torch.randn(8, 3, 3, 3, generator=generator)
    with one_thread():
        probes = [
            x @ y.mT, (x @ y.mT).softmax(-1), torch.nn.functional.gelu(x), x.tanh(), x.exp(), x.sum((0, 2)),
            torch.nn.functional.layer_norm(x, (65,)), torch.nn.functional.conv2d(image, kernel),
            torch.nn.functional.scaled_dot_product_attention(x[:, None], y[:, None], y[:, None]),
        ]  # fmt: skip
    probe = _sha256(b"".join(value.contiguous().numpy().tobytes() for value in probes))
    versions = {name: version(name) for name in ("torch", "lerobot", "transformers")}
    return versions | {"cpu_capability": torch.backends.cpu.get_cpu_capability(), "probe": probe}


def read_options(jobs: dict[str, tuple[str, list[str]]]) -> dict[str, list[str]]:
    """The options that commands list.

    Args:
        jobs: Name -> ("module:function", arguments); each runs in a fork of this process, which has imported what is
            slow.
    """
    found = {}
    for name, (target, args) in jobs.items():
        with tempfile.TemporaryFile("w+") as out:
            sys.stdout.flush()
            if (pid := os.fork()) == 0:
                _print_help(out, target, [name.split()[0], *args, "--help"])
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            out.seek(0)
            text = out.read()
        if status != 0:
            raise RuntimeError(f"{name} --help ended with {status}: {text[-2000:]}")
        # An option's line begins with two spaces, and an option's name; prose that names one is further in.
        options = set(re.findall(r"^  (?:-\w, )?(--[\w.]+)", text, re.MULTILINE))
        # Of lerobot-train's the policy's are ours.
        found[name] = sorted(o for o in options if not args or o.startswith("--policy."))
    return found


def _print_help(out, target: str, argv: list[str]) -> None:
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    module, function = target.split(":")
    code = 1
    try:
        sys.argv = argv
        getattr(importlib.import_module(module), function)()
    except SystemExit as end:
        code = 0 if end.code in (0, None) else 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def option_jobs() -> dict[str, tuple[str, list[str]]]:
    """Every command of ours, and lerobot-train with each type of ours."""
    train = "lerobot.scripts.lerobot_train:main"
    kinds = dict.fromkeys(kind for kind, _, _ in variants().values())
    jobs: dict[str, tuple[str, list[str]]] = {name: (target, []) for name, target in SCRIPTS.items()}
    return jobs | {f"lerobot-train {kind}": (train, [f"--policy.type={kind}"]) for kind in kinds}


def read_all_options() -> dict[str, list[str]]:
    """The options of every command, read in a process of its own, which forks before it has computed anything."""
    done = subprocess.run(
        [sys.executable, __file__, "--options"], cwd=ROOT, capture_output=True, text=True, timeout=500,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}", "COLUMNS": "120"},
    )  # fmt: skip
    if done.returncode != 0:
        raise RuntimeError(done.stderr[-3000:])
    return json.loads(done.stdout)


def header() -> dict[str, Any]:
    """Where and from what the record was made."""
    cpu = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.*)", cpu.read_text()) if cpu.exists() else None
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    packages = {name: version(name) for name in ("tokenizers", "faiss-cpu", "numpy", "datasets")}
    cpu_model = model[1] if model else platform.processor()
    return {"commit": commit, "python": platform.python_version(), "cpu": cpu_model} | packages


def hash_companion(folder: Path) -> str:
    """What the variants learn from: first to look at where all of them moved."""
    rows = LeRobotDataset("equality/world", root=folder / "companion").hf_dataset.with_format("numpy")
    names = sorted(name for name in rows.column_names if "world" in name)
    return _sha256(b"".join(np.stack(list(rows[name])).tobytes() for name in names))


def main() -> None:
    if "--options" in sys.argv:
        print(json.dumps(read_options(option_jobs())))
        return
    with tempfile.TemporaryDirectory() as name, one_thread():
        folder = Path(name)
        make_inputs(folder)
        companion = hash_companion(folder)
        numbers = {name: record(folder, *variant) for name, variant in variants().items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(made, sort_keys=True)}" for name, made in sorted(numbers.items())]
    top = json.dumps({"made_with": header(), "arithmetic": arithmetic(), "companion": companion}, indent=1)[:-2]
    NUMBERS.write_text(top + ',\n "variants": {\n' + ",\n".join(lines) + "\n }\n}\n")
    OPTIONS.write_text(json.dumps(read_all_options(), indent=1, sort_keys=True) + "\n")
    for path in (NUMBERS, OPTIONS):
        print(f"Wrote {path.relative_to(ROOT)}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
