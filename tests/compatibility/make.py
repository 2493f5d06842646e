"""Write what this version writes, tiny, into tests/compatibility/<version>: what later versions must go on reading.

    python tests/compatibility/make.py

Run once for each release and commit the folder; a folder that is there is never written again. Everything is made by
the real commands' code from a dataset of two short episodes. `expected.safetensors` and `expected.json` hold what this
version reads from it (`read_numbers`, which the test calls again).
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import types
from importlib.metadata import version
from pathlib import Path

if __name__ == "__main__":
    # `tests` is no installed package; another distribution's may be.
    package = types.ModuleType("tests")
    package.__path__ = [str(Path(__file__).parents[1])]
    sys.modules["tests"] = package

import numpy as np  # noqa: E402
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.policies import make_policy, make_pre_post_processors
from safetensors.torch import load_file, save_file
from torch.utils.data import default_collate

import lerobot_policy_world_modality  # noqa: F401  registers the types
from coc_tools.episodes import EpisodeReader
from coc_tools.language_rows import labels_from_jsonl
from coc_tools.store import LabelFile
from lerobot_policy_world_modality.hub.on_hub import forget_disk
from tests.coc.helpers import label_of
from tests.fixtures_datasets import make_dataset
from tests.plugin.helpers import make_config, open_gates
from tests.studies.report.synthetic import VERSIONS, episode
from world_modality_core.configs import ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.companion import open_companion
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig, TokensConfig
from world_modality_core.precompute.steps import precompute
from world_modality_core.prophet.train_prophet import train_prophet
from world_modality_core.prophet.training_options import ProphetTrainingConfig
from world_modality_core.studies.evidence.checkpoint import checkpoint_hash
from world_modality_core.studies.evidence.compare import compare
from world_modality_core.studies.evidence.episode_records import EpisodeWriter, read_episodes, write_eval_info

HERE = Path(__file__).parent
SOURCE = "compatibility/source"
TYPES = ("world_F", "world_A", "world_C")
CAMERA, SIZE, LENGTHS = "observation.images.top", 32, (20, 16)
TINY = {"d_model": 16, "n_layers": 1, "n_heads": 2}
WINDOW = [-1, 0, 2]


def make(root: Path) -> None:
    """Write the folder of a version."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        dataset = make_dataset(source, SOURCE, LENGTHS, (CAMERA,), size=SIZE)
        # The shared copy without images is all of the source that is kept.
        precompute(
            PrecomputeConfig(
                dataset=SourceConfig(SOURCE, str(source)),
                output=OutputConfig("compatibility/world", str(root / "companion")),
                encoder=EncoderSpec(family="efficientnet_lite0", height_px=SIZE, width_px=SIZE, pca_dim=4),
                tokens=TokensConfig(n_codes=4),
                strip_images=True,
                device="cpu",
                num_workers=0,
            )
        )
        keys = [CAMERA, "observation.state"]
        frames = {key: torch.stack([dataset[i][key] for i in range(3)])[:, None] for key in keys}
        save_file(frames, root / "frames.safetensors")  # (3, 1, ...): three steps of one environment
        write_labels(source, root / "labels.jsonl")
    (root / "companion_stripped").rename(root / "source")
    train_prophet(
        ProphetTrainingConfig(
            companions=str(root / "companion"), sources=str(root / "source"), output_dir=str(root / "prophet"),
            prophet=ProphetConfig(**TINY), n_obs_steps=3, n_future_steps=2, steps=3, batch_size=4,
            eval_split=0.5, device="cpu",
        )
    )  # fmt: skip
    shutil.rmtree(root / "prophet/state", ignore_errors=True)
    for name in TYPES:
        write_policy(root, name)
    write_evaluation(root / "evaluation", checkpoint_hash(root / "policies/world_F"))
    shutil.rmtree(root / "companion/cache", ignore_errors=True)
    for lock in root.rglob("*.lock"):
        lock.unlink()


def write_labels(source: Path, path: Path) -> None:
    reader = EpisodeReader(SOURCE, str(source))
    with LabelFile(path) as labels:
        for index in range(len(reader)):
            labels.append(label_of(reader, index))


def write_policy(root: Path, name: str) -> None:
    """A checkpoint as lerobot-train lays it out, gates open, and without paths of this disk."""
    config = make_config(name, root / "companion", **TINY, use_language=False)
    meta = LeRobotDatasetMetadata(SOURCE, root=root / "source")
    torch.manual_seed(1)
    policy = make_policy(config, ds_meta=meta)
    open_gates(policy, 0.5)
    train = TrainPipelineConfig(DatasetConfig(SOURCE, root=str(root / "source")), policy=config, steps=1, seed=7)
    forget_disk(train)
    folder = root / "policies" / name
    policy.save_pretrained(folder)
    train.save_pretrained(folder)
    for processor in make_pre_post_processors(config, dataset_stats=meta.stats):
        processor.save_pretrained(folder)


