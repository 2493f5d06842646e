"""wm-precompute and the latent cache: full disks, Ctrl-C, kills, damaged and changed sources, a clock that jumps."""

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from lerobot.datasets import LeRobotDataset

from tests.faults.commands import At, fill, run, small_disk, tree
from tests.fixtures_datasets import make_dataset
from world_modality_core.io.commands import command_errors
from world_modality_core.latents.companion import open_companion
from world_modality_core.precompute import cli

LENGTHS = (6, 5, 7)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """3 episodes, one camera, images in parquet; do not write there."""
    root = tmp_path_factory.mktemp("faults") / "source"
    make_dataset(root, lengths=LENGTHS, cameras=["observation.images.top"], use_videos=False, size=32)
    return root


def options(source: Path, output: Path, *more: str) -> list[str]:
    return [
        "--dataset.repo_id=tests/source", f"--dataset.root={source}", "--output.repo_id=tests/world",
        f"--output.root={output}", "--encoder.family=efficientnet_lite0", "--encoder.height_px=32",
        "--encoder.width_px=32", "--encoder.pca_dim=8", "--tokens.n_codes=4", "--device=cpu", "--num_workers=0", *more,
    ]  # fmt: skip


def main():
    cli.main()


@pytest.fixture(scope="module")
def whole(source, tmp_path_factory):
    """What an undisturbed run writes."""
    root = tmp_path_factory.mktemp("faults") / "whole"
    done = run(main, *options(source, root), log=root.with_suffix(".log"))
    assert done.status == 0, done.err[-3000:]
    return tree(root)


# From "no room for the first file" to "no room for the last ones".
@pytest.mark.parametrize("kb_left", [4, 72])
def test_a_full_disk_costs_nothing_that_is_finished(source, whole, tmp_path, kb_left):
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        ballast = fill(disk, kb_left << 10)
        done = run(main, *options(source, disk / "world"), log=tmp_path / "log")
        assert done.status == 1
        assert done.told.startswith("wm-precompute: ") and str(disk / "world") in done.told and "room" in done.told
        kept = {path: path.stat().st_mtime_ns for path in (disk / "world.partial/episodes").rglob("*.npy")}
        assert not list(disk.rglob("*.tmp")) and not (disk / "world").exists()
        ballast.unlink()
        assert run(main, *options(source, disk / "world"), log=tmp_path / "log").status == 0
        assert tree(disk / "world") == whole
        assert kb_left < 72 or len(kept) == len(LENGTHS)  # the encoding was not lost


def test_a_full_disk_while_the_latent_cache_is_made(source, whole, tmp_path):
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        assert run(main, *options(source, disk / "world"), log=tmp_path / "log").status == 0

        def read():
            with command_errors("reader"):
                print(open_companion(root=disk / "world").table.latents.sum())

        shutil.rmtree(disk / "world/cache", ignore_errors=True)
        ballast = fill(disk, 0)
        done = run(read, log=tmp_path / "log")
        assert done.status == 1 and "no room left" in done.told and f"{disk}/world" in done.told
        assert not list(disk.rglob("*.npy*"))
        ballast.unlink()
        assert run(read, log=tmp_path / "log").status == 0


@pytest.mark.parametrize("part", ["latents-", "tokens-"])
def test_a_kill_while_the_latent_cache_is_made(tiny_companion, tmp_path, part):
    root = shutil.copytree(tiny_companion.companion_root, tmp_path / "world", ignore=shutil.ignore_patterns("cache"))

    def read():
        print(open_companion(root=root).table.latents[:].tobytes().hex()[:400])

    assert run(read, log=tmp_path / "log", at=At("os.rename", part)).status == 128 + signal.SIGKILL
    assert list((root / "cache").glob("*.partial"))
    done = run(read, log=tmp_path / "log")
    assert done.status == 0 and not list((root / "cache").glob("*.partial"))
    expected = open_companion(root=tiny_companion.companion_root).table.latents[:].tobytes().hex()[:400]
    assert done.out.strip() == expected


# While the PCA, the codebook (after its fit) and the whole are put in place.
@pytest.mark.parametrize("part", ["pca.safetensors", "world_codebook", "world.partial/dataset"])
def test_a_kill_at_any_rename_is_made_good(source, whole, tmp_path, part):
    root = tmp_path / "world"
    done = run(main, *options(source, root), log=tmp_path / "log", at=At("os.rename", part))
    assert done.status == 128 + signal.SIGKILL and not root.exists()
    assert run(main, *options(source, root), log=tmp_path / "log").status == 0
    assert tree(root) == whole and not (tmp_path / "world.partial").exists()


