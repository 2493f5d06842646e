"""`wm-record`: what is in the dataset, replayed in the simulator; resuming; refusing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("metaworld")

from lerobot.datasets.lerobot_dataset import LeRobotDataset  # noqa: E402

from lerobot_policy_world_modality.envs.metaworld_light import MetaworldLightEnv  # noqa: E402
from lerobot_policy_world_modality.record import expert_episode  # noqa: E402
from lerobot_policy_world_modality.record.attempts import Attempts  # noqa: E402
from lerobot_policy_world_modality.record.cli import main, record  # noqa: E402
from lerobot_policy_world_modality.record.merging import RECORD_FILE  # noqa: E402
from lerobot_policy_world_modality.record.record_options import RecordConfig, RecordEnv, RecordOutput  # noqa: E402
from tests import fork_server  # noqa: E402
from tests.faults.commands import At, start, wait  # noqa: E402
from world_modality_core.io.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.sim

SIZE = 48
TASKS = ["reach-v3", "push-v3"]


def config(root: Path, **options) -> RecordConfig:
    options = {"tasks": ",".join(TASKS), "n_episodes": 2, "n_workers": 1, **options}
    chosen = {name: options.pop(name) for name in ("episode_length", "hide_goal_after") if name in options}
    env = RecordEnv(observation_height=SIZE, observation_width=SIZE, **chosen)
    return RecordConfig(output=RecordOutput("tests/recorded", str(root)), env=env, **options)


def load(root: Path) -> LeRobotDataset:
    return LeRobotDataset("tests/recorded", root=root, video_backend="pyav")


def columns(root: Path) -> dict[str, np.ndarray]:
    """Everything but the pictures."""
    dataset = load(root).hf_dataset.with_format("numpy")
    return {name: np.stack(list(dataset[name])) for name in dataset.column_names}


def pictures(root: Path) -> np.ndarray:
    dataset = load(root)
    return np.stack([np.asarray(dataset[i]["observation.image"]) for i in range(0, len(dataset), 7)])


def assert_same_recording(one: Path, other: Path) -> None:
    first, second = columns(one), columns(other)
    assert first.keys() == second.keys()
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    np.testing.assert_array_equal(pictures(one), pictures(other))
    assert (one / RECORD_FILE).read_text() == (other / RECORD_FILE).read_text()
    stats = [(root / "meta/stats.json").read_text() for root in (one, other)]
    assert stats[0] == stats[1] and list(json.loads(stats[0])) == sorted(json.loads(stats[0]))  # not those of a set


def replay_env(task: str) -> MetaworldLightEnv:
    return MetaworldLightEnv(task=task, observation_height=SIZE, observation_width=SIZE)


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return record(config(tmp_path_factory.mktemp("clean") / "data"))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory) -> Path:
    return record(config(tmp_path_factory.mktemp("noisy") / "data", action_noise=0.2, n_frames_after_success=0))


def test_a_killed_recording_asks_for_the_room_that_the_rest_needs(tmp_path, monkeypatch):
    from collections import namedtuple

    from lerobot_policy_world_modality.record import cli

    cfg, staging = config(tmp_path / "data", tasks="reach-v3"), tmp_path / "data.recording"
    attempts = [Attempts("reach-v3", 0, 2)]
    asked = []
    monkeypatch.setattr(cli, "check_room", lambda folder, n_bytes, remedy: asked.append(n_bytes))
    cli._check_room(cfg, attempts, staging)
    for seed in range(2):
        folder = staging / f"reach-v3/{seed:06d}"
        folder.mkdir(parents=True)
        (folder / "part").write_bytes(bytes(1000))
        attempts[0].add({"task": "reach-v3", "seed": seed, "success": True, "n_frames": 9})
        cli._check_room(cfg, attempts, staging)
    (staging / "merged/0/0").mkdir(parents=True)
    (staging / "merged/0/0/part").write_bytes(bytes(700))  # thrown away before it is merged again
    cli._check_room(cfg, attempts, staging)
    assert asked[1] == asked[0] / 2 + 1000 and asked[2:] == [2000, 1300]
    monkeypatch.undo()
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, 1000))
    with pytest.raises(ConfigError, match="0.0 MB more are needed and 0.0 MB are free on that disk; make room"):
        cli._check_room(cfg, attempts, staging)
    shutil.rmtree(staging)
    with pytest.raises(ConfigError, match="MB more are needed"):
        record(cfg)
    assert not (tmp_path / "data").exists()


def test_it_is_a_plain_lerobot_dataset_of_all_tasks(clean):
    dataset, data = load(clean), columns(clean)
    assert dataset.fps == 80
    assert dataset.num_episodes == 4 and dataset.meta.total_tasks == 2
    np.testing.assert_array_equal(data["index"], np.arange(len(dataset)))
    np.testing.assert_array_equal(np.unique(data["episode_index"]), np.arange(4))
    assert (np.diff(data["episode_index"]) >= 0).all()
    item = dataset[0]
    assert item["observation.image"].shape == (3, SIZE, SIZE) and item["task"] == "Reach a goal position"
    assert dataset[len(dataset) - 1]["task"] == "Push the puck to a goal"
    assert set(dataset.meta.stats) >= {"observation.image", "observation.state", "action"}


def test_replaying_the_actions_gives_the_recorded_states_and_pictures(clean):
    dataset, data = load(clean), columns(clean)
    for episode in range(4):
        rows = np.flatnonzero(data["episode_index"] == episode)
        seed = int(data["episode_seed"][rows[0]])
        assert seed == episode % 2 and (data["episode_seed"][rows] == seed).all()
        env = replay_env(TASKS[episode // 2])
        observation, _ = env.reset(seed=seed)
        for i in rows:
            np.testing.assert_array_equal(data["observation.state"][i], observation["agent_pos"].astype(np.float32))
            if i % 10 == 0:  # the codec's loss, measured about 4 of 255; a neighbouring scene is much further off
                recorded = dataset[int(i)]["observation.image"].numpy().transpose(1, 2, 0) * 255
                assert np.abs(recorded - observation["pixels"]).mean() < 7
            observation, reward, _, _, info = env.step(data["action"][i])
            assert data["next.reward"][i] == np.float32(reward)
            assert data["next.success"][i] == info["is_success"]
        env.close()
        successes = data["next.success"][rows]
        assert not successes[:-6].any() and successes[-6]  # success, then n_frames_after_success=5 more


def test_noise_moves_the_robot_and_labels_stay_the_experts(clean, noisy):
    data, undisturbed = columns(noisy), columns(clean)
    assert np.abs(data["action"]).max() <= 1
    for episode in range(4):
        rows = np.flatnonzero(data["episode_index"] == episode)
        env = replay_env(TASKS[episode // 2])
        env.reset(seed=int(data["episode_seed"][rows[0]]))
        label = env.expert_action()
        np.testing.assert_array_equal(data["action"][rows[0]], label)
        observation, *_ = env.step(label)  # the clean action, which is not what was executed
        gap = np.abs(observation["agent_pos"][:3] - data["observation.state"][rows[1]][:3]).max()
        assert 1e-5 < gap < 0.01
        assert data["next.success"][rows[-1]] and not data["next.success"][rows[:-1]].any()
        env.close()
    # Same seeds, same scenes: the first label is the clean recording's.
    firsts = [np.flatnonzero(d["episode_index"] == 1)[0] for d in (data, undisturbed)]
    np.testing.assert_array_equal(data["action"][firsts[0]], undisturbed["action"][firsts[1]])


def test_two_workers_record_the_same(clean, tmp_path):
    assert_same_recording(record(config(tmp_path / "data", n_workers=2)), clean)


def test_a_second_run_changes_nothing_and_other_options_are_refused(clean, capsys):
    before = {path: path.stat().st_mtime_ns for path in clean.rglob("*")}
    record(config(clean))
    assert "already" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="other options.*action_noise: saved 0.0, asked for 0.3.*--output.root"):
        record(config(clean, action_noise=0.3))
    with pytest.raises(ConfigError, match="n_episodes: saved 2, asked for 3"):
        record(config(clean, n_episodes=3))
    assert {path: path.stat().st_mtime_ns for path in clean.rglob("*")} == before


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="was not made by wm-record"):
        record(config(tmp_path))


def test_killed_and_started_again_it_ends_with_the_same_dataset(clean, tmp_path, monkeypatch):
    root, log = tmp_path / "data", tmp_path / "log"
    staging = tmp_path / "data.recording"
    words = [f"--tasks={','.join(TASKS)}", "--n_episodes=2", "--n_workers=2", "--output.repo_id=tests/recorded"]
    words += [f"--output.root={root}", f"--env.observation_height={SIZE}", f"--env.observation_width={SIZE}"]
    # SIGKILL, to the recorder alone, when it hears of the first episode; workers are given three at first.
    at = At("pickle.find_class", "_ResultItem")
    recorder = start("lerobot_policy_world_modality.record.cli:main", *words, log=log, at=at)
    killed, deadline = wait(recorder, log), time.monotonic() + 300
    assert killed.status == 128 + signal.SIGKILL, killed.err
    with pytest.raises(ProcessLookupError):  # its workers notice
        while time.monotonic() < deadline:
            os.killpg(recorder, 0)
            time.sleep(0.05)
    n_done = len(list(staging.glob("*/*.json")))
    assert 1 <= n_done < 4 and not root.exists()

    with pytest.raises(ConfigError, match="unfinished work of another request.*action_noise"):
        record(config(root, action_noise=0.1))

    recorded = []
    real = expert_episode.record_episode
    monkeypatch.setattr(expert_episode, "record_episode", lambda job: recorded.append(job) or real(job))
    record(config(root))
    assert len(recorded) == 4 - n_done  # what was done is not done again
    assert_same_recording(root, clean)
    assert not staging.exists()


def test_failures_are_counted_and_replaced_by_the_next_seeds(tmp_path):
    """With a cap between the lengths of its episodes, the expert fails in some scenes."""
    root = record(config(tmp_path / "data", tasks="reach-v3", n_episodes=3, episode_length=40))
    report = json.loads((root / RECORD_FILE).read_text())["tasks"]["reach-v3"]
    data = columns(root)
    assert report["n_kept"] == 3 and report["n_failed"] >= 1
    assert sorted(report["kept_seeds"] + report["failed_seeds"]) == list(range(3 + report["n_failed"]))
    firsts = [np.flatnonzero(data["episode_index"] == i)[0] for i in range(3)]
    assert data["episode_seed"][firsts].tolist() == report["kept_seeds"]
    assert np.bincount(data["episode_index"]).max() <= 40
    assert report["mean_frames"] == pytest.approx(len(data["index"]) / 3)


def outcome(seed: int, success: bool) -> dict:
    return {"task": "push-v3", "seed": seed, "success": success, "n_frames": 10}


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 2, 0, 3, 1]])
def test_the_kept_seeds_do_not_depend_on_the_order_of_the_attempts(order):
    attempts = Attempts("push-v3", start_seed=0, n_episodes=3)
    assert attempts.missing() == [0, 1, 2]
    for seed in order:
        attempts.add(outcome(seed, success=seed not in (1, 2)))
    assert attempts.missing() == []
    assert attempts.kept() == [0, 3, 4] and attempts.failed() == [1, 2]


def test_an_expert_that_always_fails_stops_the_recording():
    attempts = Attempts("push-v3", start_seed=100, n_episodes=3)
    with pytest.raises(ConfigError, match="push-v3: the expert succeeded in 0 of 20.*--action_noise"):
        for seed in range(100, 140):
            attempts.add(outcome(seed, success=False))
    assert len(attempts.outcomes) == 20


def test_a_root_that_is_a_link_is_followed(tmp_path, clean):
    """`outputs -> /scratch`: the folder itself, one above it, and one that is not there yet."""
    for name, target in (("itself", "a"), ("above/data", "b"), ("itself2", "c/new")):
        (tmp_path / target).parent.mkdir(exist_ok=True)
        if "new" not in target:
            (tmp_path / target).mkdir()
        (tmp_path / name.split("/")[0]).symlink_to(tmp_path / target)
        root = record(config(tmp_path / name, tasks="reach-v3", n_episodes=1))
        assert (tmp_path / name.split("/")[0]).is_symlink()
        assert root == (tmp_path / name).resolve() and root.is_relative_to(tmp_path / target)
        assert load(tmp_path / name).num_episodes == 1
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"a", "above", "b", "c", "itself", "itself2"}  # no staging


def test_push_back_has_an_instruction_of_its_own(tmp_path):
    root = record(config(tmp_path / "data", tasks="push-back-v3", n_episodes=1))
    path = root / RECORD_FILE
    assert load(root)[0]["task"] == "Pull the puck back to a goal"
    path.write_text(path.read_text().replace("Pull the puck back to a goal", "Push the puck to a goal"))  # by 0.1.0
    said = "instructions.push-back-v3: saved Push the puck to a goal, asked for Pull the puck"
    with pytest.raises(ConfigError, match=said):
        record(config(root, tasks="push-back-v3", n_episodes=1))


def test_a_recording_goes_on_in_the_simulator_that_it_began_with(tmp_path, clean):
    versions = json.loads((clean / RECORD_FILE).read_text())["versions"]
    assert versions["mujoco"] == metadata.version("mujoco")
    staging = tmp_path / "data.recording"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expert_episode, "record_episode", lambda job: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            record(config(tmp_path / "data"))
    assert not staging.exists()  # nothing was recorded
    staging.mkdir()
    begun = json.loads((clean / RECORD_FILE).read_text()) | {"tasks": TASKS, "instructions": {}}
    (staging / "request.json").write_text(json.dumps(begun | {"versions": versions | {"mujoco": "3.3.2"}}))
    with pytest.raises(ConfigError, match=f"versions.mujoco: saved 3.3.2, asked for {versions['mujoco']}"):
        record(config(tmp_path / "data"))


def test_help_imports_no_simulator(tmp_path):
    program = "import sys; from lerobot_policy_world_modality.record import cli; sys.argv = ['wm-record', '--help']\n"
    program += "try: cli.main()\nexcept SystemExit: print('LOADED', *sys.modules)"
    (tmp_path / "program.py").write_text(program)
    text = fork_server.run([sys.executable, tmp_path / "program.py"], capture_output=True, check=True).stdout
    shown, _, loaded = text.partition("LOADED")
    assert "--env.hold_still_for" in shown and "lerobot.configs.video" in loaded.split()
    assert not {"mujoco", "metaworld", "faiss", "statsmodels"} & set(loaded.split())


def test_a_fault_of_ours_keeps_its_traceback_and_a_wrong_option_is_one_line(tmp_path, monkeypatch):
    arguments = ["wm-record", "--tasks=reach-v3", "--output.repo_id=tests/recorded", f"--output.root={tmp_path / 'd'}"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--action_noise=2"])
    with pytest.raises(SystemExit, match="^wm-record: action_noise=2.0: expected 0 to 1"):
        main()
    monkeypatch.setattr(sys, "argv", [*arguments, "--n_workers=1"])
    monkeypatch.setattr(expert_episode, "record_episode", lambda job: [].index(job))
    with pytest.raises(ValueError):
        main()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": "pusch-v3"}, "pusch-v3.*did you mean.*push-v3"),
        ({"n_episodes": 0}, "n_episodes=0"),
        ({"push_to_hub": True}, "^push_to_hub=true: repo_id=.*HF_HUB_OFFLINE forbids.*uploading needs the Hub"),
        ({"action_noise": -1.0}, "action_noise=-1.0"),
        ({"tasks": "reach-v3,button-press-v3", "hide_goal_after": 3}, "button-press-v3 has no goal marker"),
    ],
)
def test_wrong_options_are_named(tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        record(config(tmp_path / "data", **options))
    assert not list(tmp_path.iterdir())