def write_evaluation(folder: Path, sha256: str) -> None:
    """As `wm-eval` writes it: intact succeeds in 9 of 10 scenes, with the gate closed in 4."""
    writer = EpisodeWriter(folder)
    for arm, n in (("intact", 9), ("gate_closed", 4)):
        rows = [episode("F", 7, arm, "push-v3", 100 + i, i < n, checkpoint=sha256, gate=0.4) for i in range(10)]
        writer.write([row | {"attention_mass": [0.5, 0.5], "attention_entropy": 0.9} for row in rows])
    writer.finish()
    info = {
        "model": "F", "train_seed": 7, "policy_type": "world_F", "checkpoint": "policies/world_F",
        "checkpoint_hash": sha256, "arms": ["intact", "gate_closed"], "n_episodes": 10, "seed": 100,
        "n_action_steps": 2,
        "env": {"type": "metaworld_light"}, "renderer": "egl: llvmpipe", "image": [128, 128], "versions": VERSIONS,
        "command": ["wm-eval", "--policy.path=policies/world_F"], "started_at": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    write_eval_info(folder, info)


def read_numbers(root: Path) -> tuple[dict[str, torch.Tensor], dict]:
    """What is read from a version's folder.

    Args:
        root: A copy of it: companions write their cache beside themselves.

    Returns:
        Tensors and JSON values, as `expected.safetensors` and `expected.json` hold them.
    """
    companion, tensors, values = open_companion("compatibility/world", root / "companion"), {}, {}
    index = torch.arange(sum(LENGTHS))
    latents, is_pad = companion.table.gather(index, WINDOW)
    tensors |= {"latents": latents, "is_pad": is_pad, "tokens": companion.table.gather_tokens(index, WINDOW)[0]}
    values["companion"] = {"spec_id": companion.spec.spec_id, "quality": companion.quality, "fps": companion.fps}
    meta = LeRobotDatasetMetadata(SOURCE, root=root / "source")
    companion.check_source(meta)
    for name in TYPES:
        folder = root / "policies" / name
        tensors |= {f"{name}.{key}": value for key, value in _acts(root, folder, meta).items()}
        values[name] = {"seed": TrainPipelineConfig.from_pretrained(folder).seed}
    tensors["prophet.imagined"] = _imagined(root, meta)
    lookup = labels_from_jsonl(root / "labels.jsonl", meta)
    values["labels"] = [lookup.texts[i] for i in lookup.ids(index).tolist()]
    report = compare(read_episodes(root / "evaluation"))
    counts = report.comparisons[0].parts[0].counts
    values["evaluation"] = [counts.wins, counts.losses, counts.n, round(report.comparisons[0].evidence.p, 6)]
    return tensors, json.loads(json.dumps(values))


def _acts(root: Path, folder: Path, meta: LeRobotDatasetMetadata) -> dict[str, torch.Tensor]:
    """Actions of a checkpoint: live on three frames, in raw units, and planned from recorded ones."""
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path, config.companion.root = folder, str(root / "companion")
    policy = make_policy(config, ds_meta=meta)
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(folder))
    frames, actions = load_file(root / "frames.safetensors"), []
    policy.reset()
    for step in range(3):
        batch = preprocess({key: value[step] for key, value in frames.items()} | {"task": ["push the puck"]})
        actions.append(postprocess(policy.select_action(batch)))
    batch = _batch(root, preprocess)
    with torch.no_grad():
        loss, _ = policy.eval().forward(batch)
    return {"live": torch.stack(actions), "recorded": policy.plan_recorded(batch), "loss": loss}


def _batch(root: Path, preprocess) -> dict:
    delta = {"action": [i / 10 for i in range(4)]}
    dataset = LeRobotDataset(SOURCE, root=root / "source", delta_timestamps=delta)
    return preprocess(default_collate([dataset[i] for i in (0, 7, 19, 25)]))


def _imagined(root: Path, meta: LeRobotDatasetMetadata) -> torch.Tensor:
    """Futures that the Prophet of `wm-prophet` foresees, once a policy has started from it."""
    prophet = ProphetConfig(init_from=str(root / "prophet"))
    config = make_config("world_F", root / "companion", use_language=False, prophet=prophet)
    policy = make_policy(config, ds_meta=meta).eval()
    preprocess, _ = make_pre_post_processors(config, dataset_stats=meta.stats)
    return policy.predict_latents(_batch(root, preprocess))


def main() -> None:
    root = HERE / version("lerobot_policy_world_modality")
    if root.exists():
        sys.exit(f"{root} exists: it is what that version wrote. Raise the version first")
    np.random.seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        make(made)
        tensors, values = read_numbers(Path(shutil.copytree(made, Path(scratch) / "read")))
        save_file({name: value.contiguous() for name, value in tensors.items()}, made / "expected.safetensors")
        (made / "expected.json").write_text(json.dumps(values, indent=1) + "\n")
        shutil.move(made, root)
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
    print(f"Wrote {root}: {size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
