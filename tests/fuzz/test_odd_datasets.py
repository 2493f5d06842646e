"""Odd datasets of every kind: followed as they are, or refused in one line before anything is done with them.

`ODD_DATASETS=200 python -m pytest tests/fuzz/test_odd_datasets.py` draws so many instead of a few.
"""

from __future__ import annotations

import io
import json
import os
import shutil
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets import LeRobotDataset, modify_tasks
from lerobot.policies.factory import get_policy_class
from PIL import Image

from lerobot_policy_world_modality.policies.shared.vectors import action_vectors
from lerobot_policy_world_modality.policies.world.configuration_world_modality import WorldAConfig
from tests.fuzz.odd_datasets import BATCH, CHUNK, OddDataset, as_shown, encode, prophesy, read_for_labels, train_and_act
from wm_tools.doctor.policy_round import make_tiny_encoder
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.latents.companion import open_companion
from world_modality_core.prophet.data import CompanionFrames

TYPES = ["world_A", "world_B", "world_B_cont", "world_C", "world_F", "smolvla_world", "qwen_world_fplus"]
N = int(os.environ.get("ODD_DATASETS", 3))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def made(encoder, tmp_path_factory):
    """(source, companion) of an odd dataset, written once."""
    known = {}

    def make(**odd):
        key = str(odd)
        if key not in known:
            folder = tmp_path_factory.mktemp("odd")
            OddDataset(**odd).write(folder / "source")
            known[key] = folder / "source", encode(folder / "source", folder / "w", encoder)
        return known[key]

    return make


@pytest.mark.parametrize("seed", range(N))
def test_drawn_datasets_pass_or_are_refused_by_name(seed, encoder, tmp_path):
    odd = OddDataset.draw(seed)
    print(odd)
    odd.write(tmp_path / "source", seed)
    companion = encode(tmp_path / "source", tmp_path / "w", encoder, strip_images=True)
    np.testing.assert_array_equal(open_companion(root=companion).bounds[:, 1], np.cumsum(odd.lengths))
    encode(tmp_path / "source", tmp_path / "w", encoder, strip_images=True)  # done, and held against the source
    with suppress(UserError):
        for line in prophesy(companion, tmp_path / "source", tmp_path / "p", bool(odd.state), use_language=True):
            assert all(np.isfinite(value) for value in line.values()), line
    read_for_labels(tmp_path / "source")
    n_trained = 0
    for policy_type in [TYPES[(2 * seed + i) % 5] for i in (0, 1)] + TYPES[5:] * (N > 3):
        with suppress(UserError):
            train_and_act(policy_type, tmp_path / "source", companion, tmp_path)
            n_trained += 1
    is_plain = odd.state in ((1,), (2,), (CHUNK,), (7,)) and all(task.strip() for task in odd.tasks)
    assert n_trained or not is_plain, "everything was refused"


# Vectors.


@pytest.mark.parametrize("policy_type", ["world_A", "world_F", "smolvla_world", "qwen_world_fplus"])
def test_one_number_is_a_vector(made, policy_type, tmp_path, monkeypatch):
    """State and action of length 1: what each policy's loss is made of has an axis for the entries."""
    source, companion = made(state=(1,), action=(1,), lengths=[6, 9])
    seen = []
    cls = get_policy_class(policy_type)
    forward = cls.forward
    monkeypatch.setattr(
        cls, "forward", lambda self, batch, *a, **k: seen.append(batch) or forward(self, batch, *a, **k)
    )
    train_and_act(policy_type, source, companion, tmp_path)
    assert seen[0]["observation.state"].numel() == BATCH and seen[0]["action"].shape == (BATCH, CHUNK)


def test_actions_never_broadcast_against_the_plan():
    config = WorldAConfig(chunk_size=CHUNK, device="cpu")
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (1,))}
    numbers = torch.arange(float(BATCH * CHUNK)).reshape(BATCH, CHUNK)
    assert torch.equal(action_vectors({"action": numbers}, config)[..., 0], numbers)
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (CHUNK,))}
    with pytest.raises(ValueError, match=r"action has shape \(4, 4\) .* expected .* \(b, 4, 4\)"):
        action_vectors({"action": numbers}, config)


