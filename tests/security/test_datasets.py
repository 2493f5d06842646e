"""What a dataset's metadata names lies in its folder: nothing else is read, by its name or through a link."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets import LeRobotDatasetMetadata
from PIL import Image

from coc_tools.episodes import EpisodeReader
from lerobot_policy_world_modality.intervention import cli as wm_intervene
from tests.faults.commands import run
from tests.fixtures_datasets import make_dataset
from tests.intervention.helpers import make_checkpoint
from tests.security.test_checkpoints import edit
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.dataset_files import named_files
from world_modality_core.io.errors import ConfigError, DamagedFileError, UserError
from world_modality_core.latents.companion import open_companion
from world_modality_core.precompute import cli as wm_precompute
from world_modality_core.precompute import decoding
from world_modality_core.precompute.decoding import video_frames
from world_modality_core.precompute.encode import readable
from world_modality_core.precompute.source import SourceDataset

VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
USUAL = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
PATTERNS = {
    "above": f"../other/{USUAL}",
    "absolute": "{other}/" + USUAL,
    "inside_out": f"videos/../../other/{USUAL}",
    "huge": "{video_key:>999999999}.mp4",
    "attribute": "{video_key.__class__}.mp4",
    "index": "{video_key[0]}.mp4",
    "nested": "{chunk_index:{file_index}}.mp4",
    "unknown": "{episode_index}.mp4",
    "broken": "{video_key",
    "number": 3,
    "nothing": None,
}


@pytest.fixture
def source(tiny_companion, tmp_path):
    """A dataset, beside another one whose videos are nobody's business."""
    shutil.copytree(tiny_companion.source_root / "videos", tmp_path / "other/videos")
    return shutil.copytree(tiny_companion.source_root, tmp_path / "source")


def lead_out(source: Path, how: str) -> None:
    """Make the dataset's videos those of the other one."""
    other = source.parent / "other"
    if how == "link":
        (source / VIDEO).unlink()
        (source / VIDEO).symlink_to(other / VIDEO)
    elif how == "linked_folder":
        shutil.rmtree((source / VIDEO).parent)
        (source / VIDEO).parent.symlink_to((other / VIDEO).parent)
    else:
        pattern = PATTERNS[how]
        pattern = pattern.replace("{other}", str(other)) if isinstance(pattern, str) else pattern
        edit(source / "meta/info.json", lambda info: info.update(video_path=pattern))


@pytest.mark.parametrize("how", [*PATTERNS, "link", "linked_folder"])
def test_videos_from_elsewhere_are_not_decoded(source, how):
    SourceDataset("tests/source", str(source))
    lead_out(source, how)
    said = "leads out of|expected a pattern like|is a link to"
    with pytest.raises(ConfigError, match=said):
        named_files(LeRobotDatasetMetadata("tests/source", root=source))
    with pytest.raises(ConfigError, match=said):
        SourceDataset("tests/source", str(source))
    with pytest.raises(UserError, match=said):
        EpisodeReader("tests/source", str(source))


def test_frames_from_elsewhere_are_not_read(source, tmp_path):
    data = source / "data/chunk-000/file-000.parquet"
    shutil.move(data, tmp_path / "other/frames.parquet")
    data.symlink_to(tmp_path / "other/frames.parquet")
    with pytest.raises(ConfigError, match="is a link to"):
        SourceDataset("tests/source", str(source))
    data.unlink()
    edit(source / "meta/info.json", lambda info: info.update(data_path="../other/frames.parquet"))
    with pytest.raises(UserError, match="leads out of"):
        EpisodeReader("tests/source", str(source))


def test_latents_from_elsewhere_are_not_read(tiny_companion, tmp_path):
    root = shutil.copytree(tiny_companion.companion_root, tmp_path / "world", ignore=shutil.ignore_patterns("cache"))
    open_companion(root=root)
    data = root / "data/chunk-000/file-000.parquet"
    shutil.move(data, tmp_path / "latents.parquet")
    data.symlink_to(tmp_path / "latents.parquet")
    with pytest.raises(ConfigError, match="is a link to"):
        _ = open_companion(root=root).table


@pytest.mark.parametrize("use_videos", [True, False])
def test_pictures_larger_than_declared_are_refused_before_they_are_decoded(tmp_path, use_videos, monkeypatch):
    """A PNG of 172 kB can take 8 GB once it is decoded."""
    camera = "observation.images.top"
    source = tmp_path / "source"
    make_dataset(source, lengths=(3,), cameras=[camera], use_videos=use_videos)

    def declare(info: dict) -> None:
        info["features"][camera]["shape"] = [32, 48, 3]

    edit(source / "meta/info.json", declare)
    said = r"64 x 64 px \(height x width\), but meta/info.json declares 32 x 48"
    reader, opened = EpisodeReader("tests/source", str(source)), SourceDataset("tests/source", str(source))
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
        with pytest.raises(UserError, match=said):
            list(readable(opened.chunks([0], EncoderSpec(cameras=[camera]), 8, 0)))
        with pytest.raises(UserError, match=said):
            reader[0].frames(camera, [0])


def test_frames_larger_than_the_videos_own_header_says_are_not_decoded(source, monkeypatch):
    monkeypatch.setattr(decoding, "_check_size", lambda *given: None)
    video = next((source / "videos").rglob("*.mp4"))
    assert len(list(video_frames(video, (64, 64), np.arange(3) / 10))) == 3
    # Decoders round sizes up: they are let take 128 px more.
    monkeypatch.setattr(decoding, "DECODER_MARGIN_PX", 8)
    with pytest.raises(DamagedFileError, match="can't be read as video"):
        list(video_frames(video, (32, 32), np.arange(3) / 10))


def test_videos_on_another_disk_are_read(source, tmp_path):
    """The folder `videos` as a whole may be a link, as people have it who are short of room."""
    shutil.move(source / "videos", tmp_path / "disk")
    (source / "videos").symlink_to(tmp_path / "disk")
    assert VIDEO in named_files(SourceDataset("tests/source", str(source)).meta)


@pytest.mark.parametrize("how", ["above", "link"])
def test_the_commands_refuse(source, tiny_companion, tmp_path, how):
    checkpoint = make_checkpoint(tmp_path / "pretrained_model", tiny_companion, "world_A")
    lead_out(source, how)
    done = run(
        wm_precompute.main, "--dataset.repo_id=tests/source", f"--dataset.root={source}", "--device=cpu",
        f"--output.root={tmp_path / 'world'}", "--output.repo_id=tests/world", log=tmp_path / "log",
    )  # fmt: skip
    assert done.status == 1 and ("leads out of" in done.told or "is a link to" in done.told), done.err[-500:]
    done = run(
        wm_intervene.main, f"--policy.path={checkpoint}", "--dataset.repo_id=tests/source", f"--dataset.root={source}",
        f"--output_dir={tmp_path / 'out'}", "--n_frames=8", "--companion.repo_id=tests/source_world",
        f"--companion.root={tiny_companion.companion_root}", log=tmp_path / "log",
    )  # fmt: skip
    assert done.status == 1 and ("leads out of" in done.told or "is a link to" in done.told), done.err[-500:]
    assert not (tmp_path / "out").exists() and json.loads((source / "meta/info.json").read_text())
