"""What an evaluation is: its `eval.json`, and when two commands mean the same one."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import draccus
import torch
from lerobot.configs import FeatureType
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.envs.configs import EnvConfig

from lerobot_policy_world_modality.envs.mujoco_gl import choose_mujoco_gl
from lerobot_policy_world_modality.evaluation.arms import BANK_ARMS
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.evaluation.pinned_policy import noise_shape
from lerobot_policy_world_modality.evaluation.tasks import LIBERO, METAWORLD
from lerobot_policy_world_modality.live_monitor.evaluated_monitor import monitor_hash
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json
from world_modality_core.io.option_differences import option_differences
from world_modality_core.latents.companion import default_root
from world_modality_core.latents.fingerprint import SourceFingerprint
from world_modality_core.studies.evidence.checkpoint import TRAIN_CONFIG, checkpoint_hash, training_facts
from world_modality_core.studies.evidence.episode_records import INFO_FILE, read_eval_info, write_eval_info

PACKAGES = ("lerobot", "torch", "numpy", "metaworld", "mujoco", "lerobot_policy_world_modality")
LIBERO_PACKAGES = ("hf-libero", "robosuite")

# What may differ between two commands that go on with one evaluation: they add arms and scenes, or say where and when.
_MAY_DIFFER = ("arms", "n_episodes", "videos", "checkpoint", "commit", "command", "started_at", "machine",
               "bank_size", "depends_on_batch", "training")  # fmt: skip


def describe(cfg: WorldEvalConfig, folder: Path) -> dict[str, Any]:
    """What `eval.json` says of an evaluation (docs/evaluation.md).

    Args:
        cfg: The options, resolved.
        folder: The checkpoint's folder.
    """
    policy = draccus.encode(cfg.policy)
    policy.pop("pretrained_path", None)  # where it lies is no matter: its hash is here
    packages = (*PACKAGES, *LIBERO_PACKAGES) if cfg.env.type in LIBERO else PACKAGES
    watched = {"monitor": monitor_hash(cfg.monitor)} if cfg.monitor else {}
    images = [feature.shape for feature in cfg.env.features.values() if feature.type is FeatureType.VISUAL]
    return {
        "model": cfg.model,
        "train_seed": cfg.train_seed,
        "policy_type": cfg.policy.type,
        "checkpoint": str(cfg.policy.pretrained_path),
        "checkpoint_hash": checkpoint_hash(folder),
        "training": training_facts(folder) | {"dataset_hash": _dataset_hash(folder)},
        "arms": cfg.arm_names,
        "n_episodes": cfg.eval.n_episodes,
        "batch_size": cfg.eval.batch_size,
        "videos": cfg.videos,
        "seed": cfg.seed,
        "stale_plans": cfg.stale_plans,
        "bank_scenes": cfg.bank_scenes,
        "draw_seed": cfg.draw_seed,
        # Scenes of each task in the memory bank: settled by the first command that has an arm that reads it.
        "bank_size": min(cfg.bank_scenes, cfg.eval.n_episodes) if cfg.bank_arms else 0,
        # Shape of the noise that each scene draws for its plans; None where wm-eval gives none.
        "noise": noise_shape(cfg.policy),
        # Whether what a scene sees depends on the scenes that run beside it; found out while running, where the policy
        # draws from torch's global generator.
        "depends_on_batch": cfg.exchanged_in_batch is not None,
        "rename_map": cfg.rename_map,
        "env": env_fields(cfg.env),
        "env_hash": env_hash(cfg.env),
        "policy": policy,
        "n_action_steps": getattr(cfg.policy, "n_action_steps", 1),
        "renderer": renderer(cfg.env),
        "image": list(images[0][:2]) if images else [0, 0],
        "versions": {name: _version(name) for name in packages} | {"python": platform.python_version()},
        "commit": _commit(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": _machine(),
        "threads": torch.get_num_threads(),
        **watched,
    }


def _dataset_hash(folder: Path) -> str | None:
    """Of what the training dataset holds; None where it isn't on this machine."""
    path = folder / TRAIN_CONFIG
    dataset = (read_json(path, dict).get("dataset") or {}) if path.exists() else {}
    if not dataset.get("repo_id"):
        return None
    root = Path(dataset["root"]) if dataset.get("root") else default_root(dataset["repo_id"])
    if not (root / "meta/info.json").is_file():
        return None
    content = SourceFingerprint.of(LeRobotDatasetMetadata(dataset["repo_id"], root)).to_dict()
    del content["repo_id"], content["revision"]  # a copy by another name is the same data
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def begin(output_dir: Path, info: dict[str, Any]) -> dict[str, Any]:
    """Write `eval.json`, or go on with the one that exists.

    Returns:
        What `eval.json` says now.

    Raises:
        ConfigError: if the folder holds another evaluation, naming what differs, or something else.
    """
    path = output_dir / INFO_FILE
    if not path.exists():
        if (output_dir / "episodes").exists():
            raise ConfigError(f"output_dir={output_dir} has episodes but no {INFO_FILE}; choose another --output_dir")
        write_eval_info(output_dir, info)
        return info
    found = read_eval_info(path)
    found.pop("schema")
    exchanging = [arm for arm in BANK_ARMS if arm in found["arms"]]
    if exchanging and "stale" in found["arms"] and "bank_size" not in found:
        raise ConfigError(
            f"output_dir={output_dir} was written by an earlier version, in which the arm stale overwrote the memories "
            f"that {exchanging[0]} read; choose another --output_dir"
        )
    if not exchanging:
        found["bank_size"] = info["bank_size"]
    # Evaluations of before these were recorded: what they did, as far as it is known.
    found.setdefault("bank_size", min(found["bank_scenes"], found["n_episodes"]))
    found.setdefault("depends_on_batch", True)
    found.setdefault("training", info["training"])
    may_differ = _MAY_DIFFER if found["depends_on_batch"] else (*_MAY_DIFFER, "batch_size")
    differing = option_differences(
        {key: value for key, value in found.items() if key not in may_differ},
        {key: value for key, value in info.items() if key not in may_differ},
    )
    if differing:
        raise ConfigError(
            f"output_dir={output_dir} holds another evaluation ({'; '.join(differing)}); repeat its own command to go "
            "on with it, or choose another --output_dir"
        )
    arms = [*found["arms"], *(arm for arm in info["arms"] if arm not in found["arms"])]
    n_episodes = max(found["n_episodes"], info["n_episodes"])
    grown = {"arms": arms, "n_episodes": n_episodes, "batch_size": info["batch_size"]}
    if any(found[name] != value for name, value in grown.items()):
        found |= grown | {"command": info["command"]}
        write_eval_info(output_dir, found)
    return found


