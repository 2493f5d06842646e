"""No path outside the output folder: from a repository id, from a name in a file, through a link."""

import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from coc_tools.dataset_writer import INFO, WriteError, recover
from lerobot_policy_world_modality.record.cli import record
from lerobot_policy_world_modality.record.record_options import RecordConfig, RecordEnv, RecordOutput
from tests.studies.report.synthetic import episode, make_imagined, write_eval
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import write_text
from world_modality_core.latents import companion
from world_modality_core.latents.companion import default_root, open_companion
from world_modality_core.precompute.assemble import write_derived
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.steps import precompute
from world_modality_core.prophet.saved_prophet import ProphetCheckpoint
from world_modality_core.studies.evidence.comparable import ModelArm
from world_modality_core.studies.evidence.episode_records import EpisodeWriter, read_episodes
from world_modality_core.studies.matrix.study import load_study
from world_modality_core.studies.report.clips import choose_clips
from world_modality_core.studies.report.film import read_imagined, write_imagined

OUTSIDE = ["../../outside", "/outside", "user/../../outside", "..", "user/.."]


@pytest.fixture
def work(tmp_path):
    """A folder to work in, beside files that nobody may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/file.txt").write_text("mine")
    (tmp_path / "work").mkdir()
    yield tmp_path / "work"
    assert (tmp_path / "outside/file.txt").read_text() == "mine"
    assert os.listdir(tmp_path / "outside") == ["file.txt"]
    assert sorted(os.listdir(tmp_path)) == ["outside", "work"]


@pytest.mark.parametrize("repo_id", OUTSIDE)
def test_a_repository_id_names_a_folder_in_lerobot_s_home(tiny_companion, work, repo_id, monkeypatch):
    monkeypatch.setattr(companion, "HF_LEROBOT_HOME", work / "home")
    assert default_root("user/name") == work / "home/user/name"
    with pytest.raises(ConfigError, match="leads out of"):
        default_root(repo_id)
    with pytest.raises(UserError):
        open_companion(repo_id)
    env = RecordEnv(observation_height=32, observation_width=32)
    with pytest.raises(UserError):
        record(RecordConfig(tasks="reach-v3", output=RecordOutput(repo_id), env=env))
    with pytest.raises(UserError):
        precompute(PrecomputeConfig(
            dataset=SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root)),
            output=OutputConfig(repo_id), device="cpu",
        ))  # fmt: skip
    assert not os.listdir(work)


def test_names_in_a_source_s_metadata_stay_in_the_copy(tiny_companion, work):
    root = shutil.copytree(tiny_companion.source_root, work / "source")
    info = json.loads((root / "meta/info.json").read_text())
    good = info["video_path"]
    source = SourceDataset("tests/source", str(root))
    write_derived(source.meta, work / "good", source.meta.features)
    assert list((work / "good").rglob("*.mp4"))
    for pattern in (f"../../outside/{good}", f"/{good}"):
        source.meta.info.video_path = pattern
        with pytest.raises((ConfigError, OSError), match="leads out of|No such file"):
            write_derived(source.meta, work / f"bad{len(pattern)}", source.meta.features)


def test_a_source_s_links_are_not_carried_away(tiny_companion, work):
    root = shutil.copytree(tiny_companion.source_root, work / "source")
    source = SourceDataset("tests/source", str(root))
    (root / "meta/secret.json").symlink_to(work.parent / "outside/file.txt")
    with pytest.raises(ConfigError, match="secret.json is a link to .*outside of its folder"):
        write_derived(source.meta, work / "copy", ())
    # The Hub's cache is made of links, which stay below its own folder.
    snapshot = work / "cache/snapshots/abc"
    shutil.copytree(tiny_companion.source_root, snapshot)
    (work / "cache/blobs").mkdir()
    os.replace(snapshot / "meta/stats.json", work / "cache/blobs/1")
    (snapshot / "meta/stats.json").symlink_to("../../../blobs/1")
    write_derived(SourceDataset("tests/source", str(snapshot)).meta, work / "good", ())
    assert (work / "good/meta/stats.json").is_file()


def test_parts_of_an_evaluation_stay_in_its_folder(work):
    writer = EpisodeWriter(work / "eval")
    for i, (arm, task) in enumerate((("intact", "../../../outside/x"), ("../../outside/y", "push"), ("/abs", "/abs"))):
        part = writer.write([episode("F", 0, arm, task, i, True)])
        assert part.parent == work / "eval/episodes" and part.resolve().parent == part.parent.resolve()
    assert len(read_episodes(writer.finish())) == 3


@pytest.mark.parametrize(
    "name", ["../../outside/file.txt", "/etc/hostname", "link.mp4", "videos/../../../outside/file.txt"]
)
def test_a_page_shows_no_file_from_outside(work, name):
    for model in "AF":
        folder = write_eval(work / model / "eval", model, 0, {"intact": 0.5}, ["push"], 1)
        (folder / "link.mp4").symlink_to(work.parent / "outside/file.txt")
        (folder / "own.mp4").write_bytes(b"film")
    rows = [
        episode(model, 0, "intact", "push", 1, success, video=video)
        for video in (name, "own.mp4")
        for model, success in (("A", True), ("F", False))
    ]
    import pandas as pd

    folders = {(model, 0, "intact"): work / model / "eval" for model in "AF"}
    sides = [(ModelArm("A", "intact"), ModelArm("F", "intact"))]
    assert choose_clips(pd.DataFrame(rows[2:]), sides, folders, 4, 10**6)  # what is its own it shows
    assert not choose_clips(pd.DataFrame(rows[:2]), sides, folders, 4, 10**6)


def test_a_filmstrip_names_pictures_of_its_own_folder_only(work):
    path = write_imagined(make_imagined(), work)
    assert read_imagined(path).moments[0].now == work / "0001.jpg"
    (work / "link.jpg").symlink_to(work.parent / "outside/file.txt")
    record = json.loads(path.read_text())
    for name in ("../outside/file.txt", str(work.parent / "outside/file.txt"), "link.jpg", "", "a\0b"):
        record["moments"][0]["now"] = name
        path.write_text(json.dumps(record))
        with pytest.raises(ConfigError, match="not in its folder"):
            read_imagined(path)


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "/abs", "a\nb", ".hidden", ""])
@pytest.mark.parametrize("key", ["models", "prophets", "evals"])
def test_names_of_a_study_are_names_of_folders(work, key, name):
    study = {"root": str(work), "seeds": [1], "models": {"A": {}}}
    (work / "s.yaml").write_text(
        yaml.safe_dump(study | {key: {"F2.5": {}}} | ({"prophets": {}} if key != "prophets" else {}))
    )
    load_study(work / "s.yaml")
    (work / "s.yaml").write_text(yaml.safe_dump(study | {key: {name: {}}}))
    with pytest.raises(ConfigError, match="a name is made of"):
        load_study(work / "s.yaml")
    (work / "s.yaml").unlink()


def test_a_yaml_bomb_is_refused(work):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    (work / "s.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="with all aliases written out"):
        load_study(work / "s.yaml")


def test_a_processor_s_state_file_is_in_its_checkpoint(work):
    """`state_file` of a policy's preprocessor."""
    from tests.fuzz.readers import Target, _prophets  # the valid files of the fuzz

    class Opened:
        from world_modality_core.encoders.spec import EncoderSpec

        spec = EncoderSpec(family="f", n_tokens=1, dim=2)

    target: Target = _prophets(work, Opened)[1]
    target.read(target.folder)
    path = target.folder / "policy_preprocessor.json"
    steps = json.loads(path.read_text())
    steps["steps"][0]["state_file"] = "../../outside/file.txt"
    path.write_text(json.dumps(steps))
    with pytest.raises(ConfigError, match="leads out of"):
        ProphetCheckpoint.read(target.folder, "x").weights()


