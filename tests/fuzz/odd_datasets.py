"""Valid but odd LeRobotDatasets, drawn from a seed, and what the product does with one from end to end."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.factory import resolve_delta_timestamps
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.utils.constants import ACTION, OBS_STATE
from torch.utils.data import default_collate

from coc_tools.config import KeyframesConfig
from coc_tools.episodes import EpisodeReader
from coc_tools.keyframes import keyframes
from wm_tools.doctor.policy_round import make_tiny_config
from world_modality_core.configs import ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig, TokensConfig
from world_modality_core.precompute.steps import precompute
from world_modality_core.prophet.train_prophet import train_prophet
from world_modality_core.prophet.training_options import ProphetTrainingConfig

CHUNK, BATCH = 4, 4  # equal, and equal to some of the widths below: what broadcasts by chance shows


@dataclass
class OddDataset:
    """What is odd about a dataset; a plain one by default.

    Attributes:
        lengths: Frames of each episode.
        state: Shape of `observation.state`; None for none.
        action: Shape of `action`.
        dtype: Of both.
        camera: Key of the image.
        fps: As meta/info.json says it.
        tasks: Of the episodes, in turn.
        names: Of the state's entries, as the feature has them.
        others: Further features of one number each.
        constant: Entries of the state that never move.
        file_mb: Most megabytes of a data file.
    """

    lengths: list[int] = field(default_factory=lambda: [6, 9])
    state: tuple[int, ...] | None = (3,)
    action: tuple[int, ...] = (2,)
    dtype: str = "float32"
    camera: str = "observation.images.top"
    fps: int | float = 10
    tasks: list[str] = field(default_factory=lambda: ["push", "open the drawer"])
    names: object = None
    others: list[str] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    file_mb: float = 100

    @classmethod
    def draw(cls, seed: int) -> OddDataset:
        """One that a recorder may well have written."""
        rng = np.random.default_rng(seed)

        def one_of(*choices):
            return choices[rng.integers(len(choices))]

        width = one_of(1, 2, CHUNK, 7)
        return cls(
            lengths=rng.integers(1, 12, rng.integers(2, 6)).tolist() + [8],
            state=one_of(None, (1,), (width,), (width,), (width,), (2, 3)),
            action=one_of((1,), (2,), (CHUNK,), (7,)),
            dtype=one_of("float32", "float32", "float64"),
            camera=one_of("observation.image", "observation.images.top", "observation.images.a b"),
            fps=one_of(10, 30, 10.0),
            tasks=one_of(["push"], ["push", "Pousse la pièce «rouge»\nvite"], ["push", "  "], ["x" * 900]),
            names=one_of(None, {"motors": [f"m{i}" for i in range(width)]}, [f"j{i}" for i in range(width)]),
            others=one_of([], ["observation.velocity"], ["observation.environment_state", "next.reward"]),
            constant=one_of([], [], [0]),
            file_mb=one_of(100, 0.001),
        )

    def write(self, root: Path, seed: int = 0) -> None:
        """Record it."""
        vectors = {key: shape for key, shape in ((OBS_STATE, self.state), (ACTION, self.action)) if shape}
        names = self.names if self.state and len(self.state) == 1 else None
        features = {
            key: {"dtype": self.dtype, "shape": shape, "names": names if key == OBS_STATE else None}
            for key, shape in vectors.items()
        }
        features |= {key: {"dtype": "float32", "shape": (1,), "names": None} for key in self.others}
        features[self.camera] = {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]}
        dataset = LeRobotDataset.create("odd/data", int(self.fps), features, root=root, use_videos=False)
        dataset.meta.update_chunk_settings(data_files_size_in_mb=self.file_mb)
        rng = np.random.default_rng(seed)
        for episode, length in enumerate(self.lengths):
            for t in range(length):
                frame = {key: rng.normal(size=shape).astype(self.dtype) for key, shape in vectors.items()}
                if self.state:
                    frame[OBS_STATE].reshape(-1)[self.constant] = 0.1
                frame |= {key: rng.normal(size=1).astype(np.float32) for key in self.others}
                frame[self.camera] = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
                frame[self.camera][t : t + 8] = 255
                dataset.add_frame(frame | {"task": self.tasks[episode % len(self.tasks)]})
            dataset.save_episode()
        dataset.finalize()
        info = root / "meta/info.json"
        info.write_text(json.dumps(json.loads(info.read_text()) | {"fps": self.fps}))


def encode(source: Path, output: Path, encoder: EncoderSpec, **options) -> Path:
    """`wm-precompute`."""
    tokens = TokensConfig(n_codes=0 if options.get("reuse_from") else 4)
    options = {"tokens": tokens, "num_workers": 0, "device": "cpu"} | options
    return precompute(
        PrecomputeConfig(SourceConfig(root=str(source)), OutputConfig(root=str(output)), encoder, **options)
    )


def prophesy(companion: Path, source: Path, output: Path, has_state: bool, **options) -> list[dict]:
    """`wm-prophet`, for two steps; its curve."""
    prophet = ProphetConfig(d_model=16, n_layers=1, n_heads=2, use_state=has_state, **options)
    train_prophet(
        ProphetTrainingConfig(
            companions=str(companion), sources=str(source), output_dir=str(output), prophet=prophet, steps=2,
            batch_size=BATCH, n_obs_steps=2, n_future_steps=2, state_loss_weight=float(has_state), device="cpu",
            eval_split=0.5,
        )
    )  # fmt: skip
    return [json.loads(line) for line in (output / "curve.jsonl").read_text().splitlines()]


def train_and_act(policy_type: str, source: Path, companion: Path, folder: Path, first: int = 0, **options) -> tuple:
    """Two steps of `lerobot-train` and three of a rollout, which must stay finite and give actions of their shape.

    Returns:
        The policy and its processors.
    """
    torch.manual_seed(0)
    meta = LeRobotDatasetMetadata("odd/data", root=source)
    config = make_tiny_config(policy_type, folder, "cpu")
    config.companion.root = str(companion)
    for name, value in options.items():
        setattr(config, name, value)
    dataset = LeRobotDataset("odd/data", root=source, delta_timestamps=resolve_delta_timestamps(config, meta))
    policy = make_policy(config, ds_meta=meta)
    before, after = make_pre_post_processors(config, dataset_stats=meta.stats)
    optimizer = torch.optim.SGD(policy.get_optim_params(), lr=1e-4)
    policy.train()
    for start in (first, len(dataset) - BATCH):
        loss, _ = policy.forward(before(default_collate([dataset[start + i] for i in range(BATCH)])))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        policy.update()
        assert torch.isfinite(loss), loss
    plain = LeRobotDataset("odd/data", root=source)
    policy.reset()
    for i in range(3):
        item = plain[i]
        action = after(policy.select_action(before(as_shown(item))))
        assert action.shape == (1, meta.features[ACTION]["shape"][0]) and torch.isfinite(action).all()

    return policy, before, after


def as_shown(item: dict) -> dict:
    """What a robot would show at a recorded frame: features of one number too have an axis of their own."""
    seen = {key: torch.as_tensor(value) for key, value in item.items() if key.startswith("observation.")}
    return {key: value.reshape(1, *(value.shape or (1,))) for key, value in seen.items()} | {"task": [item["task"]]}


def read_for_labels(source: Path) -> None:
    """What `coc-label` reads of a dataset."""
    reader = EpisodeReader(root=str(source))
    gripper = reader.dimension(ACTION, -1, "gripper.")
    for episode in range(len(reader)):
        chosen = keyframes(reader[episode], KeyframesConfig("events", 4), gripper)
        assert len(reader[episode].frames(reader.cameras[0], chosen)) == len(chosen)
