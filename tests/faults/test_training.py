"""lerobot-train, wm-prophet and wm-intervene: kills, full disks, Ctrl-C, two at once, damaged checkpoints."""

import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file

from lerobot_policy_world_modality.intervention import cli as intervene_cli
from tests.faults.commands import At, fill, run, small_disk, tree
from tests.intervention.helpers import make_checkpoint
from tests.plugin.helpers import SMALL
from world_modality_core.prophet import cli as prophet_cli
from world_modality_core.prophet.saved_prophet import ProphetCheckpoint

# lerobot-train.


def train_options(tiny, output: Path) -> list[str]:
    policy = {"type": "world_A", "companion.root": tiny.companion_root, "use_language": False, **SMALL, "dropout": 0.1}
    return [
        f"--dataset.repo_id={tiny.source_repo_id}", f"--dataset.root={tiny.source_root}", f"--output_dir={output}",
        "--steps=6", "--batch_size=4", "--num_workers=0", "--save_freq=2", "--env_eval_freq=0",
        "--seed=7", *(f"--policy.{name}={value}" for name, value in policy.items()),
    ]  # fmt: skip


def resume_options(output: Path, checkpoint: str = "last") -> list[str]:
    return [
        "--resume=true",
        f"--config_path={output / 'checkpoints' / checkpoint / 'pretrained_model/train_config.json'}",
    ]


def train():
    from lerobot.scripts.lerobot_train import main

    main()


def assert_as_uninterrupted(output: Path, whole: Path) -> None:
    name = "checkpoints/000006/pretrained_model/model.safetensors"
    ours, expected = load_file(output / name), load_file(whole / name)
    assert ours.keys() == expected.keys() and ours["train_step"] == 6
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key
    assert (output / "checkpoints/last").resolve().name == "000006"


@pytest.fixture(scope="module")
def trained(tiny_companion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    done = run(train, *train_options(tiny_companion, folder / "run"), log=folder / "log")
    assert done.status == 0, done.err[-3000:]
    return folder / "run"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("event", "part", "there"),
    [
        # while the second checkpoint's training state, after its weights, or the link to it is written
        ("open", "000004/training_state/training_step", "000002"),
        ("os.symlink", "000004", None),
    ],
)
def test_a_training_that_is_killed_while_it_saves_goes_on(trained, tiny_companion, tmp_path, event, part, there):
    output = tmp_path / "run"
    at = At(event, part)
    killed = run(train, *train_options(tiny_companion, output), log=tmp_path / "log", at=at)
    assert killed.status == 128 + signal.SIGKILL and (output / "checkpoints/000004").exists()
    last = output / "checkpoints/last"
    assert (last.resolve().name if last.is_symlink() else None) == there
    done = run(train, *resume_options(output, there and "last" or "000004"), log=tmp_path / "log")
    assert done.status == 0, done.err[-3000:]
    assert_as_uninterrupted(output, trained)


@pytest.mark.slow
def test_a_training_whose_disk_is_full_goes_on_from_its_last_checkpoint(trained, tiny_companion, tmp_path):
    n_checkpoint = sum(len(content) for content in tree(trained / "checkpoints/000002").values())
    with small_disk(tmp_path / "disk", 8 * n_checkpoint + (1 << 20)) as disk:
        ballast = fill(disk, int(1.7 * n_checkpoint))
        done = run(train, *train_options(tiny_companion, disk / "run"), log=tmp_path / "log")
        # LeRobot's own trainer: it ends with a traceback, whose last line is of the full disk.
        assert done.status == 1 and "No space left on device" in done.err
        assert (disk / "run/checkpoints/last").resolve().name == "000002"
        ballast.unlink()
        done = run(train, *resume_options(disk / "run"), log=tmp_path / "log")
        assert done.status == 0, done.err[-3000:]
        assert_as_uninterrupted(disk / "run", trained)


# wm-prophet.