@pytest.mark.parametrize("kind", ["plan.json", "journal.json"])
def test_a_journal_that_came_with_a_dataset_deletes_and_moves_nothing_else(work, kind):
    outside = work.parent / "outside"
    root = work / "data"
    for plan in (
        {"files": [INFO], "backup": str(outside)},
        {"files": ["../../../../outside/file.txt"], "backup": str(work / "data.coc_backup-1")},
        {"files": [str(outside / "file.txt")], "backup": str(work / "data.coc_backup-1")},
        {"files": [INFO], "backup": str(work / "data.coc_backup-1/../../outside")},
    ):
        shutil.rmtree(root, ignore_errors=True)
        (root / ".coc_write/new/meta").mkdir(parents=True)
        (root / ".coc_write/new/meta/info.json").write_text("new")
        (root / ".coc_write" / kind).write_text(json.dumps(plan))
        with pytest.raises(WriteError, match="was not written by coc-label"):
            recover(root)
    own = work / "data.coc_backup-1"
    own.mkdir()
    (root / "meta").mkdir()
    (root / ".coc_write" / kind).write_text(json.dumps({"files": [INFO], "backup": str(own)}))
    assert recover(root) and own.exists() == (kind == "journal.json")


def test_a_link_in_the_output_folder_is_replaced_not_followed(work):
    link = work / "eval.json"
    link.symlink_to(work.parent / "outside/file.txt")
    write_text(link, "new")
    assert not link.is_symlink() and link.read_text() == "new"


def test_an_output_folder_that_is_a_link_to_something_else(tiny_companion, work):
    (work / "world").symlink_to(work.parent / "outside")
    with pytest.raises(UserError, match="exists and is not a companion"):
        precompute(PrecomputeConfig(
            dataset=SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root)),
            output=OutputConfig("tests/x", str(work / "world")), device="cpu",
        ))  # fmt: skip
    assert Path(work / "world").is_symlink()
