"""wm-record and wm-eval: full disks, Ctrl-C, damaged parts, two at once."""

import signal

import pandas as pd
import pytest
from filelock import FileLock

pytest.importorskip("metaworld")

from tests.evaluation.helpers import SIZE, make_checkpoint  # noqa: E402
from tests.faults.commands import At, fill, run, small_disk, tree  # noqa: E402
from world_modality_core.decoder_notice import NOTICE  # noqa: E402
from world_modality_core.studies.evidence.episode_records import read_episodes  # noqa: E402

pytestmark = [pytest.mark.sim, pytest.mark.slow]


RECORD = "lerobot_policy_world_modality.record.cli:main"
EVAL = "lerobot_policy_world_modality.evaluation.cli:main"


def record_options(root) -> list[str]:
    return [
        "--tasks=reach-v3", "--n_episodes=2", "--n_workers=1", "--env.observation_height=32",
        "--env.observation_width=32", "--output.repo_id=tests/recorded", f"--output.root={root}",
    ]  # fmt: skip


def test_a_recording_is_stopped_by_a_full_disk_and_by_ctrl_c_and_goes_on(tmp_path, no_ffmpeg):
    log = tmp_path / "log"
    done = run(RECORD, *record_options(tmp_path / "whole"), log=log)
    assert done.status == 0 and NOTICE in done.err and done.err.count("torchcodec") == 1
    whole = tree(tmp_path / "whole", "videos")  # the encoder's threads make no two files alike to the byte
    with small_disk(tmp_path / "disk", 64 << 20) as disk:
        root = disk / "data"
        ballast = fill(disk, 200 << 10)
        done = run(RECORD, *record_options(root), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-record: {disk}") and "oom" in done.told
        ballast.unlink()
        at = At("os.rename", "000001.json", signal.SIGINT, again_s=0.02)
        done = run(RECORD, *record_options(root), log=log, at=at)
        assert done.status == 130 and done.told == "wm-record: stopped; the same command goes on from here"
        assert not root.exists()
        kept = disk / "data.recording/reach-v3/000000.json"
        before = kept.stat().st_mtime_ns
        ballast = fill(disk, 60 << 10)  # in the middle, this time
        done = run(RECORD, *record_options(root), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-record: {disk}") and "oom" in done.told
        assert kept.stat().st_mtime_ns == before and not root.exists()
        ballast.unlink()
        assert run(RECORD, *record_options(root), log=log).status == 0
        assert tree(root, "videos") == whole


def test_an_evaluation_is_stopped_by_a_full_disk_and_by_ctrl_c_and_goes_on(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "policies/F/pretrained_model")
    log = tmp_path / "log"

    def evaluation(folder):
        return [
            f"--policy.path={checkpoint}", "--env.type=metaworld_light", "--env.task=drawer-close-v3",
            "--env.episode_length=12", f"--env.observation_height={SIZE}", f"--env.observation_width={SIZE}",
            "--eval.n_episodes=2", "--eval.batch_size=1", "--eval.use_async_envs=false", "--seed=100", "--train_seed=0",
            "--policy.device=cpu", f"--output_dir={folder}",
        ]  # fmt: skip

    columns = ["arm", "seed", "init_hash", "success", "steps", "sum_reward", "gate"]
    assert run(EVAL, *evaluation(tmp_path / "whole"), log=log).status == 0
    whole = read_episodes(tmp_path / "whole")[columns]
    with small_disk(tmp_path / "disk", 4 << 20) as disk:
        ballast = fill(disk, 24 << 10)
        done = run(EVAL, *evaluation(disk / "eval"), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-eval: {disk / 'eval'}") and "no room left" in done.told
        ballast.unlink()
        at = At("os.rename", "intact-drawer-close-v3-101", signal.SIGINT)
        done = run(EVAL, *evaluation(disk / "eval"), log=log, at=at)
        assert done.status == 130 and done.told == "wm-eval: stopped; the same command goes on from here"
        assert run(EVAL, *evaluation(disk / "eval"), log=log).status == 0
        pd.testing.assert_frame_equal(read_episodes(disk / "eval")[columns], whole)
        with FileLock(disk / "eval/.lock"):
            done = run(EVAL, *evaluation(disk / "eval"), log=log)
            assert done.status == 1 and "another wm-eval is writing" in done.told
        part = sorted((disk / "eval/episodes").glob("*.parquet"))[0]
        part.write_bytes(part.read_bytes()[:100])
        done = run(EVAL, *evaluation(disk / "eval"), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-eval: {part} can't be read as parquet")
        part.unlink()  # its episodes are run again
        assert run(EVAL, *evaluation(disk / "eval"), log=log).status == 0
        pd.testing.assert_frame_equal(read_episodes(disk / "eval")[columns], whole)