def prophet_options(tiny, output: Path) -> list[str]:
    return [
        f"--companions={tiny.companion_root}", f"--sources={tiny.source_root}", f"--output_dir={output}", "--steps=12",
        "--prophet.d_model=16", "--prophet.n_layers=1", "--prophet.n_heads=2", "--n_future_steps=2", "--batch_size=8",
        "--eval_freq=4", "--save_freq=5", "--eval_split=0.25", "--device=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def prophet(tiny_companion, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prophet")
    done = run(prophet_cli.main, *prophet_options(tiny_companion, folder / "P"), log=folder / "log")
    assert done.status == 0, done.err[-3000:]
    return tree(folder / "P")


def assert_goes_on(tiny, output: Path, log: Path, whole: dict[str, bytes]) -> None:
    done = run(prophet_cli.main, *prophet_options(tiny, output), log=log)
    assert done.status == 0, done.err[-3000:]
    assert tree(output) == whole


@pytest.mark.parametrize("kb_left", [0, 60])
def test_a_prophet_on_a_full_disk(prophet, tiny_companion, tmp_path, kb_left):
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        ballast = fill(disk, kb_left << 10)
        done = run(prophet_cli.main, *prophet_options(tiny_companion, disk / "P"), log=tmp_path / "log")
        assert done.status == 1
        assert done.told.startswith(f"wm-prophet: {disk / 'P'}") and "no room left" in done.told
        ballast.unlink()
        assert_goes_on(tiny_companion, disk / "P", tmp_path / "log", prophet)


def test_a_prophet_that_is_killed_at_its_first_file_goes_on(prophet, tiny_companion, tmp_path):
    at = At("os.rename", "config.json")
    done = run(prophet_cli.main, *prophet_options(tiny_companion, tmp_path / "P"), log=tmp_path / "log", at=at)
    assert done.status == 137 and any((tmp_path / "P").iterdir())
    assert_goes_on(tiny_companion, tmp_path / "P", tmp_path / "log", prophet)


def test_a_prophet_and_ctrl_c(prophet, tiny_companion, tmp_path):
    at = At("os.rename", "resume.safetensors", signal.SIGINT)
    done = run(prophet_cli.main, *prophet_options(tiny_companion, tmp_path / "P"), log=tmp_path / "log", at=at)
    assert done.status == 130 and done.told == "wm-prophet: stopped; the same command goes on from here"
    assert_goes_on(tiny_companion, tmp_path / "P", tmp_path / "log", prophet)


@pytest.mark.parametrize("name", ["P", "link"])
def test_one_prophet_at_a_time(prophet, tiny_companion, tmp_path, name):
    (tmp_path / "link").symlink_to(tmp_path / "P")  # leads to a folder that isn't there yet
    with FileLock(tmp_path / ".P.lock"):
        done = run(prophet_cli.main, *prophet_options(tiny_companion, tmp_path / name), log=tmp_path / "log")
        assert done.status == 1 and "another wm-prophet is writing there" in done.told
        assert not any((tmp_path / "P").iterdir())
    assert_goes_on(tiny_companion, tmp_path / "P", tmp_path / "log", prophet)


def _cut(path: Path, share: float = 0.6) -> Path:
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    return path


