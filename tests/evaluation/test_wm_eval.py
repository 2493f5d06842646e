"""`wm-eval` in Meta-World: the same scenes for every arm, LeRobot's own results, nothing lost, nothing run twice."""

import json
import multiprocessing
import shutil
import signal
from concurrent.futures import BrokenExecutor

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from filelock import FileLock
from lerobot.envs import make_env, make_env_pre_post_processors
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.scripts.lerobot_eval import eval_policy_all

from lerobot_policy_world_modality.envs.metaworld_light import INSTRUCTIONS
from lerobot_policy_world_modality.evaluation import evaluate as module
from lerobot_policy_world_modality.evaluation.cli import format_table, repeated_scenes
from lerobot_policy_world_modality.evaluation.evaluate import evaluate, reduce_rollout
from tests.evaluation.helpers import SIZE, make_checkpoint, options
from tests.faults.commands import At, run
from world_modality_core.configs import MemoryConfig, PastConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.episode_records import EpisodeWriter, read_episodes, read_eval_infos

pytestmark = pytest.mark.sim

ARMS = "shuffle,gate_closed,intact"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint(tmp_path_factory.mktemp("policies") / "F_tiny" / "pretrained_model")


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """An evaluation of three scenes and three arms, two scenes at a time; do not write there."""
    folder = tmp_path_factory.mktemp("finished")
    rows = evaluate(options(checkpoint, folder, arms=ARMS, videos="first:1"))
    return folder, rows


@pytest.fixture
def copy(finished, tmp_path):
    """The same, to write in."""
    return shutil.copytree(finished[0], tmp_path / "copy")


def test_arms_see_the_same_scenes_although_their_episodes_end_at_other_times(finished):
    steps = finished[1].pivot(index="seed", columns="arm", values="steps")
    hashes = finished[1].pivot(index="seed", columns="arm", values="init_hash")
    assert hashes.shape == (3, 3) and (hashes.nunique(axis=1) == 1).all()
    # Else the two lines above could not fail: scenes differ, and the arms left each other's rhythm.
    assert hashes["intact"].nunique() == 3
    assert (steps["intact"] != steps["gate_closed"]).any() and (steps["intact"] != steps["shuffle"]).any()


def test_results_are_those_of_lerobot_eval(checkpoint, finished, tmp_path):
    cfg = options(checkpoint, tmp_path)
    policy = make_policy(cfg.policy, env_cfg=cfg.env)
    processors = make_pre_post_processors(cfg.policy, pretrained_path=checkpoint)
    env_processors = make_env_pre_post_processors(env_cfg=cfg.env, policy_cfg=cfg.policy)
    theirs = eval_policy_all(
        make_env(cfg.env, n_envs=2), policy, *env_processors, *processors, n_episodes=3, start_seed=cfg.seed
    )["per_task"][0]["metrics"]
    ours = finished[1].query("arm == 'intact'").sort_values("seed")
    assert ours["success"].tolist() == theirs["successes"]
    assert ours["sum_reward"].tolist() == theirs["sum_rewards"]
    assert ours["max_reward"].tolist() == theirs["max_rewards"]
    assert 0 < ours["sum_reward"].nunique() == 3
    assert ours["action_jerk"].between(0, 10, inclusive="neither").all()


def test_jerk_is_how_far_actions_leave_a_steady_motion():
    action = torch.tensor([[[0.0], [1.0], [2.0], [3.0], [9.0]], [[0.0], [1.0], [0.0], [1.0], [0.0]]])
    done = torch.tensor([[False, False, False, True, True], [False, False, True, True, True]])
    data = {"action": action, "done": done, "reward": torch.zeros(2, 5), "success": done}
    assert reduce_rollout(data)["action_jerk"].tolist() == [0.0, 2.0]  # what follows the end is not counted


