"""What `wm-precompute` refuses, before any work."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.core.precompute_helpers import COLOUR, LENGTHS, config
from tests.fixtures_datasets import make_dataset, solid_frame
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import IncompleteCompanionError, open_companion
from world_modality_core.precompute import steps
from world_modality_core.precompute.precompute_options import TokensConfig
from world_modality_core.precompute.steps import precompute


def assert_refused(cfg, match, written=()):
    before = sorted(Path(cfg.output.root).parent.rglob("*"))
    with pytest.raises(ConfigError, match=match):
        precompute(cfg)
    assert sorted(Path(cfg.output.root).parent.rglob("*")) == before


def test_an_upload_that_cannot_be_is_refused(videos, tmp_path):
    # Tests run offline; tests/hub uploads to a server on the loopback.
    assert_refused(config(videos, tmp_path / "out", push_to_hub=True), "push_to_hub=true: .*HF_HUB_OFFLINE forbids")


def test_an_unknown_camera_is_refused_and_the_known_are_named(videos, tmp_path):
    spec = replace(COLOUR, cameras=["observation.image"])
    assert_refused(config(videos, tmp_path / "out", spec), "'observation.image'.*observation.images.top")


def test_a_dataset_without_cameras_is_refused(tmp_path):
    make_dataset(tmp_path / "blind", "tests/blind", [5], cameras=())
    assert_refused(config(tmp_path / "blind", tmp_path / "out"), "no colour image or video feature")


def test_a_missing_dataset_is_refused(tmp_path):
    assert_refused(config(tmp_path / "nowhere", tmp_path / "sub/out"), "cannot be opened")


@pytest.mark.parametrize(("tokens", "fits"), [((64, "frame"), False), ((64, "token"), True), ((127, "token"), False)])
def test_more_codes_than_vectors_are_refused(videos, tmp_path, tokens, fits):
    cfg = config(videos, tmp_path / "out", tokens=TokensConfig(*tokens))
    if fits:
        precompute(cfg)
    else:
        assert_refused(cfg, f"n_codes={tokens[0]}.*vectors")


def test_a_full_disk_is_refused(videos, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert_refused(config(videos, tmp_path / "out"), "0.0 MB more are needed and 0.0 MB are free")


def test_a_run_that_goes_on_needs_room_for_the_rest_alone(videos, tmp_path, monkeypatch):
    """On a disk that was big enough for all of it when the killed run began."""
    latents = sum(LENGTHS) * 2 * 3 * 2  # frames, tokens, width, bytes
    usage, free = shutil.disk_usage(tmp_path), 3 * latents

    def disk_usage(path):
        used = sum(file.stat().st_size for file in (tmp_path / "out.partial").rglob("*.npy"))
        return usage._replace(free=free - used)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    stage = steps.stage_latents
    with monkeypatch.context() as patch:  # as if killed when half of it was staged, the companion half written
        patch.setattr(steps, "stage_latents", lambda *args: stage(*args[:3], args[3][:2], *args[4:]))
        patch.setattr(steps, "finish", lambda *args: None)
        with pytest.raises(IncompleteCompanionError):
            precompute(config(videos, tmp_path / "out"))
    assert disk_usage(None).free < 3 * latents
    precompute(config(videos, tmp_path / "out"))
    free = 0
    precompute(config(videos, tmp_path / "out"))  # all is there
    assert_refused(config(videos, tmp_path / "out", merge=True), "MB more are needed")


def test_an_output_that_is_something_else_is_refused(videos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/thesis.txt").write_text("mine")
    assert_refused(config(videos, tmp_path / "out", overwrite=True), "not a companion")
    assert_refused(config(videos, videos, overwrite=True), "is the source dataset itself")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"encoder": replace(COLOUR, pooling="grid:2x2")}, "encoder.pooling"),
        ({"tokens": TokensConfig(8)}, "tokens"),
        ({"source": "other"}, "source.content"),
    ],
)
def test_a_finished_companion_of_another_request_is_refused_unless_overwritten(videos, tmp_path, change, named):
    precompute(config(videos, tmp_path / "out"))
    source = videos
    if change.pop("source", None):
        source = tmp_path / "other"
        make_dataset(source, "tests/solid", LENGTHS, draw=solid_frame, seed=9)
    assert_refused(config(source, tmp_path / "out", **change), f"{named}.*--overwrite")
    precompute(config(source, tmp_path / "out", overwrite=True, **change))
    assert precompute(config(source, tmp_path / "out", **change)) == tmp_path / "out"


def test_unfinished_latents_of_another_request_are_refused_unless_overwritten(videos, tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "finish", lambda *args: None)  # as if killed before
    with pytest.raises(IncompleteCompanionError):
        precompute(config(videos, tmp_path / "out"))
    monkeypatch.undo()
    other = config(videos, tmp_path / "out", replace(COLOUR, pooling="grid:2x2"))
    assert_refused(other, "unfinished work of another request.*encoder.pooling.*--overwrite")
    other.overwrite = True
    precompute(other)
    assert open_companion(root=tmp_path / "out").spec.n_tokens == 8


def test_a_second_run_at_the_same_time_is_refused(videos, tmp_path, monkeypatch):
    monkeypatch.setattr("world_modality_core.io.work_folder.LOCK_TIMEOUT_S", 0.1)

    def second(*args):
        assert_refused(config(videos, tmp_path / "out"), "another process is at work")

    monkeypatch.setattr(steps, "finish", second)
    with pytest.raises(IncompleteCompanionError):
        precompute(config(videos, tmp_path / "out"))
