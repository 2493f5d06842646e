"""wm-record and wm-eval: full disks, Ctrl-C, damaged parts, two at once."""

import signal

import pandas as pd
import pytest
from filelock import FileLock

pytest.importorskip("metaworld")

from lerobot_policy_world_modality import record as record_module  # noqa: E402
from lerobot_policy_world_modality.evaluation.evaluate import evaluate  # noqa: E402
from tests.evaluation.helpers import make_checkpoint, options  # noqa: E402
from tests.faults.commands import At, fill, run, small_disk, tree  # noqa: E402
from world_modality_core.commands import told_in_one_line  # noqa: E402
from world_modality_core.evidence.episodes import read_episodes  # noqa: E402

pytestmark = [pytest.mark.sim, pytest.mark.slow]


def record_options(root) -> list[str]:
    return [
        "--tasks=reach-v3", "--n_episodes=2", "--n_workers=1", "--env.observation_height=32",
        "--env.observation_width=32", "--output.repo_id=tests/recorded", f"--output.root={root}",
    ]  # fmt: skip


def test_a_recording_is_stopped_by_a_full_disk_and_by_ctrl_c_and_goes_on(tmp_path):
    log = tmp_path / "log"
    assert run(record_module.main, *record_options(tmp_path / "whole"), log=log).status == 0
    whole = tree(tmp_path / "whole", "videos")  # the encoder's threads make no two files alike to the byte
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        root = disk / "data"
        ballast = fill(disk, 200 << 10)
        done = run(record_module.main, *record_options(root), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-record: {disk}") and "oom" in done.told
        ballast.unlink()
        at = At("os.rename", "000001.json", signal.SIGINT, again_s=0.02)
        done = run(record_module.main, *record_options(root), log=log, at=at)
        assert done.status == 130 and done.told == "wm-record: stopped; the same command goes on from here"
        assert not root.exists()
        kept = disk / "data.recording/reach-v3/000000.json"
        before = kept.stat().st_mtime_ns
        ballast = fill(disk, 60 << 10)  # in the middle, this time
        done = run(record_module.main, *record_options(root), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-record: {disk}") and "oom" in done.told
        assert kept.stat().st_mtime_ns == before and not root.exists()
        ballast.unlink()
        assert run(record_module.main, *record_options(root), log=log).status == 0
        assert tree(root, "videos") == whole


def test_an_evaluation_is_stopped_by_a_full_disk_and_by_ctrl_c_and_goes_on(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "policies/F/pretrained_model")
    log = tmp_path / "log"

    def evaluation(folder):
        def main():
            with told_in_one_line("wm-eval"):
                evaluate(options(checkpoint, folder, n_episodes=2, batch_size=1, episode_length=12))

        return main

    columns = ["arm", "seed", "init_hash", "success", "steps", "sum_reward", "gate"]
    assert run(evaluation(tmp_path / "whole"), log=log).status == 0
    whole = read_episodes(tmp_path / "whole")[columns]
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        ballast = fill(disk, 24 << 10)
        done = run(evaluation(disk / "eval"), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-eval: {disk / 'eval'}") and "no room left" in done.told
        ballast.unlink()
        at = At("os.rename", "intact-drawer-close-v3-101", signal.SIGINT)
        done = run(evaluation(disk / "eval"), log=log, at=at)
        assert done.status == 130 and done.told == "wm-eval: stopped; the same command goes on from here"
        assert run(evaluation(disk / "eval"), log=log).status == 0
        pd.testing.assert_frame_equal(read_episodes(disk / "eval")[columns], whole)
        with FileLock(disk / "eval/.lock"):
            done = run(evaluation(disk / "eval"), log=log)
            assert done.status == 1 and "another wm-eval is writing" in done.told
        part = sorted((disk / "eval/episodes").glob("*.parquet"))[0]
        part.write_bytes(part.read_bytes()[:100])
        done = run(evaluation(disk / "eval"), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-eval: {part} can't be read as parquet")
        part.unlink()  # its episodes are run again
        assert run(evaluation(disk / "eval"), log=log).status == 0
        pd.testing.assert_frame_equal(read_episodes(disk / "eval")[columns], whole)
