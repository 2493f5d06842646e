"""`wm-precompute` on tiny real datasets: alignment, sameness with the live encoder, resume, copies, refusals."""

from __future__ import annotations

import itertools
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from lerobot.datasets import LeRobotDataset

from tests.core.precompute_helpers import COLOUR, LENGTHS, ColourEncoder, config
from tests.faults.commands import At, run
from tests.fixtures_datasets import CAMERAS, TASKS, make_dataset, scene_frame, solid_frame
from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.encoders.windows import causal_windows
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.latents import latent_quality
from world_modality_core.latents.companion import IncompleteCompanionError, open_companion, partial_root
from world_modality_core.latents.fingerprint import episode_keys
from world_modality_core.precompute import cli, decoding, encode, steps
from world_modality_core.precompute.copied_parts import stale_parts
from world_modality_core.precompute.decoding import video_frames
from world_modality_core.precompute.precompute_options import PrecomputeConfig, TokensConfig
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging
from world_modality_core.precompute.steps import precompute

REAL = EncoderSpec(family="efficientnet_lite0", height_px=32, width_px=32, pca_dim=8)


def expected_colours(n_frames=1, stride=1, every=1) -> np.ndarray:
    """(n, v, 3): the colour of each frame of each camera, averaged over the window of the last encoded one."""
    rows = []
    for episode, length in enumerate(LENGTHS):
        colours = np.array([[solid_frame(episode, t, v, 1)[0, 0] for v in range(2)] for t in range(length)]) / 255
        back = np.arange(n_frames) * stride
        rows += [colours[np.maximum(t // every * every - back, 0)].mean(axis=0) for t in range(length)]
    return np.stack(rows)


def latents_of(root) -> np.ndarray:
    return np.array(open_companion(root=root).table.latents)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(("kind", "atol"), [("videos", 0.02), ("images", 0.001)])
def test_latents_are_those_of_their_frames(request, tmp_path, kind, atol, num_workers):
    root = precompute(config(request.getfixturevalue(kind), tmp_path / "out", num_workers=num_workers))
    latents = latents_of(root).reshape(-1, 2, 3)
    # One step of time is 10 / 255 = 0.039 in red, one episode 0.16 in green, the other camera 0.39 in blue.
    np.testing.assert_allclose(latents, expected_colours(), atol=atol)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_windows_reach_across_batches_but_not_across_episodes(images, tmp_path, batch_size):
    spec = replace(COLOUR, n_frames=3, frame_stride=2)
    root = precompute(config(images, tmp_path / "out", spec, batch_size=batch_size))
    np.testing.assert_allclose(latents_of(root).reshape(-1, 2, 3), expected_colours(3, 2), atol=0.001)


@pytest.mark.parametrize(("kind", "n_frames", "stride", "every", "n_decoded"), [
    ("videos", 1, 1, 5, None), ("images", 1, 1, 5, 14), ("images", 3, 2, 4, 30), ("images", 2, 1, 6, 20),
])  # fmt: skip
def test_only_every_nth_frame_is_decoded_and_encoded(
    request, tmp_path, monkeypatch, kind, n_frames, stride, every, n_decoded
):
    """Frames in between have the latent of the last one encoded: as by the live path, and by plain LeRobot."""
    decoded, encoded = [], []
    decode, encode_frames = decoding.decode_image, ColourEncoder.encode
    monkeypatch.setattr(decoding, "decode_image", lambda *args: decoded.append(1) or decode(*args))
    monkeypatch.setattr(
        ColourEncoder, "encode", lambda self, w: encoded.append(len(w[CAMERAS[0]])) or encode_frames(self, w)
    )
    spec = replace(COLOUR, n_frames=n_frames, frame_stride=stride, every=every)
    root = precompute(config(request.getfixturevalue(kind), tmp_path / "out", spec, batch_size=2))
    expected = expected_colours(n_frames, stride, every)
    np.testing.assert_allclose(latents_of(root).reshape(-1, 2, 3), expected, atol=0.02 if kind == "videos" else 0.001)
    assert sum(encoded) == sum(-(-length // every) for length in LENGTHS)
    assert n_decoded is None or len(decoded) == n_decoded * len(CAMERAS)
    companion = open_companion(root=root)
    assert companion.spec.every == every and set(companion.quality["latents"]["cosine_copy"]) == {
        str(k * every) for k in latent_quality.HORIZONS
    }
    with pytest.raises(ConfigError, match="encoder.every: saved .*, asked for 7.*--overwrite"):
        precompute(config(request.getfixturevalue(kind), tmp_path / "out", replace(spec, every=7)))


def test_an_interrupted_run_goes_on_with_the_same_every_only(images, tmp_path, monkeypatch):
    spec = replace(COLOUR, every=3)
    whole = latents_of(precompute(config(images, tmp_path / "whole", spec)))
    stage = steps.stage_latents
    with monkeypatch.context() as patch:
        patch.setattr(steps, "stage_latents", lambda *args: stage(*args[:3], args[3][:2], *args[4:]))
        patch.setattr(steps, "finish", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            precompute(config(images, tmp_path / "out", spec))
    with pytest.raises(ConfigError, match="encoder.every: saved 3, asked for None"):
        precompute(config(images, tmp_path / "out"))
    np.testing.assert_array_equal(latents_of(precompute(config(images, tmp_path / "out", spec))), whole)
    again = precompute(config(images, tmp_path / "reused", EncoderSpec(), reuse_from=str(tmp_path / "out")))
    np.testing.assert_array_equal(latents_of(again), whole)


@pytest.mark.parametrize("codec, gop", [("libsvtav1", 2), ("h264", 6), ("h264", 250)])
def test_what_lies_before_a_key_frame_is_not_decoded(tmp_path, monkeypatch, codec, gop):
    """The frames are those of decoding everything, whatever the distance of the key frames."""
    path, times = tmp_path / "video.mp4", np.arange(60) / 10
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10, options={"g": str(gop)})
        stream.width = stream.height = 64
        for t in range(60):
            for packet in stream.encode(av.VideoFrame.from_ndarray(scene_frame(0, t, 0, 64))):
                container.mux(packet)
        container.mux(stream.encode(None))
    decoded, decode = [], decoding._decoded
    monkeypatch.setattr(decoding, "_decoded", lambda *args: (decoded.append(1) or each for each in decode(*args)))
    every_frame = list(video_frames(path, (64, 64), times))
    assert len(decoded) == 60
    for start, every in ((0, 1), (0, 4), (3, 5), (7, 1), (0, 59)):
        chosen = list(video_frames(path, (64, 64), times[start::every]))
        np.testing.assert_array_equal(chosen, every_frame[start::every])
    decoded.clear()
    list(video_frames(path, (64, 64), times[::12]))
    assert len(decoded) <= {2: 10, 6: 25, 250: 60}[gop]


@pytest.mark.parametrize(("fastest", "longest", "expected"), [(64, 1000, 64), (512, 1000, 512), (512, 100, 128)])
def test_a_batch_size_is_found_by_trying(fastest, longest, expected, monkeypatch):
    """Frames cost half as much in a batch twice as large, up to the fastest; beyond the episodes none is tried."""
    encoder, now = make_world_encoder(replace(COLOUR, n_frames=2, cameras=list(CAMERAS))), [0.0]

    def encode_raw(windows):
        n, m, *shape = windows["observation.images.top"].shape
        assert (m, shape) == (2, [3, 6, 4])
        now[0] += n / min(n, fastest)
        return [torch.zeros(n)]

    monkeypatch.setattr(encoder, "encode_raw", encode_raw)
    monkeypatch.setattr(encode.time, "perf_counter", lambda: now[0])
    assert encode.find_batch_size(encoder, dict.fromkeys(CAMERAS, (6, 4)), longest) == expected


def test_a_batch_size_that_was_found_gives_the_same_latents(images, tmp_path):
    roots = [precompute(config(images, tmp_path / str(n), batch_size=n)) for n in (0, 7)]
    np.testing.assert_allclose(*map(latents_of, roots), atol=1e-3)


def test_cached_equals_live(videos, tmp_path):
    root = precompute(config(videos, tmp_path / "out", replace(REAL, cameras=list(CAMERAS[::-1]))))
    companion, dataset = open_companion(root=root), LeRobotDataset("tests/solid", root=videos)
    assert companion.spec.cameras == list(CAMERAS[::-1]) and companion.pca is not None
    live = make_world_encoder(companion.spec, companion.pca)
    index = [0, 11, 12, 40, 62]
    frames = {camera: torch.stack([dataset[i][camera] for i in index]) for camera in CAMERAS}  # float in [0, 1]
    shape = (len(index), companion.spec.n_tokens, companion.spec.dim)
    cached = companion.table.gather(torch.tensor(index), [0])[0].view(shape)
    assert torch.allclose(live.encode(frames), cached.float(), rtol=2e-3, atol=2e-3 * cached.abs().max().item())


def test_plain_lerobot_reads_the_companion(videos, tmp_path):
    root = precompute(config(videos, tmp_path / "out", tokens=TokensConfig(8, "token")))
    companion, source = LeRobotDataset("tests/solid_world", root=root), LeRobotDataset("tests/solid", root=videos)
    table = open_companion(root=root).table
    assert len(companion) == len(source) == 63 and companion.num_episodes == 4
    assert companion.meta.camera_keys == [] and companion.meta.fps == source.meta.fps
    for i in (0, 11, 12, 28, 29, 62):
        mine, theirs = companion[i], source[i]
        for key in ("index", "episode_index", "frame_index", "timestamp", "task_index", "task"):
            assert mine[key] == theirs[key], key
        assert np.array_equal(mine["world.latents"].numpy().astype(np.float16), table.latents[i])
        assert np.array_equal(mine["world.tokens"].numpy(), table.tokens[i])
    subset = LeRobotDataset("tests/solid_world", root=root, episodes=[2])
    assert len(subset) == 14 and subset[0]["index"] == 29 and subset[0]["task"] == TASKS[0]
    stats, latents = companion.meta.stats["world.latents"], np.array(table.latents, dtype=np.float64)
    for name, value in (("mean", latents.mean(0)), ("std", latents.std(0)), ("min", latents.min(0))):
        np.testing.assert_allclose(stats[name], value, rtol=1e-5, atol=1e-7)
    assert set(companion.meta.stats) == {"world.latents", *(set(source.meta.stats) & set(companion.meta.features))}
    mean, std = open_companion(root=root).mean, open_companion(root=root).std
    np.testing.assert_allclose(mean, latents.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(std, latents.std(0), rtol=1e-4, atol=1e-6)


def test_tokens_are_the_codebooks_assignment(videos, tmp_path):
    root = precompute(config(videos, tmp_path / "out", tokens=TokensConfig(8)))
    companion = open_companion(root=root)
    latents = torch.from_numpy(np.array(companion.table.latents)).view(-1, companion.spec.n_tokens, companion.spec.dim)
    assert torch.equal(companion.codebook.assign(latents), torch.from_numpy(np.array(companion.table.tokens)).long())
    assert len(np.unique(companion.table.tokens)) > 4


def test_the_data_rolls_over_to_new_files(videos, tmp_path):
    source = tmp_path / "source"
    shutil.copytree(videos, source)
    info = json.loads((source / "meta/info.json").read_text())
    (source / "meta/info.json").write_text(json.dumps(info | {"data_files_size_in_mb": 1e-3}))
    root = precompute(config(source, tmp_path / "out"))
    assert len(list((root / "data").rglob("*.parquet"))) == 4
    dataset = LeRobotDataset("tests/solid_world", root=root, episodes=[1, 3])
    assert [int(dataset[i]["index"]) for i in (0, 17)] == [12, 43]
    np.testing.assert_allclose(latents_of(root).reshape(-1, 2, 3), expected_colours(), atol=0.02)


def test_a_companion_for_fine_tuning_reuses_pca_and_codebook(videos, tmp_path):
    old = open_companion(root=precompute(config(videos, tmp_path / "old", REAL, tokens=TokensConfig(8))))
    make_dataset(tmp_path / "new_source", "tests/new", (9, 13), seed=5)
    cfg = config(tmp_path / "new_source", tmp_path / "new", EncoderSpec(), reuse_from=str(tmp_path / "old"))
    new = open_companion(root=precompute(cfg))
    assert new.spec == old.spec and new.spec.pca_sha256 and new.codebook.sha256 == old.codebook.sha256
    latents = torch.from_numpy(np.array(new.table.latents)).view(-1, new.spec.n_tokens, new.spec.dim)
    assert torch.equal(old.codebook.assign(latents), torch.from_numpy(np.array(new.table.tokens)).long())
    assert precompute(cfg) == tmp_path / "new"
    with pytest.raises(ConfigError, match="leave out --encoder and --tokens"):
        config(videos, tmp_path / "x", COLOUR, reuse_from=str(tmp_path / "old"))
    with pytest.raises(ConfigError, match="reuse_from='.*source'.*not a companion"):
        precompute(config(videos, tmp_path / "x", EncoderSpec(), reuse_from=str(videos)))


# Resume and processes: real processes of the real command.


PRECOMPUTE = "world_modality_core.precompute.cli:main"


def options(source_root, output_root) -> list[str]:
    return [
        f"--dataset.root={source_root}", "--dataset.repo_id=tests/solid", f"--output.root={output_root}",
        "--output.repo_id=tests/solid_world", "--encoder.family=efficientnet_lite0", "--encoder.height_px=96",
        "--encoder.width_px=96", "--encoder.pca_dim=8", "--tokens.n_codes=8", "--device=cpu", "--batch_size=4",
        "--num_workers=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(videos, tmp_path_factory):
    """The companion of an uninterrupted run with `options`."""
    root = tmp_path_factory.mktemp("whole") / "out"
    encoder = EncoderSpec(family="efficientnet_lite0", height_px=96, width_px=96, pca_dim=8)
    return precompute(config(videos, root, encoder, tokens=TokensConfig(8), batch_size=4))


def assert_same_companion(a: Path, b: Path) -> None:
    one, other = open_companion(root=a), open_companion(root=b)
    assert np.array_equal(one.table.latents, other.table.latents)
    assert np.array_equal(one.table.tokens, other.table.tokens)
    assert one.info == other.info
    assert torch.equal(one.codebook.centroids, other.codebook.centroids)


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_values(videos, whole, tmp_path):
    root, log = tmp_path / "out", tmp_path / "log"
    staged, words = partial_root(root) / "episodes", options(videos, root)
    alone = [*words, "--num_workers=0"]  # with a worker, which notices a kill after five seconds, it is killed first
    assert run(PRECOMPUTE, *words, log=log, at=At("os.rename", "episode-000001")).status == 128 + signal.SIGKILL
    kept = {path: path.stat().st_mtime_ns for path in staged.rglob("*.npy")}
    assert len(kept) == 1 and not root.exists()
    with pytest.raises(IncompleteCompanionError, match="interrupted.*same wm-precompute command again"):
        open_companion(root=root)
    # What a kill in other places leaves: half a file aside, half a dataset.
    (staged / "000" / "episode-000003.npy.1234.tmp").write_bytes(b"half")
    (partial_root(root) / "dataset/meta").mkdir(parents=True)
    (partial_root(root) / "dataset/meta/info.json").write_text("{")
    at = At("os.rename", str(partial_root(root) / "dataset"))  # all that was encoded is there, the whole isn't yet
    assert run(PRECOMPUTE, *alone, log=log, at=at).status == 128 + signal.SIGKILL and not root.exists()
    assert {path: path.stat().st_mtime_ns for path in kept} == kept  # finished episodes were not encoded again
    assert run(PRECOMPUTE, *alone, log=log).status == 0
    assert_same_companion(root, whole)
    assert not partial_root(root).exists()


@pytest.mark.slow
def test_two_processes_give_the_dataset_of_one(videos, whole, port, tmp_path):
    root = tmp_path / "out"
    # On a CPU too: without --multi_gpu, accelerate starts several processes only under MPI.
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1"]
    launch += [f"--main_process_port={port}", "--mixed_precision=no", "--dynamo_backend=no"]
    module, _, _ = PRECOMPUTE.partition(":")
    command = [sys.executable, "-m", *launch, "-m", module, *options(videos, root)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "process 0 of 2" in done.stderr
    assert_same_companion(root, whole)


def test_the_same_request_finds_its_companion_finished(videos, tmp_path, capsys):
    root = precompute(config(videos, tmp_path / "out"))
    before = (root / "meta/world_modality.json").stat().st_mtime_ns
    request = {"latents": open_companion(root=root).info.request["latents"]}
    for asked in ({"latents": None}, request):  # another request's, and what a kill at the very end leaves
        Staging(partial_root(root)).begin(asked["latents"] or {}, overwrite=True).release()
        assert precompute(config(videos, tmp_path / "out")) == root
        assert partial_root(root).exists() == (asked is not request)
    capsys.readouterr()
    assert precompute(config(videos, tmp_path / "out")) == root
    assert (root / "meta/world_modality.json").stat().st_mtime_ns == before
    assert "effective rank" in capsys.readouterr().out and not partial_root(root).exists()


# Copies of the source.


def test_merged_copy(videos, tmp_path):
    root = precompute(config(videos, tmp_path / "out", tokens=TokensConfig(8), merge=True))
    merged, source = LeRobotDataset("m", root=tmp_path / "out_merged"), LeRobotDataset("tests/solid", root=videos)
    table = open_companion(root=root).table
    for i in (0, 12, 62):
        mine, theirs = merged[i], source[i]
        assert all(torch.equal(mine[key], theirs[key]) for key in theirs if key != "task")
        assert np.array_equal(mine["world.latents"].numpy().astype(np.float16), table.latents[i])
        assert mine["world.tokens"].item() == table.tokens[i, 0]
    assert set(merged.meta.stats) == {*source.meta.stats, "world.latents"}
    opened = open_companion(root=tmp_path / "out_merged")
    assert np.array_equal(opened.table.latents, table.latents)
    opened.check_source(source.meta)
    opened.check_source(merged.meta)
    # Image features in parquet too.


def test_merged_copy_of_images(images, tmp_path):
    precompute(config(images, tmp_path / "out", merge=True))
    merged, source = LeRobotDataset("m", root=tmp_path / "out_merged"), LeRobotDataset("tests/solid", root=images)
    assert torch.equal(merged[30][CAMERAS[1]], source[30][CAMERAS[1]])


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_stripped_copy(request, tmp_path, kind):
    source_root = request.getfixturevalue(kind)
    root = precompute(config(source_root, tmp_path / "out", strip_images=True))
    stripped = LeRobotDataset("s", root=tmp_path / "out_stripped")
    source = LeRobotDataset("tests/solid", root=source_root)
    assert set(source.meta.features) - set(stripped.meta.features) == set(CAMERAS)
    assert not (stripped.root / "videos").exists() and set(stripped.meta.stats) == set(source.meta.stats) - set(CAMERAS)
    for i in (0, 12, 62):
        assert set(source[i]) - set(stripped[i]) == set(CAMERAS)
        for key in ("action", "observation.state", "index", "timestamp"):
            assert torch.equal(stripped[i][key], source[i][key])
        assert stripped[i]["task"] == source[i]["task"]
    open_companion(root=root).check_source(stripped.meta)


def test_copies_are_made_later_too_but_never_over_something_else(videos, tmp_path):
    root = precompute(config(videos, tmp_path / "out"))
    precompute(config(videos, tmp_path / "out", merge=True, strip_images=True))
    before = (tmp_path / "out_merged/meta/info.json").stat().st_mtime_ns
    precompute(config(videos, tmp_path / "out", merge=True, strip_images=True))
    assert (tmp_path / "out_merged/meta/info.json").stat().st_mtime_ns == before
    shutil.rmtree(root)
    with pytest.raises(ConfigError, match="out_merged exists.*--overwrite"):
        precompute(config(videos, tmp_path / "out", replace(COLOUR, pooling="grid:2x2"), merge=True))


def test_folders_of_the_users_beside_the_output_stay(videos, tmp_path):
    for name in ("out.old", "out_merged.old", "out_stripped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    precompute(config(videos, tmp_path / "out"))
    everything = dict(overwrite=True, merge=True, strip_images=True)
    with pytest.raises(ConfigError, match="out_stripped exists and is not a stripped copy"):
        precompute(config(videos, tmp_path / "out", replace(COLOUR, pooling="grid:2x2"), **everything))
    assert open_companion(root=tmp_path / "out").spec.pooling == "grid:2x2"
    assert len(list(tmp_path.glob("*/mine"))) == 3


@pytest.mark.parametrize("is_there", [True, False])
def test_an_output_that_is_a_link_is_followed(videos, tmp_path, is_there):
    (tmp_path / "scratch").mkdir()
    for name in ("out", "out_merged"):
        if is_there:
            (tmp_path / "scratch" / name).mkdir()
        (tmp_path / name).symlink_to(tmp_path / "scratch" / name)
    for pooling in ("mean", "mean", "grid:2x2"):
        cfg = config(videos, tmp_path / "out", replace(COLOUR, pooling=pooling), merge=True, overwrite=True)
        precompute(cfg)
        assert open_companion(root=tmp_path / "out").spec.pooling == pooling
    assert (tmp_path / "out").is_symlink() and (tmp_path / "out_merged").is_symlink()
    merged = tmp_path / "scratch/out_merged"
    assert open_companion(root=merged).spec.pooling == "grid:2x2" and not list(tmp_path.rglob("*.partial"))


def test_a_dry_run_writes_nothing(videos, tmp_path, capsys):
    precompute(config(videos, tmp_path / "out", dry_run=True, merge=True))
    out = capsys.readouterr().out
    assert "63 frames in 4 episodes" in out and "2 tokens x 3" in out and "observation.images.wrist (all of" in out
    assert not list(tmp_path.iterdir())


def test_flags_may_be_bare(videos, tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(steps, "SourceDataset", lambda *args: (_ for _ in ()).throw(ConfigError("stop")))
    monkeypatch.setattr(PrecomputeConfig, "__post_init__", lambda self: seen.update(vars(self)))
    arguments = ["--merge", "--strip_images=true", "--push_to_hub=false", "--dry_run", "--encoder.cameras=[a,b]"]
    monkeypatch.setattr(sys, "argv", ["wm-precompute", f"--dataset.root={videos}", *arguments])
    with pytest.raises(SystemExit, match="wm-precompute: stop"):
        cli.main()
    flags = {name: seen[name] for name in ("merge", "strip_images", "dry_run", "push_to_hub", "private")}
    assert list(flags.values()) == [True, True, True, False, False]
    assert seen["encoder"].cameras == ["a", "b"]


def test_causal_windows_are_the_encoders_own():
    # `expected_colours` writes windows down anew; hold it to the encoders' definition.
    frames = torch.arange(5.0).view(5, 1, 1, 1)
    assert causal_windows(frames, 3, 2)[3, :, 0, 0, 0].tolist() == [0, 1, 3]


def test_a_dataset_in_several_files_is_read_file_by_file_and_is_the_same(images, tmp_path):
    """Large datasets lie in many files; here they are cut in the midst of episodes."""
    cut = shutil.copytree(images, tmp_path / "cut")
    (path,) = (cut / "data").glob("*/*.parquet")
    table = pq.read_table(path)
    bounds = [0, 5, 20, 50, 63]
    for file, (start, stop) in enumerate(itertools.pairwise(bounds)):
        pq.write_table(table.slice(start, stop - start), path.with_name(f"file-{file:03d}.parquet"))
    whole, parts = (SourceDataset("tests/solid", str(root)) for root in (images, cut))
    np.testing.assert_array_equal(whole.timestamps, parts.timestamps)
    keys = [episode_keys(each.meta, each.bounds, CAMERAS) for each in (whole, parts)]
    assert keys[0] == keys[1] and len(set(keys[0])) == 4
    assert stale_parts(whole.meta, cut, whole.meta.features) == []

    def spoilt(name: str, row: int, value: float) -> None:
        columns = {key: table[key] for key in table.column_names}
        values = table[name].to_pylist()
        values[row] = value
        columns[name] = pa.array(values, table.schema.field(name).type)
        bad = pa.table(columns, schema=table.schema)
        for file, (start, stop) in enumerate(itertools.pairwise(bounds)):
            pq.write_table(bad.slice(start, stop - start), path.with_name(f"file-{file:03d}.parquet"))

    spoilt("timestamp", 50, table["timestamp"][49].as_py())  # the first row of a file, in the midst of episode 3
    with pytest.raises(
        ConfigError, match="`timestamp` is no increasing time at 1 of 63 frames, the first is frame 7 of"
    ):
        SourceDataset("tests/solid", str(cut))
    assert stale_parts(whole.meta, cut, whole.meta.features) == ["timestamp"]
    spoilt("index", 62, 61)
    with pytest.raises(UserError, match="`index` does not count its 63 frames"):
        SourceDataset("tests/solid", str(cut))


def test_figures_of_tokens_are_those_of_all_episodes_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    tokens, ends = rng.integers(0, 5, (400, 2), np.int32), np.cumsum([20] * 20)
    bounds = np.stack([ends - 20, ends], axis=1)
    expected = latent_quality.token_figures(tokens, bounds, 5)
    assert expected["bigram_accuracy"]["1"] > 0.15 and expected["copy_accuracy"]["16"] > 0.1
    monkeypatch.setattr(latent_quality, "_EPISODES_AT_ONCE", 3)
    assert latent_quality.token_figures(tokens, bounds, 5) == expected
