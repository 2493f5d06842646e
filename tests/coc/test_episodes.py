"""Reading episodes: the right frames of the right camera and episode, signals, other language rows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets import LeRobotDataset

from coc_tools.dataset_writer import write_in_place
from coc_tools.episodes import EpisodeError, EpisodeReader, SignalDimension
from tests.coc.helpers import label_of
from tests.fixtures_datasets import CAMERAS, TASKS, make_dataset, solid_frame
from world_modality_core.io.errors import ConfigError, UserError

LENGTHS = (12, 17, 14, 20)
# Two episodes of a Unitree G1 (MIT), which lie beside the checkout where there are any.
G1 = Path(__file__).parents[3] / "shared/data/g1_tiny_v30"


def test_episodes_are_lerobots(reader, coc_source):
    plain = LeRobotDataset("tests/coc", root=coc_source)
    assert len(reader) == 4 and reader.cameras == list(CAMERAS)
    for index in (2, 0, 3):  # not in order
        episode, rows = reader[index], [i for i in range(len(plain)) if plain[i]["episode_index"] == index]
        assert (episode.n_frames, episode.start, episode.task) == (LENGTHS[index], rows[0], TASKS[index % 2])
        assert episode.length_s == LENGTHS[index] / 10
        for key, mine in (("action", episode.action), ("observation.state", episode.state)):
            np.testing.assert_array_equal(mine, np.stack([plain[i][key].numpy() for i in rows]))
        for key, dim, expected in (("action", -1, episode.action[:, 3]), ("observation.state", 1, episode.state[:, 1])):
            np.testing.assert_array_equal(episode.signal(reader.dimension(key, dim, "gripper.")), expected)
        np.testing.assert_allclose(episode.timestamps, np.arange(LENGTHS[index]) / 10, atol=1e-6)
        assert episode.language_rows == []


@pytest.mark.parametrize("use_videos", [True, False])
def test_frames_are_of_that_episode_camera_and_time(use_videos, reader, tmp_path):
    if not use_videos:
        make_dataset(tmp_path / "images", use_videos=False, draw=solid_frame, size=16)
        reader = EpisodeReader(root=str(tmp_path / "images"))
    for index in (3, 1):
        for camera, key in enumerate(CAMERAS):
            positions = [0, 4, 5, LENGTHS[index] - 1]
            frames = reader[index].frames(key, positions)
            assert len(frames) == 4
            for frame, t in zip(frames, positions, strict=True):
                wanted = solid_frame(index, t, camera, 1)[0, 0].astype(int)
                # Video codecs change colours a little; neighbours in time are 10 apart.
                assert np.abs(np.asarray(frame)[8, 8].astype(int) - wanted).max() <= (4 if use_videos else 0)
    with pytest.raises(EpisodeError, match="camera 'side'"):
        reader[0].frames("side", [0])


def test_row_groups_need_not_be_episodes(reader, coc_source, tmp_path):
    root = shutil.copytree(coc_source, tmp_path / "regrouped")
    path = next((root / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(path), path, row_group_size=10)
    regrouped = EpisodeReader(root=str(root))
    assert pq.ParquetFile(path).num_row_groups == 7
    for index in (1, 3, 0):
        assert regrouped[index].table.equals(reader[index].table)


def test_coc_rows_are_no_context_but_other_rows_are(coc_source, tmp_path):
    root = shutil.copytree(coc_source, tmp_path / "rows")
    reader = EpisodeReader(root=str(root))
    write_in_place(root, {0: label_of(reader, 0)})
    again = EpisodeReader(root=str(root))
    assert again[0].language_rows == [] and again[0].action.shape == (12, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"), [({}, "both empty"), ({"root": "nowhere/at/all"}, "there is no LeRobotDataset"), ]
)  # fmt: skip
def test_what_cannot_be_opened(kwargs, message):
    with pytest.raises(UserError, match=message):
        EpisodeReader(**kwargs)


NAMES = [["shoulder", "elbow", "thumb", "thumb"]]


@pytest.mark.parametrize(
    "names", [NAMES, NAMES[0], {"motors": NAMES[0]}, {"arm": NAMES[0][:2], "hand": NAMES[0][2:]}, None, ["x", "y"]]
)
def test_dimensions_are_found_by_number_and_by_name(reader, names):
    reader.meta.features["action"]["names"] = names
    has_names = names not in (None, ["x", "y"])
    assert str(reader.dimension("action", -1, "gripper.")) == ("action[3] thumb" if has_names else "action[3]")
    if has_names:
        assert reader.dimension("action", "elbow", "gripper.") == SignalDimension("action", 1, "elbow")
    for key, dim, message in (
        ("action", 4, "gripper.dim=4: action has 4 dimensions"),
        ("action", "thumb", "gripper.dim='thumb': expected a number or a name that action has once"),
        ("grip", 0, "gripper.key='grip': no numeric feature"),
        (CAMERAS[0], 0, "no numeric feature"),
    ):
        with pytest.raises(ConfigError, match=message):
            reader.dimension(key, dim, "gripper.")


@pytest.mark.skipif(not G1.is_dir(), reason="no recording of a real robot on this machine")
def test_the_fingers_of_a_real_robot_have_names():
    reader = EpisodeReader(root=str(G1))
    assert str(reader.dimension("action", -1, "gripper.")) == "action[25] kRightHandThumbRotation"
    index = reader.dimension("action", "kRightHandIndex", "gripper.")
    np.testing.assert_array_equal(reader[0].signal(index), reader[0].action[:, 23])


def test_a_dataset_without_actions_has_no_gripper_of_its_own(reader):
    del reader.meta.features["action"]
    assert reader.dimension("action", -1, "gripper.") is None


def test_an_episode_without_frames_is_named(coc_source, tmp_path):
    """As recorders leave it behind (lerobot issue 4143)."""
    root = shutil.copytree(coc_source, tmp_path / "empty")
    path = next((root / "meta/episodes").rglob("*.parquet"))
    table = pq.read_table(path)
    for name, values in {"dataset_from_index": [0, 12, 12, 43], "dataset_to_index": [12, 12, 43, 63]}.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, path)
    with pytest.raises(ConfigError, match="1 of 4 episodes have no frames, .* episode 1 .*=12, .*=12.* remove"):
        EpisodeReader(root=str(root))
