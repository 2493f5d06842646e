"""`wm-monitor scan` finds the episode in which the camera broke, shows it, and names it for LeRobot's tools."""

import json
import shlex
import shutil
import sys

import numpy as np
import pytest
from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets import LeRobotDataset
from lerobot.scripts import lerobot_edit_dataset

from tests.fixtures_datasets import make_dataset, scene_frame
from tests.monitor.conftest import LENGTHS
from world_modality_core.io.errors import ConfigError
from world_modality_core.monitor.cli import make_parser
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.monitor.scan import scan, strangest
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute


def broken(episode, t, camera, size):
    """Of episode 2, the frames from the sixth on are noise; else as what the monitor knows."""
    noise = np.random.default_rng(t).integers(0, 256, (size, size, 3), dtype=np.uint8)
    return noise if episode == 2 and t > 4 else scene_frame(episode, t, camera, size)


@pytest.fixture(scope="module")
def lowered(watched, tmp_path_factory):
    """The monitor with its line at 0, as if successful episodes looked alike (their backgrounds differ)."""
    monitor = Monitor.load(watched.monitor)
    monitor.calibration_tensors.quantile.zero_()
    monitor.calibration_tensors.maxima[:, :, monitor.score_names.index("nearest_in_phase")] /= 10
    monitor.save(folder := tmp_path_factory.mktemp("lowered"))
    return folder


@pytest.fixture(scope="module")
def recorded(watched, tmp_path_factory):
    """A dataset and its companion, by the encoder and PCA of the monitor's; states and actions as in its first."""
    base = tmp_path_factory.mktemp("recorded")
    make_dataset(base / "data", "tests/new", LENGTHS[:4], ["observation.image"], False, 32, broken)
    precompute(
        PrecomputeConfig(
            dataset=SourceConfig("tests/new", str(base / "data")),
            output=OutputConfig("tests/new_world", str(base / "companion")),
            reuse_from=str(watched.companion),
            device="cpu",
            num_workers=0,
        )
    )
    return base


def options(monitor, recorded, out, *more):
    named = [f"--companion={recorded / 'companion'}", f"--dataset={recorded / 'data'}", f"--output_dir={out}"]
    return make_parser().parse_args(["scan", str(monitor), *named, *more])


def test_the_episode_whose_camera_broke_is_found_shown_and_named(lowered, recorded, tmp_path, capsys):
    found = scan(options(lowered, recorded, tmp_path, "--n_moments=3"))
    first = found["moments"][0]
    assert first["episode"] == 2 and first["step"] > 4 and first["level"] > first["line"]
    assert found["episodes"] == [e for e, level in found["levels"].items() if level > 0] and 2 in found["episodes"]
    assert max(found["levels"], key=found["levels"].get) == 2
    assert json.loads((tmp_path / "scan.json").read_text())["episodes"] == found["episodes"]
    page = (tmp_path / "scan.html").read_text()
    assert page.count('<div class="moment">') == 3 and page.count("data:image/jpeg") >= 9 and "Episode 2," in page
    said = capsys.readouterr().out
    kept = json.dumps([e for e in range(4) if e not in found["episodes"]], separators=(",", ":"))
    assert f'--dataset.episodes="{kept}"' in said
    assert "episodes" in TrainPipelineConfig.__dataclass_fields__["dataset"].type.__dataclass_fields__


def test_what_it_says_to_type_writes_a_copy_without_the_episodes_with_an_alarm(
    lowered, recorded, tmp_path, capsys, monkeypatch
):
    mine = tmp_path / "my recordings"
    shutil.copytree(recorded, mine)
    found = scan(options(lowered, mine, tmp_path / "out"))
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "lerobot-edit-dataset" in line]
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    lerobot_edit_dataset.main()
    assert LeRobotDataset("tests/new_kept", root=mine / "data_kept").num_episodes == 4 - len(found["episodes"])


def test_strangest_moments_are_apart():
    excess = [np.array([0.0, 9, 10, 9, 0, 0, 0, 0]), np.array([1.0, 1, 1, 1, 1, 1, 1, 5])]
    assert strangest(excess, 3) == [(0, 2), (1, 7), (1, 2)]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ("--n_moments=0", "n_moments=0: expected at least 1"),
        ("--dataset=nowhere", "no dataset at 'nowhere'"),
        ("--companion=nowhere", "companion='nowhere'"),
    ],
)
def test_wrong_options_are_refused_by_name(lowered, recorded, tmp_path, changed, said):
    with pytest.raises(ConfigError, match=said):
        scan(options(lowered, recorded, tmp_path / "no", changed))
    assert not (tmp_path / "no").exists()
