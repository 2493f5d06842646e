"""The oracle of a memory of states: how far the robot really moved, as the policy's Prophet measures it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.utils.constants import OBS_STATE
from safetensors.torch import load_file, save_file

from lerobot_policy_world_modality.intervention.examined_policy import ExaminedPolicy
from lerobot_policy_world_modality.intervention.frames import Frames
from lerobot_policy_world_modality.intervention.memories import plans
from lerobot_policy_world_modality.intervention.true_states import displacements, state_scale
from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint
from tests.intervention.helpers import HELD_OUT, make_checkpoint, run
from tests.plugin.test_prophet_start import STATES, train
from world_modality_core.configs import ProphetConfig
from world_modality_core.memory.sources import MemorySource
from world_modality_core.precompute.precompute_options import SourceConfig

AHEAD = (2, 4)  # frames, of the two future steps


@pytest.fixture(scope="module")
def prophet(tiny_companion, tmp_path_factory):
    """A Prophet that tells states, with a scale of its own: not that of the dataset's statistics."""
    options = ProphetConfig(d_model=32, n_layers=1, n_heads=2, use_state=True, tells_state=True)
    out = tmp_path_factory.mktemp("prophets") / "telling"
    train(tiny_companion, out, prophet=options, state_loss_weight=1.0)
    tensors = load_file(out / "model.safetensors")
    save_file(tensors | {"state.std": 3 * tensors["state.std"]}, out / "model.safetensors")
    return out


@pytest.fixture(scope="module")
def checkpoint(tiny_companion, prophet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states") / "checkpoint"
    start = ProphetConfig(init_from=str(prophet), freeze=True)
    return make_checkpoint(folder, tiny_companion, prophet=start, memory=STATES)


def open_examined(tiny_companion, checkpoint):
    opened = Checkpoint.open(str(checkpoint))
    dataset = SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root))
    meta = LeRobotDatasetMetadata(dataset.repo_id, root=dataset.root)
    config = PreTrainedConfig.from_pretrained(opened.folder)
    return ExaminedPolicy(config, opened, meta), Frames(config, dataset, meta, HELD_OUT, 0, 16, 0, seed=1)


@pytest.fixture(scope="module")
def truth(tiny_companion, prophet):
    """(f, 2, s) how far the state of each frame of the dataset moves, by a plain loop."""
    dataset = LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root)
    scale = load_file(prophet / "model.safetensors")["state.std"]
    states = [row[OBS_STATE] for row in dataset.hf_dataset]
    ends = {}
    for row in dataset.hf_dataset:
        ends[int(row["episode_index"])] = int(row["index"])
    moved = []
    for row in dataset.hf_dataset:
        i, end = int(row["index"]), ends[int(row["episode_index"])]
        moved.append(torch.stack([(states[min(i + n, end)] - states[i]) / scale for n in AHEAD]))
    return torch.stack(moved)


def test_the_robot_moved_as_recorded(tiny_companion, checkpoint, truth):
    examined, frames = open_examined(tiny_companion, checkpoint)
    scale = state_scale(examined)
    for part, moved in zip(frames.parts, displacements(examined, frames, scale), strict=True):
        torch.testing.assert_close(moved, truth[frames.index[part]])
    assert truth.abs().amax() > 0.1


def test_oracle_is_pred_when_the_prophet_is_right(tiny_companion, checkpoint, truth):
    examined, frames = open_examined(tiny_companion, checkpoint)

    def chunks(source):
        return torch.cat([plan for *_, plan in plans(examined, frames, source, 0, 4)])

    before = (chunks(MemorySource.pred) - chunks(MemorySource.oracle)).abs()
    assert before.amax() > 1e-3  # the control: this Prophet doesn't
    said = iter([truth[frames.index[part]] for part in frames.parts])
    handle = examined.prophet.register_forward_hook(lambda module, args, out: replace(out, displacement=next(said)))
    truthful = chunks(MemorySource.pred)
    handle.remove()
    torch.testing.assert_close(truthful, chunks(MemorySource.oracle), rtol=0, atol=1e-6)


def test_the_record_has_the_oracle(checkpoint, tmp_path):
    record = run(checkpoint, tmp_path / "record", sources="oracle,random", rollout_rounds=1)
    assert set(record["sources"]) == {"pred", "oracle"} and set(record["skipped"]) == {"random"}
    assert record["sources"]["oracle"]["frames"] == 17 + 14 + 20 - 3 * AHEAD[-1]  # a whole future was recorded
    assert np.isfinite(record["sources"]["oracle"]["ratio"])


@pytest.mark.parametrize("what", ["gone", "another"])
def test_without_the_prophets_measure_there_is_no_oracle(checkpoint, prophet, what, tmp_path):
    start, copy = tmp_path / "prophet", tmp_path / "policy"
    shutil.copytree(checkpoint, copy)
    if what == "another":
        shutil.copytree(prophet, start)
        tensors = load_file(start / "model.safetensors")
        tensors["prophet.displacement.weight"] += 1
        save_file(tensors, start / "model.safetensors")
    config = json.loads((copy / "config.json").read_text())
    config["prophet"]["initialised_from"] = str(start)
    (copy / "config.json").write_text(json.dumps(config))
    record = run(copy, tmp_path / "record", sources="oracle", rollout_rounds=1)
    assert "unit of its Prophet's states is unknown" in record["skipped"]["oracle"]