def test_a_prophet_reads_states_of_two_axes_whole_and_policies_refuse_them(made, tmp_path):
    source, companion = made(state=(2, 3))
    frames = CompanionFrames([open_companion(root=companion)], [source])
    recorded = LeRobotDataset("odd/data", root=source)
    assert torch.equal(frames.states[7], recorded[7]["observation.state"].flatten())
    with pytest.raises(ConfigError, match=r"observation.state has shape \(2, 3\).*vectors"):
        train_and_act("world_A", source, companion, tmp_path)


@pytest.mark.parametrize("policy_type", ["world_A", "smolvla_world"])
def test_entries_that_never_moved_are_named_and_enter_as_in_training(made, policy_type, tmp_path, caplog):
    """18 of 34 joints of a real robot: a move of 0.01 would be one of a million standard deviations."""
    names = {"arm": ["shoulder", "elbow"], "hand": {"left": ["thumb"]}}
    source, companion = made(constant=[0, 2], names=names, lengths=[6, 9])
    frame = LeRobotDataset("odd/data", root=source)[0]
    frame["observation.state"][[0, 2]] += 0.01

    def act(policy, before, after):
        torch.manual_seed(0)
        policy.reset()
        return after(policy.select_action(before(as_shown(frame))))

    held = train_and_act(policy_type, source, companion, tmp_path / "held")
    assert "2 of 3 entries of observation.state never move in 'odd/data': 0 shoulder, 2 thumb. They" in caplog.text
    held[0].save_pretrained(tmp_path / "checkpoint")
    saved = get_policy_class(policy_type).from_pretrained(tmp_path / "checkpoint")
    assert saved.config.constant_state == [0, 2]
    moved = act(*held)
    assert torch.equal(moved, act(saved, *held[1:]))
    frame["observation.state"][[0, 2]] -= 0.01
    assert torch.equal(moved, act(*held))
    free = train_and_act(policy_type, source, companion, tmp_path / "free", clamp_constant_state=False)
    unmoved = act(*free)
    frame["observation.state"][[0, 2]] += 0.01
    assert not torch.allclose(unmoved, act(*free), atol=1e-3)  # what it is for


def test_what_no_policy_reads_is_named(made, tmp_path, caplog):
    source, companion = made(others=["observation.velocity"])
    train_and_act("world_A", source, companion, tmp_path)
    assert "world_A reads observation.state and images; the dataset's observation.velocity enter nothing" in caplog.text


# Images.


@pytest.mark.parametrize("mode, name", [("L", "8-bit gray"), ("I;16", "16-bit gray"), ("RGBA", "RGB with alpha")])
def test_images_that_a_rollout_would_show_otherwise_are_refused(encoder, tmp_path, mode, name):
    OddDataset().write(tmp_path / "source")
    file = io.BytesIO()
    Image.new(mode, (32, 32)).save(file, "PNG")
    images = [{"bytes": file.getvalue(), "path": None}]
    camera = "observation.images.top"
    edit_data(tmp_path / "source", camera, lambda rows: images * len(rows))
    with pytest.raises(UserError, match=f"an image of {camera} is {name}, not RGB.*convert the dataset"):
        encode(tmp_path / "source", tmp_path / "w", encoder)


def test_a_gray_camera_is_left_out_by_name(encoder, tmp_path, capsys):
    OddDataset().write(tmp_path / "source")
    info = tmp_path / "source/meta/info.json"
    features = json.loads(info.read_text())
    gray = features["features"]["observation.images.top"] | {"shape": [32, 32, 1]}
    features["features"]["observation.images.infrared"] = gray
    info.write_text(json.dumps(features))
    encode(tmp_path / "source", tmp_path / "w", encoder, dry_run=True)
    assert "observation.images.infrared: not of 3 channels" in capsys.readouterr().out


# Metadata.


def edit_episodes(root, **columns):
    path = next((root / "meta/episodes").rglob("*.parquet"))
    table = pq.read_table(path)
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)


def edit_data(root, name, change):
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    values = change(table[name].to_pylist())
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(values, table[name].type)), path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda r: edit_episodes(r, dataset_from_index=[0, 6, 6], dataset_to_index=[6, 6, 15]),
            "1 of 3 .* no frames.*episode 1",
        ),
        (lambda r: edit_episodes(r, dataset_to_index=[5, 11, 15]), "episode 0 .*length=6.* don't fit together"),
        (lambda r: edit_episodes(r, length=[6, 5, 5]), "episode 1 .*length=5.* don't fit together"),
        (lambda r: edit_data(r, "episode_index", lambda v: [0] * 7 + v[7:-1] + [0]), "`episode_index` .* 2 of 15"),
        (lambda r: edit_data(r, "task_index", lambda v: v[:-1] + [9]), "`task_index` is no task .*episode 2 .index 14"),
        (lambda r: edit_data(r, "timestamp", lambda v: v[:3] + [float("nan")] + v[4:]), "`timestamp` .*frame 3 of"),
    ],
)
def test_metadata_is_held_against_the_data(made, encoder, tmp_path, edit, message):
    source, _ = made(lengths=[6, 3, 6])
    root = shutil.copytree(source, tmp_path / "source")
    edit(root)
    with pytest.raises(ConfigError, match=message):
        encode(root, tmp_path / "w", encoder)
    assert not (tmp_path / "w.partial").exists()