def test_ctrl_c_twice(source, whole, tmp_path):
    root = tmp_path / "world"
    at = At("os.rename", "episode-000001", signal.SIGINT, again_s=0.02)
    done = run(main, *options(source, root), log=tmp_path / "log", at=at)
    assert done.status == 130 and done.told == "wm-precompute: stopped; the same command goes on from here"
    assert not root.exists()
    assert run(main, *options(source, root), log=tmp_path / "log").status == 0
    assert tree(root) == whole


def test_a_clock_that_jumps_back_changes_nothing(source, whole, tmp_path):
    """Each look at the clock finds it an hour earlier than the last one, in the killed run and in the next."""

    def jumping():
        true, looks = time.time, [0]

        def earlier():
            looks[0] += 1
            return true() - 3600 * looks[0]

        time.time = earlier
        main()

    root = tmp_path / "world"
    killed = run(jumping, *options(source, root), log=tmp_path / "log", at=At("os.rename", "episode-000001"))
    assert killed.status == 128 + signal.SIGKILL
    assert run(jumping, *options(source, root), log=tmp_path / "log").status == 0
    assert tree(root) == whole


def test_a_source_that_changed_under_the_companion(source, whole, tmp_path):
    changed = tmp_path / "source"
    shutil.copytree(source, changed)
    root = tmp_path / "world"
    # Half done, then the source is recorded anew in its place.
    assert run(main, *options(changed, root), log=tmp_path / "log", at=At("os.rename", "episode-000002")).status > 128
    shutil.rmtree(changed)
    make_dataset(changed, lengths=LENGTHS, cameras=["observation.images.top"], use_videos=False, size=32, seed=9)
    done = run(main, *options(changed, root), log=tmp_path / "log")
    assert done.status == 1 and "unfinished work of another request" in done.told and "latents" not in done.out
    # With the source that it was begun on, it goes on.
    assert run(main, *options(source, root), log=tmp_path / "log").status == 0
    assert tree(root) == whole
    # And finished: neither wm-precompute nor a policy takes it for the new source's.
    done = run(main, *options(changed, root), log=tmp_path / "log")
    assert done.status == 1 and "companion of another request" in done.told
    with pytest.raises(ValueError, match="is not that dataset or a copy of it: the values of"):
        open_companion(root=root).check_source(LeRobotDataset("tests/source", root=changed).meta)


def _damage(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("name", ["data/chunk-000/file-000.parquet", "meta/info.json", "meta/episodes"])
def test_a_damaged_source_is_named(source, tmp_path, name):
    damaged = shutil.copytree(source, tmp_path / "source")
    path = damaged / name
    path = next(path.rglob("*.parquet")) if path.is_dir() else path
    _damage(path, 0.5)
    done = run(main, *options(damaged, tmp_path / "world"), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith("wm-precompute: ") and str(damaged) in done.told


def test_a_damaged_video_is_named(tiny_companion, tmp_path):
    damaged = shutil.copytree(tiny_companion.source_root, tmp_path / "source")
    path = sorted(damaged.rglob("*.mp4"))[-1]
    for share, n_workers in ((0.6, 0), (0.0, 1)):  # in this process, and in a worker
        _damage(path, share)
        more = f"--num_workers={n_workers}"
        done = run(main, *options(damaged, tmp_path / f"world{share}", more), log=tmp_path / "log")
        assert done.status == 1 and done.told.startswith(f"wm-precompute: {path}"), done.told


@pytest.mark.parametrize("name", ["request.json", "pca.safetensors", "episodes/000/episode-000000.npy"])
def test_damaged_unfinished_work_is_named(source, tmp_path, name):
    root = tmp_path / "world"
    assert run(main, *options(source, root), log=tmp_path / "log", at=At("os.rename", "episode-000002")).status > 128
    _damage(tmp_path / "world.partial" / name, 0.3)
    done = run(main, *options(source, root), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith(f"wm-precompute: {tmp_path / 'world.partial' / name}")
    assert "delete" in done.told


def test_what_names_the_cache_is_checked(tiny_companion, tmp_path):
    root = shutil.copytree(tiny_companion.companion_root, tmp_path / "world")
    path = root / "meta/world_modality.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"content_sha256": "../../../../evil"}))
    with pytest.raises(ValueError, match="content_sha256 is no SHA-256"):
        open_companion(root=root)
