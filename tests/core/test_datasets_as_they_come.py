"""Datasets that LeRobot's tools edited, that can't be read in places, that use other names; what messages say."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.datasets import LeRobotDataset, delete_episodes, merge_datasets

from tests.fuzz.odd_datasets import OddDataset, encode, prophesy, train_and_act
from wm_tools.doctor.policy_round import make_tiny_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError, DamagedFileError, UserError
from world_modality_core.io.files import read_json
from world_modality_core.latents.companion import CompanionError, open_companion
from world_modality_core.latents.latent_quality import suggested_stride

REAL = Path(__file__).parents[3] / "shared/data"
real_robot = pytest.mark.skipif(not REAL.is_dir(), reason="no recording of a real robot on this machine")
LENGTHS = [6, 9, 7]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return make_tiny_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="module")
def made(encoder, tmp_path_factory):
    """(source, companion)."""
    folder = tmp_path_factory.mktemp("made")
    OddDataset(lengths=LENGTHS).write(folder / "source")
    return folder / "source", encode(folder / "source", folder / "w", encoder)


def test_a_companion_follows_its_source_through_lerobot_s_tools(made, tmp_path, monkeypatch):
    source, companion = made
    dataset, latents = LeRobotDataset("odd/data", root=source), np.array(open_companion(root=companion).table.latents)
    delete_episodes(dataset, [1], output_dir=tmp_path / "fewer", repo_id="odd/fewer")
    fewer = LeRobotDataset("odd/fewer", root=tmp_path / "fewer")
    merge_datasets([fewer, dataset], output_repo_id="odd/more", output_dir=tmp_path / "more")
    monkeypatch.setattr("world_modality_core.precompute.decoding.decode_image", None)  # nothing can be encoded
    new = encode(tmp_path / "more", tmp_path / "w", EncoderSpec(), reuse_from=str(companion))
    parts = [latents[:6], latents[15:], latents]
    np.testing.assert_array_equal(open_companion(root=new).table.latents, np.concatenate(parts))


def spoil(root: Path, episode: int) -> None:
    """Cut the pictures of an episode short."""
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    column, rows = "observation.images.top", table.to_pylist()
    for row in rows:
        if row["episode_index"] == episode:
            row[column]["bytes"] = row[column]["bytes"][:60]
    pq.write_table(table.from_pylist(rows, table.schema), path, row_group_size=100)


def test_an_episode_that_cannot_be_read_is_named_and_can_be_left_out(made, encoder, tmp_path, capsys):
    source = shutil.copytree(made[0], tmp_path / "source")
    spoil(source, 1)
    with pytest.raises(UserError, match=r"parquet can't be read.*leave episode 1 out: --exclude_episodes=1 "):
        encode(source, tmp_path / "w", encoder)
    skipped = encode(source, tmp_path / "w", encoder, on_bad_episode="skip")
    out = capsys.readouterr().out
    assert "Skipped episode 1: " in out and "Without latents: episodes [1]" in out
    companion = open_companion(root=skipped)
    table, whole = companion.table, open_companion(root=made[1])
    assert companion.info.excluded == [1] and set(table.episode_index[table.bad_rows()]) == {1}
    good = table.episode_index != 1
    np.testing.assert_array_equal(table.latents[good], whole.table.latents[good])
    np.testing.assert_allclose(companion.mean, table.latents[good].astype(float).mean(0), atol=1e-4)
    excluded = encode(source, tmp_path / "e", encoder, exclude_episodes="1")
    np.testing.assert_array_equal(open_companion(root=excluded).table.latents, table.latents)

    assert all(np.isfinite(v) for line in prophesy(skipped, source, tmp_path / "p", False) for v in line.values())
    source = made[0]  # pictures too
    train_and_act("world_B", source, skipped, tmp_path)  # frames 0 to 3 and the last four
    with pytest.raises(ConfigError, match="episode 1 has no latents in companion .*without episodes .1."):
        train_and_act("world_B", source, skipped, tmp_path, first=5)


def test_names_that_policies_do_not_read_are_said_and_renaming_orphans_nothing(encoder, tmp_path, capsys):
    OddDataset(camera="image").write(tmp_path / "source")
    encode(tmp_path / "source", tmp_path / "w", encoder, dry_run=True)
    assert "rename them before training: image -> observation.images.image" in capsys.readouterr().out
    companion = encode(tmp_path / "source", tmp_path / "w", encoder)
    OddDataset(camera="observation.images.image").write(tmp_path / "renamed")
    policy, *_ = train_and_act("world_A", tmp_path / "renamed", companion, tmp_path)
    assert policy.config.encoder.cameras == ["observation.images.image"]
    OddDataset(camera="observation.images.image").write(tmp_path / "other", seed=1)
    with pytest.raises(CompanionError, match="the values of .'action', 'observation.state'. differ"):
        train_and_act("world_A", tmp_path / "other", companion, tmp_path)


def test_strides_in_seconds_are_the_dataset_s(made, tmp_path):
    policy, *_ = train_and_act("world_B_cont", *made, tmp_path, history_step_s=0.3, future_step_s=0.16)
    config = policy.config
    assert (config.history_stride, config.future_stride, config.history_step_s) == (3, 2, None)
    assert policy.latent_reader.frames.stride == 3
    with pytest.raises(ConfigError, match="future_step_s=0.5: .* neither future_stride"):
        type(config)(future_step_s=0.5, future_stride=2, device="cpu")


@pytest.mark.parametrize(
    ("cosine", "stride"),
    [
        ({"1": 0.996, "2": 0.97, "4": 0.9, "8": None}, 4),
        ({"1": 0.99, "2": 0.98}, 2),
        ({"1": 0.2}, 1),
        ({"1": None}, None),
    ],
)
def test_the_stride_at_which_there_is_something_to_predict(cosine, stride):
    assert suggested_stride(cosine) == stride


# Messages.


def test_an_edited_companion_is_told_from_a_plain_dataset(made, tmp_path):
    delete_episodes(LeRobotDataset("w", root=made[1]), [0], output_dir=tmp_path / "edited", repo_id="w")
    with pytest.raises(CompanionError, match="has world.latents, but no meta/world_modality.json: a tool that edits"):
        open_companion(root=tmp_path / "edited")


def test_a_pointer_of_git_lfs_says_what_to_do(tmp_path):
    (tmp_path / "info.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1234\n")
    with pytest.raises(DamagedFileError, match="info.json is not the file itself but .* Git LFS.*git lfs pull"):
        read_json(tmp_path / "info.json")


def test_files_that_a_local_folder_lacks_are_named(made, encoder, tmp_path):
    root = shutil.copytree(made[0], tmp_path / "source")
    next((root / "data").rglob("*.parquet")).unlink()
    with pytest.raises(ConfigError, match="lacks 1 of its files, the first is data/chunk-000/file-000.parquet: copy"):
        encode(root, tmp_path / "w", encoder)


# A real robot: nested names, AV1, several episodes in one file.


@real_robot
def test_a_recording_of_before_lerobot_3_gets_the_command_for_its_folder(encoder, tmp_path):
    root = shutil.copytree(REAL / "g1_tiny_v21", tmp_path / "g1")
    with pytest.raises(ConfigError, match=r"before 3.0. Convert it: .* --repo-id=g1 --root=.*g1 --push-to-hub=false"):
        encode(root, tmp_path / "w", encoder)


@real_robot
def test_a_real_robot_trains_and_acts(encoder, tmp_path):
    root = REAL / "g1_tiny_v30"
    companion = encode(root, tmp_path / "w", encoder)
    assert len(open_companion(root=companion).table.latents) == 144
    train_and_act("world_F", root, companion, tmp_path, history_step_s=0.1)
