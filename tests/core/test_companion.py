"""Opening a companion: what it carries, which sources it accepts, what is refused and by what name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets import LeRobotDatasetMetadata

from tests.fixtures_datasets import make_dataset
from world_modality_core.latents import companion as module
from world_modality_core.latents.companion import (
    CompanionError,
    CompanionMismatchError,
    IncompleteCompanionError,
    open_companion,
)
from world_modality_core.latents.fingerprint import SourceFingerprint
from world_modality_core.precompute.finish import write_merged, write_stripped
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.steps import precompute

LENGTHS = (12, 17, 14, 20)


@pytest.fixture
def copied(tiny_companion, tmp_path):
    """A copy of the companion to damage."""
    root = tmp_path / "companion"
    shutil.copytree(tiny_companion.companion_root, root, ignore=shutil.ignore_patterns("cache"))
    return root


def source_meta(tiny_companion, root=None):
    return LeRobotDatasetMetadata(tiny_companion.source_repo_id, root=root or tiny_companion.source_root)


def test_what_it_carries(tiny_companion):
    companion = open_companion(root=tiny_companion.companion_root)
    assert companion.spec.is_resolved and companion.spec.pca_sha256 == companion.pca.sha256
    assert companion.mean.shape == companion.std.shape == (companion.spec.n_tokens * companion.spec.dim,)
    assert companion.codebook.n_codes == 8 and companion.fps == 10
    assert companion.camera_shapes == {camera: [64, 64, 3] for camera in companion.spec.cameras}
    assert companion.table.n_frames == sum(LENGTHS) == companion.source.total_frames
    assert companion.table.bounds[:, 1].tolist() == np.cumsum(LENGTHS).tolist()
    assert companion.table is companion.table and (tiny_companion.companion_root / "cache").is_dir()
    assert set(companion.quality) == {"latents", "tokens"}


def test_opening_reads_no_latents(copied):
    shutil.rmtree(copied / "data")
    assert open_companion(root=copied).codebook is not None


# Which sources it accepts.


def test_its_source_and_copies_of_it_are_accepted(tiny_companion, tmp_path):
    companion = open_companion(root=tiny_companion.companion_root)
    companion.check_source(source_meta(tiny_companion))
    shutil.copytree(tiny_companion.source_root, tmp_path / "bytes")
    companion.check_source(LeRobotDatasetMetadata("another/name", root=tmp_path / "bytes"))
    shutil.copytree(tiny_companion.companion_root, tmp_path / "companion")
    source, elsewhere = SourceDataset("s", str(tmp_path / "bytes")), open_companion(root=tmp_path / "companion")
    for write in (write_merged, write_stripped):
        companion.check_source(LeRobotDatasetMetadata("copy", root=write(source, elsewhere)))


def test_training_on_imagenet_statistics_does_not_make_another_dataset(tiny_companion):
    # lerobot-train overwrites the cameras' statistics in memory (`use_imagenet_stats`).
    meta = source_meta(tiny_companion)
    for camera in meta.camera_keys:
        meta.stats[camera]["mean"] = torch.zeros(3, 1, 1)
    open_companion(root=tiny_companion.companion_root).check_source(meta)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lengths": (12, 17, 14)}, "total_frames: 63 != 43"),
        ({"lengths": (17, 12, 14, 20)}, "episodes' lengths differ"),
        ({"seed": 1}, "values of .*action.*observation.state.* differ"),
    ],
)
def test_another_dataset_is_refused(tiny_companion, tmp_path, change, named):
    make_dataset(tmp_path / "other", tiny_companion.source_repo_id, **{"lengths": LENGTHS} | change)
    meta = LeRobotDatasetMetadata(tiny_companion.source_repo_id, root=tmp_path / "other")
    with pytest.raises(CompanionMismatchError, match=named):
        open_companion(root=tiny_companion.companion_root).check_source(meta)


def test_other_pictures_with_the_same_actions_are_refused(tiny_companion, tmp_path):
    make_dataset(tmp_path / "other", lengths=LENGTHS, draw=lambda e, t, v, s: np.full((s, s, 3), 9 * t, np.uint8))
    with pytest.raises(CompanionMismatchError, match=r"values of \['observation.images.top', 'observation.images.wr"):
        open_companion(root=tiny_companion.companion_root).check_source(
            LeRobotDatasetMetadata("other", root=tmp_path / "other")
        )


def test_another_revision_of_the_same_repository_is_refused(tiny_companion, tmp_path):
    def snapshot(commit):
        root = tmp_path / "snapshots" / commit
        shutil.copytree(tiny_companion.source_root, root)
        return SourceFingerprint.of(source_meta(tiny_companion, root))

    old, new = snapshot("1" * 40), snapshot("2" * 40)
    assert old.differences(new) == [f"revision: {'1' * 40} != {'2' * 40}"]
    local = SourceFingerprint.of(source_meta(tiny_companion))
    assert local.revision is None and not old.differences(local) and not local.differences(new)


def test_a_stripped_copy_of_a_dataset_of_images_alone_is_known_by_its_mark(tiny_companion, tmp_path):
    root, other_root = tmp_path / "video_only", tmp_path / "other"
    source = SourceDataset("tests/source", str(tiny_companion.source_root))
    # Take action and state away, as from a pool of videos.
    from world_modality_core.precompute.assemble import write_derived

    write_derived(source.meta, root, source.meta.camera_keys)
    cfg = PrecomputeConfig(SourceConfig("v", str(root)), OutputConfig("w", str(tmp_path / "out")), device="cpu",
                           num_workers=0, strip_images=True)  # fmt: skip
    cfg.encoder.height_px = cfg.encoder.width_px = 32
    companion = open_companion(root=precompute(cfg))
    companion.check_source(LeRobotDatasetMetadata("s", root=tmp_path / "out_stripped"))
    shutil.copytree(tmp_path / "out_stripped", other_root)
    (other_root / "meta/world_modality_source.json").unlink()
    with pytest.raises(CompanionMismatchError, match="no feature in common"):
        companion.check_source(LeRobotDatasetMetadata("s", root=other_root))


# Refusals.


def test_nothing_named():
    with pytest.raises(ValueError, match="are empty"):
        open_companion()


def test_nothing_there(tmp_path):
    with pytest.raises(IncompleteCompanionError, match="there is no dataset"):
        open_companion(root=tmp_path / "nowhere")


def test_a_plain_dataset_is_not_a_companion(tiny_companion):
    with pytest.raises(CompanionError, match="plain dataset, not a companion"):
        open_companion(root=tiny_companion.source_root)


@pytest.mark.parametrize("name", ["world_stats", "world_pca", "world_codebook"])
def test_a_missing_part_is_named(copied, name):
    (copied / f"meta/{name}.safetensors").unlink()
    with pytest.raises(IncompleteCompanionError, match=f"missing.*{name}"):
        open_companion(root=copied)


def edit_info(root, **changes):
    path = root / "meta/world_modality.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_format_version_is_refused(copied):
    edit_info(copied, format_version=99)
    with pytest.raises(CompanionError, match="format_version 99, expected 1"):
        open_companion(root=copied)


def test_a_foreign_pca_is_refused(copied):
    info = json.loads((copied / "meta/world_modality.json").read_text())
    edit_info(copied, encoder=info["encoder"] | {"pca_sha256": "0" * 64})
    with pytest.raises(CompanionError, match="is not the PCA"):
        open_companion(root=copied)


def test_lost_frames_are_noticed_when_the_table_is_made(copied):
    path = next((copied / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(path).slice(0, 50), path)
    with pytest.raises(ValueError, match="50 of 63 frames read.*damaged"):
        _ = open_companion(root=copied).table


def test_changed_latents_are_noticed_when_the_table_is_made(copied):
    path = next((copied / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    swapped = table["world.latents"].take([1, 0, *range(2, 63)])
    pq.write_table(table.set_column(table.column_names.index("world.latents"), "world.latents", swapped), path)
    with pytest.raises(ValueError, match="damaged"):
        _ = open_companion(root=copied).table


# The flat cache.


def test_a_read_only_companion_keeps_its_cache_elsewhere(copied, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "HF_LEROBOT_HOME", tmp_path / "home")
    monkeypatch.setattr(module.os, "access", lambda path, mode: False)  # root may write anywhere
    table = open_companion(root=copied).table
    assert not (copied / "cache").exists()
    assert str(tmp_path / "home") in str(table.latents.filename)