def env_fields(env: EnvConfig) -> dict[str, Any]:
    """All fields of an environment's config, and its type; without options younger than the first records, at default.

    So evaluations from before such an option can be gone on with, and compared with later ones.
    """
    defaults = {each.name: each.default for each in dataclasses.fields(env)}
    younger = {name for name in getattr(env, "younger_than_records", ()) if getattr(env, name) == defaults[name]}
    return {"type": env.type} | {name: value for name, value in draccus.encode(env).items() if name not in younger}


def env_hash(env: EnvConfig) -> str:
    """Hash of an environment's config without what only says which tasks are run, and how many at once."""
    fields = {k: v for k, v in env_fields(env).items() if k not in ("task", "task_ids", "max_parallel_tasks")}
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:16]


def renderer(env: EnvConfig) -> str:
    """What draws the frames: MuJoCo's platform and OpenGL's own name; "" where MuJoCo isn't what simulates."""
    if env.type not in (*METAWORLD, *LIBERO):
        return ""
    backend = choose_mujoco_gl()
    if backend not in ("egl", "osmesa"):
        return backend or "default"
    return f"{backend}: {_opengl_name(backend)}".removesuffix(": ")


@functools.cache
def _opengl_name(backend: str) -> str:
    """OpenGL's name of what draws; "" if no context can be opened, which the environment will then explain."""
    try:
        context = importlib.import_module(f"mujoco.{backend}").GLContext(16, 16)
        context.make_current()
        from OpenGL import GL  # bound to the platform by now

        name = GL.glGetString(GL.GL_RENDERER).decode()
        context.free()
    except Exception:  # whatever PyOpenGL, MuJoCo or the driver raise
        return ""
    return name


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Of the working tree that this package is in ("-dirty" where it differs); None where it is installed."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ["git", "describe", "--always", "--abbrev=40", "--dirty"]
    return subprocess.run(git, capture_output=True, text=True, cwd=root).stdout.strip() or None


def _machine() -> str:
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores{gpu}"