def test_a_damaged_prophet_is_named(prophet, tiny_companion, tmp_path):
    output = tmp_path / "P"
    at = At("os.rename", "resume.safetensors", nth=2)
    assert run(prophet_cli.main, *prophet_options(tiny_companion, output), log=tmp_path / "log", at=at).status > 128
    path = _cut(output / "state/resume.safetensors")
    done = run(prophet_cli.main, *prophet_options(tiny_companion, output), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith(f"wm-prophet: {path} can't be read") and "delete it" in done.told
    path.unlink()  # as it says
    assert_goes_on(tiny_companion, output, tmp_path / "log", prophet)
    _cut(output / "model.safetensors")
    with pytest.raises(ValueError, match=rf"^{output}/model\.safetensors can't be read"):
        ProphetCheckpoint.read(output, "prophet.init_from").weights()


@pytest.mark.parametrize("name", ["data/chunk-000/file-000.parquet", "meta/world_stats.safetensors"])
def test_a_damaged_companion_is_named(tiny_companion, tmp_path, name):
    root = shutil.copytree(tiny_companion.companion_root, tmp_path / "world", ignore=shutil.ignore_patterns("cache"))
    _cut(root / name)
    options = prophet_options(tiny_companion._replace(companion_root=root), tmp_path / "P")
    done = run(prophet_cli.main, *options, log=tmp_path / "log")
    assert done.status == 1 and str(root / name) in done.told and not (tmp_path / "P").exists()


# wm-intervene.


@pytest.fixture(scope="module")
def checkpoint(tiny_companion, tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "F/pretrained_model", tiny_companion)


def intervene_options(checkpoint: Path, output: Path) -> list[str]:
    return [
        f"--policy.path={checkpoint}", f"--output_dir={output}", "--sources=zero,copy_current", "--n_bootstrap=200",
        "--batch_size=16", "--n_frames=16", "--device=cpu",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def record(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("intervene")
    done = run(intervene_cli.main, *intervene_options(checkpoint, folder / "I"), log=folder / "log")
    assert done.status == 0, done.err[-3000:]
    return tree(folder / "I", "interventions.json")


@pytest.mark.parametrize(
    ("part", "number", "again_s", "status"),
    [
        ("request.json", signal.SIGKILL, None, 137),
        ("zero.parquet", signal.SIGKILL, None, 137),
        ("clean.parquet", signal.SIGINT, 0.01, 130),
    ],
)
def test_an_intervention_that_is_stopped_goes_on(record, checkpoint, tmp_path, part, number, again_s, status):
    output, at = tmp_path / "I", At("os.rename", part, number, again_s=again_s)
    done = run(intervene_cli.main, *intervene_options(checkpoint, output), log=tmp_path / "log", at=at)
    assert done.status == status and "Traceback" not in done.err and not (output / "interventions.json").exists()
    assert run(intervene_cli.main, *intervene_options(checkpoint, output), log=tmp_path / "log").status == 0
    assert tree(output, "interventions.json") == record


def test_an_intervention_on_a_full_disk_damaged_and_twice(record, checkpoint, tmp_path):
    with small_disk(tmp_path / "disk", 2 << 20) as disk:
        options = intervene_options(checkpoint, disk / "I")
        ballast = fill(disk, 20 << 10)
        done = run(intervene_cli.main, *options, log=tmp_path / "log")
        assert done.status == 1 and done.told.startswith(f"wm-intervene: {disk / 'I'}") and "no room" in done.told
        ballast.unlink()
        assert run(intervene_cli.main, *options, log=tmp_path / "log").status == 0
        assert tree(disk / "I", "interventions.json") == record
        path = _cut(disk / "I/parts/zero.parquet")
        done = run(intervene_cli.main, *options, log=tmp_path / "log")
        assert done.status == 1 and done.told.startswith(f"wm-intervene: {path} can't be read as parquet")
        path.unlink()
        with FileLock(disk / "I/parts/.lock"):
            done = run(intervene_cli.main, *options, log=tmp_path / "log")
            assert done.status == 1 and "another wm-intervene is writing there" in done.told
        assert run(intervene_cli.main, *options, log=tmp_path / "log").status == 0
        assert tree(disk / "I", "interventions.json") == record


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "train_config.json"])
def test_a_damaged_policy_is_named(checkpoint, tmp_path, name):
    damaged = shutil.copytree(checkpoint, tmp_path / "policy")
    _cut(damaged / name)
    done = run(intervene_cli.main, *intervene_options(damaged, tmp_path / "I"), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith("wm-intervene: ") and str(damaged) in done.told
    assert not os.path.exists(tmp_path / "I")