def test_rows_say_what_happened(finished):
    folder, rows = finished
    pd.testing.assert_frame_equal(read_episodes(folder / "episodes.parquet"), read_episodes(folder))
    assert len(rows) == 9 and set(rows["seed"]) == {100, 101, 102}  # the fourth environment's scene is nobody's
    assert rows["success"].any() and (rows["steps"] <= 40).all() and (rows["wall_s"] > 0).all()
    assert (rows["instruction"] == rows["task"].map(INSTRUCTIONS)).all()
    assert (rows["n_plans"] == -(-rows["steps"] // 2)).all() and (rows["n_action_steps"] == 2).all()
    gates = rows.groupby("arm")["gate"].unique().map(list)
    assert gates["gate_closed"] == [0] and gates["intact"] == pytest.approx([np.tanh(1.0)])
    assert all(len(mass) == 2 and sum(mass) == pytest.approx(1) for mass in rows["attention_mass"])
    first = rows.iloc[0]
    assert (first["model"], first["policy_type"], first["tier"]) == ("F_tiny", "world_F", "easy")
    assert (first["image_height"], first["episode_length"]) == (SIZE, 40) and first["renderer"].startswith("egl")
    filmed = rows[rows["video"].notna()]
    assert set(filmed["seed"]) == {100} and all((folder / video).stat().st_size for video in filmed["video"])
    info = read_eval_infos(folder)[0]
    assert info["arms"] == ["intact", "shuffle", "gate_closed"] and info["env"]["type"] == "metaworld_light"
    assert info["checkpoint_hash"] == first["checkpoint"] and info["versions"]["lerobot"]
    table = format_table(rows)
    assert table.splitlines()[1].split()[:2] == ["drawer-close-v3", "intact"] and len(table.splitlines()) == 4


def test_what_is_done_is_not_run_again(copy, checkpoint, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*-100.parquet")}
    seeds, rollout = [], module.rollout
    monkeypatch.setattr(module, "rollout", lambda *a, **k: (seeds.append(k["seeds"]), rollout(*a, **k))[1])
    rows = evaluate(options(checkpoint, copy, arms="intact,shuffle,gate_closed"))
    assert seeds == [] and len(rows) == 9
    rows = evaluate(options(checkpoint, copy, arms="intact", n_episodes=5))  # goes on, two more scenes
    assert seeds == [[102, 103], [104, 105]] and len(rows) == 11
    assert {path: path.stat().st_mtime_ns for path in before} == before and before
    assert read_eval_infos(copy)[0]["n_episodes"] == 5


def test_an_interrupted_batch_is_run_again_and_gives_the_same(checkpoint, finished, tmp_path, monkeypatch):
    write, written = EpisodeWriter.write, []

    def stop_at_second(self, rows):
        if written:
            raise KeyboardInterrupt
        written.append(write(self, rows))

    monkeypatch.setattr(EpisodeWriter, "write", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        evaluate(options(checkpoint, tmp_path))
    monkeypatch.setattr(EpisodeWriter, "write", write)
    rows = evaluate(options(checkpoint, tmp_path))
    whole = finished[1].query("arm == 'intact'")
    columns = ["seed", "init_hash", "success", "steps", "sum_reward", "gate", "attention_entropy"]
    pd.testing.assert_frame_equal(rows[columns].reset_index(drop=True), whole[columns].reset_index(drop=True))


def test_several_processes_give_what_one_gives(checkpoint, finished, tmp_path, monkeypatch, capfd):
    """Stopped after its first batch, gone on with by processes that are killed, and gone on with once more."""
    keep, kept = module.Evaluation._keep, []

    def stop_at_second(self, played):
        if kept:
            raise KeyboardInterrupt
        kept.append(keep(self, played))

    class IsKilled:  # in the worker process, in place of a batch
        def __reduce__(self):
            return eval, ("lambda batch: __import__('os').kill(__import__('os').getpid(), 9)",)

    two = {"arms": ARMS, "videos": "first:1", "jobs": 2}
    for owner, name, replacement, error in (
        (module.Evaluation, "_keep", stop_at_second, KeyboardInterrupt),
        (module, "_run_in_worker", IsKilled(), BrokenExecutor),
    ):
        with monkeypatch.context() as patch, pytest.raises(error):
            patch.setattr(owner, name, replacement)
            evaluate(options(checkpoint, tmp_path, **two))
        assert not multiprocessing.active_children()  # none goes on by itself
    assert 1 <= len(EpisodeWriter(tmp_path).done()) < 9
    rows = evaluate(options(checkpoint, tmp_path, **two))
    pd.testing.assert_frame_equal(rows.drop(columns="wall_s"), finished[1].drop(columns="wall_s"))
    videos = [folder / name for folder in (finished[0], tmp_path) for name in rows["video"].dropna()]
    assert len(videos) == 6 and all(video.stat().st_size for video in videos)
    for name in ("memory_bank", "eval.json"):
        assert (tmp_path / name).exists()
    assert read_eval_infos(tmp_path)[0]["depends_on_batch"] == read_eval_infos(finished[0])[0]["depends_on_batch"]
    said = capfd.readouterr().err
    assert "Traceback" not in said and said.count("wm-eval: 9/9 episodes (100%)") == 1


def test_a_folder_that_vanishes_meanwhile_is_no_success(checkpoint, tmp_path, monkeypatch):
    write, written = EpisodeWriter.write, []

    def write_and_lose_the_first(self, rows):
        write(self, rows)
        if not written:
            shutil.rmtree(tmp_path / "out")
        written.append(rows)

    monkeypatch.setattr(EpisodeWriter, "write", write_and_lose_the_first)
    with pytest.raises(ConfigError, match="2 of 3 episodes or eval.json are not there although they were written"):
        evaluate(options(checkpoint, tmp_path / "out", arms="intact"))


def test_an_arm_does_as_it_would_alone(checkpoint, finished, tmp_path):
    """In the environments that other arms have used before, and filmed, or in new ones."""
    rows = evaluate(options(checkpoint, tmp_path, arms="gate_closed"))
    beside = finished[1].query("arm == 'gate_closed'")
    columns = ["seed", "init_hash", "success", "steps", "sum_reward"]
    pd.testing.assert_frame_equal(rows[columns].reset_index(drop=True), beside[columns].reset_index(drop=True))


def test_another_evaluation_in_the_same_folder_is_refused(copy, checkpoint, tmp_path):
    for changed, told in [
        ({"episode_length": 50}, "env.episode_length: saved 40, asked for 50"),
        ({"seed": 7}, "seed: saved 100, asked for 7"),
        ({"train_seed": 9}, "train_seed: saved 0, asked for 9"),
        ({"task": "push-v3"}, "env.task: saved drawer-close-v3, asked for push-v3"),
    ]:
        with pytest.raises(ConfigError, match=f"holds another evaluation .*{told}"):
            evaluate(options(checkpoint, copy, **changed))
    other = make_checkpoint(tmp_path / "other" / "pretrained_model", gate=0.5)
    with pytest.raises(ConfigError, match="checkpoint_hash: "):
        evaluate(options(other, copy, model="F_tiny"))
    with FileLock(copy / ".lock"), pytest.raises(ConfigError, match="another wm-eval is writing"):
        evaluate(options(checkpoint, copy))
    assert len(read_episodes(copy)) == 9


def test_a_scene_that_looks_otherwise_stops_the_run(copy, checkpoint):
    for part in (copy / "episodes").glob("*.parquet"):
        rows = pq.read_table(part).to_pylist()
        part.unlink()
        if "intact" in part.name:
            EpisodeWriter(copy).write([row | {"init_hash": "0" * 16} for row in rows])
    with pytest.raises(RuntimeError, match="not the one that another arm saw"):
        evaluate(options(checkpoint, copy, arms="gate_closed"))


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"arms": "intact,blind"}, "arms='intact,blind': expected one or more of intact"),
        ({"arms": "intact,intact"}, "each once"),
        ({"arms": "wrong_task,intact"}, "wrong_task shows the memories of another task"),
        ({"arms": "shuffle"}, "shuffle needs the memories that intact predicts"),
        ({"arms": "intact,shuffle", "n_episodes": 1}, "eval.n_episodes=1"),
        ({"videos": "last:2"}, "videos='last:2'"),
        ({"seed": None}, "seed=None"),
        ({"seed": -5}, "seed=-5: expected 0 to 42949672"),
        ({"seed": 2**32}, "seed=4294967296: expected 0 to 42949672"),
        ({"draw_seed": -1}, "draw_seed=-1: expected at least 0"),
        ({"n_episodes": 0}, "eval.n_episodes=0: expected at least 1"),
        ({"n_episodes": 4, "batch_size": -1}, "eval.batch_size=-1: expected at least 1"),
        ({"train_seed": None}, "train_seed is not given"),
        ({"recording": True}, "eval.recording=true"),
        ({"max_parallel_tasks": 2}, "env.max_parallel_tasks=2"),
        ({"task": "no-such-task-v3"}, "env.task='no-such-task-v3'"),
        ({"task": "easy,drawer-close-v3"}, "drawer-close-v3 more than once"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(checkpoint, tmp_path, changed, told):
    with pytest.raises(ConfigError, match=told):
        evaluate(options(checkpoint, tmp_path, **changed))
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_policy_without_memory_has_one_arm(tmp_path):
    checkpoint = make_checkpoint(tmp_path / "A", "world_A")
    with pytest.raises(ConfigError, match="a world_A without world memory has only the arm intact"):
        evaluate(options(checkpoint, tmp_path / "out", arms="intact,zero"))
    rows = evaluate(options(checkpoint, tmp_path / "out", n_episodes=1, batch_size=1, episode_length=4))
    assert rows["gate"].isna().all() and rows["attention_mass"].tolist() == [None]


@pytest.mark.parametrize(
    "memory, changed, told",
    [
        ({"use_current": True}, {"arms": "intact,past_zero"}, "'past_zero' changes past frames, .* leave it out"),
        ({"past": PastConfig(3)}, {"arms": "intact,past_shuffle", "n_episodes": 1}, "the arm past_shuffle needs"),
        ({"past": PastConfig(3, source="past_shuffle")}, {"batch_size": 1}, "memory is 'past_shuffle' in rollouts"),
        ({"past": PastConfig(3, source="past_zero")}, {"arms": "past_reversed"}, "acts with 'past_zero' anyway"),
    ],
)
def test_arms_that_a_past_can_t_have_are_refused(tmp_path, memory, changed, told):
    checkpoint = make_checkpoint(tmp_path / "F", memory=MemoryConfig(**memory))
    with pytest.raises(ConfigError, match=told):
        options(checkpoint, tmp_path, **changed).resolve()


def test_hidden_states_have_no_present_to_copy(tmp_path):
    memory = MemoryConfig(entry="appended", content="hidden")
    checkpoint = make_checkpoint(tmp_path / "F", "world_F", memory=memory)
    with pytest.raises(ConfigError, match="memory.content='hidden'.*'copy_current' has latents only"):
        evaluate(options(checkpoint, tmp_path / "out", arms="intact,copy_current"))


def test_an_evaluation_without_a_bank_cannot_be_joined_by_a_shuffle(copy, checkpoint):
    evaluate(options(checkpoint, copy, arms="shuffle"))  # its memories are here
    shutil.rmtree(copy / "memory_bank")
    with pytest.raises(ConfigError, match="lacks the memories of 3 scenes"):
        evaluate(options(checkpoint, copy, arms="shuffle"))
    # Nor one of which a part has run: before the rest of it runs.
    with pytest.raises(ConfigError, match="lacks the memories of 3 scenes"):
        evaluate(options(checkpoint, copy, arms="intact,shuffle", n_episodes=4))


def test_an_evaluation_from_before_draws_were_recorded_is_gone_on_with_in_its_batches(copy, checkpoint):
    info = json.loads((copy / "eval.json").read_text())
    old = {k: v for k, v in info.items() if k not in ("bank_size", "noise", "depends_on_batch")}
    (copy / "eval.json").write_text(json.dumps(old))
    with pytest.raises(ConfigError, match="batch_size: saved 2, asked for 3"):
        evaluate(options(checkpoint, copy, arms="shuffle", n_episodes=4, batch_size=3))
    (copy / "eval.json").write_text(json.dumps(old | {"noise": [4, 4]}))  # as if this policy drew noise
    with pytest.raises(ConfigError, match="noise: saved .*4, 4.*, asked for None"):
        evaluate(options(checkpoint, copy, arms="shuffle", n_episodes=4))
    (copy / "eval.json").write_text(json.dumps(old | {"arms": [*old["arms"], "stale"]}))
    with pytest.raises(ConfigError, match="in which the arm stale overwrote the memories that shuffle read"):
        evaluate(options(checkpoint, copy, arms="intact"))
    (copy / "eval.json").write_text(json.dumps(old))
    assert len(evaluate(options(checkpoint, copy, arms="intact,shuffle", n_episodes=4))) == 11
    assert len(list(copy.glob("memory_bank/*/*"))) == json.loads((copy / "eval.json").read_text())["bank_size"] == 3


def test_scenes_that_begin_alike_are_reported(finished):
    rows = finished[1].copy()
    assert repeated_scenes(rows) is None
    rows.loc[rows["seed"] == 101, "init_hash"] = rows.loc[rows["seed"] == 100, "init_hash"].iloc[0]
    assert "2 scenes of drawer-close-v3 begin alike" in repeated_scenes(rows)


@pytest.mark.slow
def test_killed_and_started_again_no_episode_is_lost_or_run_twice(checkpoint, finished, tmp_path):
    words = [
        f"--policy.path={checkpoint}", "--env.type=metaworld_light", "--env.task=drawer-close-v3",
        "--env.episode_length=40", f"--env.observation_height={SIZE}", f"--env.observation_width={SIZE}",
        "--eval.n_episodes=3", "--eval.batch_size=2", "--eval.use_async_envs=false", "--seed=100", "--train_seed=0",
        f"--arms={ARMS}", f"--output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    command, log = "lerobot_policy_world_modality.evaluation.cli:main", tmp_path / "log"
    killed = run(command, *words, log=log, at=At("os.rename", "run/episodes/", nth=3))
    parts = sorted((tmp_path / "run").glob("episodes/*.parquet"))
    assert killed.status == 128 + signal.SIGKILL and len(parts) == 2
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in parts}
    assert not (tmp_path / "run" / "episodes.parquet").exists()
    done = run(command, *words, log=log)
    assert done.status == 0, done.err[-3000:]
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in parts} == before
    columns = ["arm", "seed", "init_hash", "success", "steps", "sum_reward", "gate"]
    rows, whole = (read_episodes(folder)[columns] for folder in (tmp_path / "run", finished[0]))
    pd.testing.assert_frame_equal(rows, whole)
    assert "drawer-close-v3  intact" in done.out
    assert json.loads((tmp_path / "run" / "eval.json").read_text())["command"] == ["command", *words]