def test_a_rate_that_is_written_as_a_float_is_followed(made):
    source, companion = made(fps=10.0)
    opened = open_companion(root=companion)
    assert opened.fps == 10 and isinstance(opened.fps, int)
    opened.check_source(LeRobotDataset("odd/data", root=source).meta)


def test_tasks_without_text_are_named_before_the_first_step(made, tmp_path):
    source, companion = made(tasks=["push", " "])
    for policy_type in ("world_A", "smolvla_world", "qwen_world_fplus"):
        with pytest.raises(ConfigError, match="1 of 2 episodes have an empty task, the first is episode 1"):
            train_and_act(policy_type, source, companion, tmp_path)
    train_and_act("world_A", source, companion, tmp_path, use_language=False)
    with pytest.raises(ConfigError, match="1 episodes have an empty task, the first is episode 1"):
        prophesy(companion, source, tmp_path / "p", False, use_language=True)


# Finiteness.


def test_values_that_are_not_finite_are_named(made, tmp_path):
    source, companion = made(lengths=[6, 9])
    root = shutil.copytree(source, tmp_path / "source")
    edit_data(root, "observation.state", lambda rows: rows[:8] + [[0.0, float("nan"), 1.0]] + rows[9:])
    with pytest.raises(ConfigError, match="observation.state is NaN or Inf in 1 frames.*frame 2 of episode 1 .index 8"):
        prophesy(companion, root, tmp_path / "p", True)
    # The statistics don't tell: they were written before.
    with pytest.raises(ValueError, match=r"loss of step 1 is nan: observation.state isn't finite at index \[8\]"):
        train_and_act("world_A", root, companion, tmp_path / "a", chunk_size=1, n_action_steps=1, first=7)


# What was derived.


def test_what_was_derived_is_held_against_all_that_it_copies(encoder, tmp_path, monkeypatch):
    OddDataset().write(tmp_path / "source")
    everything = {"strip_images": True, "merge": True}
    companion = encode(tmp_path / "source", tmp_path / "w", encoder, **everything)
    latents = np.array(open_companion(root=companion).table.latents)
    modify_tasks(LeRobotDataset("odd/data", root=tmp_path / "source"), new_task="The corrected instruction")
    with pytest.raises(ConfigError, match="w' exists, and its task_index, meta/episodes, meta/tasks.parquet are not"):
        encode(tmp_path / "source", tmp_path / "w", encoder, **everything)
    monkeypatch.setattr("world_modality_core.precompute.decoding.decode_image", None)  # nothing is encoded anew
    encode(tmp_path / "source", tmp_path / "w", encoder, overwrite=True, **everything)
    for name in ("w", "w_stripped", "w_merged"):
        assert list(LeRobotDataset("x", root=tmp_path / name).meta.tasks.index) == ["The corrected instruction"]
    np.testing.assert_array_equal(open_companion(root=companion).table.latents, latents)
    edit_data(tmp_path / "w_stripped", "action", lambda rows: [[0.0, 0.0], *rows[1:]])
    with pytest.raises(ConfigError, match="w_stripped exists, and its action are not"):
        encode(tmp_path / "source", tmp_path / "w", encoder, strip_images=True)


def test_a_merged_copy_can_be_a_source(encoder, tmp_path):
    OddDataset().write(tmp_path / "source")
    encode(tmp_path / "source", tmp_path / "w", encoder, merge=True)
    again = open_companion(root=encode(tmp_path / "w_merged", tmp_path / "again", encoder))
    np.testing.assert_array_equal(again.table.latents, open_companion(root=tmp_path / "w").table.latents)
    with pytest.raises(ConfigError, match="merge=true: .* is a merged copy itself"):
        encode(tmp_path / "w_merged", tmp_path / "b", encoder, merge=True)
