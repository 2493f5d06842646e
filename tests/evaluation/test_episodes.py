"""Episode records: what is written is what is read, once, whether or not the evaluation has ended."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence import episode_records
from world_modality_core.studies.evidence.checkpoint import (
    checkpoint_folder,
    checkpoint_hash,
    label_of,
    training_facts,
    training_seed,
)
from world_modality_core.studies.evidence.episode_records import (
    EPISODE_SCHEMA,
    TRAINING_COLUMNS,
    EpisodesError,
    EpisodeWriter,
    read_episodes,
    read_eval_infos,
    write_episodes,
    write_eval_info,
)

ROW = {
    "model": "F_k4", "train_seed": 1, "arm": "intact", "checkpoint": "ab", "policy_type": "world_F",
    "env": "metaworld_light", "task": "push-v3", "group": "push-v3", "tier": "medium", "seed": 5, "init_hash": "x",
    "success": True, "steps": 30, "sum_reward": 1.5, "max_reward": 1.0, "wall_s": 0.1, "gate": 0.25,
    "attention_entropy": 0.5, "attention_mass": [0.75, 0.25], "n_plans": 2, "n_action_steps": 4, "renderer": "egl",
    "image_height": 128, "image_width": 128, "episode_length": 250, "env_hash": "y", "video": None,
    **dict.fromkeys(TRAINING_COLUMNS), "episodes": "0-4,7", "train_steps": 1500,
}  # fmt: skip


def test_a_finished_evaluation_is_read_from_its_one_file_and_from_its_parts_once_it_went_on(tmp_path, monkeypatch):
    opened = []
    read = episode_records.read_parquet
    monkeypatch.setattr(episode_records, "read_parquet", lambda file: opened.append(file.name) or read(file))
    write_eval_info(tmp_path, {"model": "F_k4", "train_seed": 1, "arms": ["intact", "zero"], "command": ["wm-eval"]})
    writer = EpisodeWriter(tmp_path)
    writer.write([ROW, ROW | {"seed": 6}])
    writer.write([ROW | {"arm": "zero"}])
    parts = read_episodes(tmp_path)
    writer.finish()
    opened.clear()
    pd.testing.assert_frame_equal(read_episodes(tmp_path), parts)
    assert opened == ["episodes.parquet"]
    writer.write([ROW | {"arm": "zero", "seed": 6}])
    assert len(read_episodes(tmp_path)) == 4  # the one file lacks a part
    writer.finish()
    write_episodes(parts, tmp_path / "episodes.parquet")  # as earlier versions did, which did not say what it holds
    assert len(read_episodes(tmp_path)) == 4


def test_rows_survive_writing_and_reading_in_every_form(tmp_path):
    writer = EpisodeWriter(tmp_path / "run")
    write_eval_info(
        writer.folder, {"model": "F_k4", "train_seed": 1, "arms": ["intact", "zero"], "command": ["wm-eval"]}
    )
    writer.write([ROW | {"seed": 6}, ROW])
    writer.write([ROW | {"arm": "zero", "gate": None, "attention_entropy": None, "attention_mass": None}])
    (writer.folder / "episodes" / "intact-push-v3-7.parquet.partial").write_bytes(b"killed in mid-write")
    assert writer.done() == {("intact", "push-v3", 5), ("intact", "push-v3", 6), ("zero", "push-v3", 5)}

    unfinished = read_episodes(tmp_path)
    writer.finish()
    finished = read_episodes([writer.folder])
    write_episodes(finished, tmp_path / "results" / "episodes.parquet")
    record = read_episodes(tmp_path / "results")
    for frame in (unfinished, finished, record):
        assert list(frame.columns) == EPISODE_SCHEMA.names
        assert frame["seed"].tolist() == [5, 6, 5]  # sorted: intact, intact, zero
        assert frame["attention_mass"][0].tolist() == [0.75, 0.25]
        assert frame["attention_mass"][2] is None and frame["gate"].isna().tolist() == [False, False, True]
        assert frame["success"].dtype == bool and frame["video"].isna().all()
        assert frame["train_steps"].tolist() == [1500] * 3 and frame["samples"].isna().all()
    assert [info["model"] for info in read_eval_infos(tmp_path)] == ["F_k4"]


def test_records_from_before_training_was_noted_are_read_and_say_nothing_of_it(tmp_path):
    write_episodes(pd.DataFrame([ROW]), tmp_path / "new" / "episodes.parquet")
    table = pq.read_table(tmp_path / "new" / "episodes.parquet")
    old = table.drop_columns(TRAINING_COLUMNS)
    (tmp_path / "old").mkdir()
    pq.write_table(old, tmp_path / "old" / "episodes.parquet")
    frame = read_episodes(tmp_path / "old")
    assert list(frame.columns) == EPISODE_SCHEMA.names and frame[TRAINING_COLUMNS].isna().all(axis=None)


def test_a_success_that_is_no_truth_value_is_refused(tmp_path):
    write_episodes(pd.DataFrame([ROW]), tmp_path / "episodes.parquet")
    table = pq.read_table(tmp_path / "episodes.parquet")
    at = table.schema.get_field_index("success")
    scored = table.set_column(at, "success", pa.array([0.4])).replace_schema_metadata(table.schema.metadata)
    pq.write_table(scored, tmp_path / "episodes.parquet")
    with pytest.raises(EpisodesError, match="success is double, expected bool"):
        read_episodes(tmp_path)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"seed": None}, "seed is empty in 1 rows"),
        ({"steps": "many"}, "does not fit the schema"),
        ({"seed": 2**64}, "does not fit the schema"),
        ({"steps": -1}, "steps is -1; expected 0 or more"),
        ({"sum_reward": float("nan")}, "sum_reward is no finite number"),
        ({"model": "F\x1b[31m"}, "model has a text with control characters"),
        ({"checkpoint": "new\u200b"}, "checkpoint has a text with control characters"),
        ({"score": 1}, "unknown \\['score'\\]"),
        ({"arm": "zero"}, "one arm and one task"),
    ],
)
def test_rows_that_do_not_fit_are_refused(tmp_path, changed, told):
    with pytest.raises(EpisodesError, match=told):
        EpisodeWriter(tmp_path).write([ROW, ROW | {"seed": 6} | changed])
    assert not list(tmp_path.rglob("*.parquet*"))


def test_no_episode_is_written_or_read_twice(tmp_path):
    writer = EpisodeWriter(tmp_path / "a")
    write_eval_info(writer.folder, {})
    writer.write([ROW])
    with pytest.raises(EpisodesError, match="were run before"):
        writer.write([ROW])
    other = EpisodeWriter(tmp_path / "b")
    write_eval_info(other.folder, {})
    other.write([ROW | {"train_seed": 2}])
    assert len(read_episodes(tmp_path)) == 2
    assert len(read_episodes([tmp_path, tmp_path / "a"])) == 2  # the same file named twice
    EpisodeWriter(tmp_path / "b").write([ROW | {"task": "reach-v3"}])
    assert len(read_episodes(tmp_path)) == 3
    again = EpisodeWriter(tmp_path / "c")
    write_eval_info(again.folder, {})
    again.write([ROW])
    with pytest.raises(
        EpisodesError, match="2 rows .* train_seed=1, arm=intact, task=push-v3, seed=5 .*/a/.* and .*/c/"
    ):
        read_episodes(tmp_path)


def test_other_schemas_and_nothing_are_refused(tmp_path):
    with pytest.raises(EpisodesError, match="no episodes in"):
        read_episodes(tmp_path)
    with pytest.raises(ConfigError, match="does not exist"):
        read_episodes(tmp_path / "nowhere")
    pq.write_table(pa.table({"seed": [1]}), tmp_path / "episodes.parquet")
    with pytest.raises(EpisodesError, match="episode schema none"):
        read_episodes(tmp_path)
    (tmp_path / "eval.json").write_text(json.dumps({"schema": 2}))
    with pytest.raises(EpisodesError, match="schema 2, this version reads 1"):
        read_eval_infos(tmp_path)


def test_what_a_checkpoint_says_of_itself(tmp_path):
    folder = tmp_path / "F_k4" / "train" / "checkpoints" / "002000" / "pretrained_model"
    folder.mkdir(parents=True)
    with pytest.raises(ConfigError, match="pretrained_model"):
        checkpoint_folder(folder)
    save_file({"weight": torch.zeros(2)}, folder / "model.safetensors")
    (folder / "config.json").write_text("{}")
    assert checkpoint_folder(folder) == folder and label_of(folder) == "F_k4" and training_seed(folder) is None
    before = checkpoint_hash(folder)
    (folder / "train_config.json").write_text('{"seed": 7}')
    assert training_seed(folder) == 7 and checkpoint_hash(folder) == before
    (folder / "config.json").write_text('{"n_action_steps": 8}')
    assert checkpoint_hash(folder) != before
    assert label_of("lerobot/smolvla_libero") == "smolvla_libero"
    assert label_of(folder.with_name("pretrained_model_ema")) == "F_k4_ema"


@pytest.mark.parametrize(
    ("dataset", "said"),
    [
        ({}, "all"),
        ({"exclude_episodes": [3, 4]}, "all but 3-4"),
        ({"episodes": [0, 1, 4], "exclude_episodes": [4]}, "0-1"),
    ],
)
def test_episodes_that_were_excluded_were_not_trained_on(tmp_path, dataset, said):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "train_config.json").write_text(json.dumps({"dataset": {"repo_id": "me/push"} | dataset}))
    assert training_facts(tmp_path)["episodes"] == said
