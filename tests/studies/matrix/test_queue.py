"""The queue, with fake programs: nothing is lost and nothing runs twice, whatever is killed."""

import json
import os
import re
import shutil
import signal
from collections import Counter

import pytest

from tests.studies.matrix.helpers import BASE, Fakes, is_alive

JOBS = [f"{kind}-{model}-s{seed}" for seed in (1, 2) for model in "AF" for kind in ("train", "eval")]


@pytest.fixture
def fakes(tmp_path):
    return Fakes(tmp_path)


def parts_run(fakes) -> Counter:
    return Counter((line["job"], line["part"]) for line in fakes.noted("part"))


def assert_complete(fakes):
    """Everything ran, and no part of an evaluation twice."""
    for job in JOBS:
        assert fakes.record(job)["state"] == "done", job
    n_parts = 2 * (3 + 2 * 3)  # two seeds; three episodes of A intact, of F intact and of F zero
    assert len(parts_run(fakes)) == n_parts and set(parts_run(fakes).values()) == {1}
    for job in JOBS:
        if job.startswith("train"):
            lines = (fakes.root / job / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in lines] == list(range(1, 11)), job


def test_a_study_runs_once(fakes):
    fakes.write()
    code, printed = fakes.run("--jobs=3", "--gpus=4,7", "--threads=2")
    assert code == 0, printed
    assert_complete(fakes)
    record = fakes.record("eval-F-s2")
    assert record["kind"] == "eval" and record["model"] == "F" and record["train_seed"] == 2
    assert record["threads"] == 2 and record["exit_code"] == 0 and record["seconds"] > 0
    assert record["after"] == {"train-F-s2": fakes.record("train-F-s2")["started_at"]}
    assert {line["gpu"] for line in fakes.noted("start")} == {"4", "7"}
    n_lines = len(fakes.noted())

    code, printed = fakes.run()
    assert code == 0 and len(fakes.noted()) == n_lines
    assert printed.count("done before") == len(JOBS)


def test_only_the_last_checkpoint_is_kept_unless_all_are_asked_for(fakes):
    fakes.write(models={"A": {}}, seeds=[1])
    assert fakes.run()[0] == 0
    folder = fakes.root / "train-A-s1/train/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["000010", "last"]
    fakes.write(models={"A": {}}, seeds=[2], keep_checkpoints="all")
    assert fakes.run()[0] == 0
    folder = fakes.root / "train-A-s2/train/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["000004", "000008", "000010", "last"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_queue_goes_on(fakes, number):
    fakes.write()
    queue = fakes.start("--jobs=2", hold_at=6)
    fakes.wait_for(lambda: [line["step"] for line in fakes.noted("step")].count(6) == 2)
    queue.send_signal(number)
    queue.communicate(timeout=300)
    assert queue.returncode == (-9 if number == signal.SIGKILL else 130)
    pids = {line["pid"] for line in fakes.noted()}
    fakes.wait_for(lambda: not any(is_alive(pid) for pid in pids))
    saved = {line["job"] for line in fakes.noted("step")}
    code, printed = fakes.run("--status")
    assert "interrupted" in printed and "running" not in printed

    code, printed = fakes.run("--jobs=2")
    assert code == 0, printed
    assert_complete(fakes)
    # Trainings that had a checkpoint, at step 4, went on from it: steps 5 and later, at most, ran again.
    steps = Counter((line["job"], line["step"]) for line in fakes.noted("step"))
    assert len(saved) == 2 and all(n == 1 for (job, step), n in steps.items() if step <= 4)
    assert {job for (job, step), n in steps.items() if n > 1} == saved
    assert any("--resume=true" in line["start"] for line in fakes.noted("start"))
    assert max(fakes.record(job)["n_starts"] for job in JOBS) == 2


def test_a_killed_job_is_reported_and_retried_where_it_was(fakes):
    fakes.write()
    queue = fakes.start("--jobs=2", hold_at=6)
    fakes.wait_for(lambda: any(line["step"] == 6 for line in fakes.noted("step")))
    victim = next(line for line in fakes.noted("step") if line["step"] == 6)
    os.kill(victim["pid"], signal.SIGKILL)
    fakes.let_go()
    printed, _ = queue.communicate(timeout=300)
    assert queue.returncode == 1
    evaluation = victim["job"].replace("train", "eval")
    assert f"{victim['job']}: failed with exit code -9" in printed
    assert f"{evaluation}: not run: it builds on {victim['job']}" in printed
    assert "6 of 8 jobs are done" in printed
    assert f"{victim['job']}: failed before" in fakes.run()[1]  # not again unless asked

    code, printed = fakes.run("--retry_failed")
    assert code == 0, printed
    assert_complete(fakes)
    assert fakes.record(victim["job"])["n_starts"] == 2


def test_a_job_that_left_nothing_is_not_done(fakes):
    fakes.write(models={"A": {"train": {"leaves_nothing": 1}}}, seeds=[1])
    code, printed = fakes.run()
    left = "train-A-s1/train/checkpoints/last/pretrained_model is not there"
    assert code == 1 and left in printed and fakes.record("train-A-s1")["state"] == "failed"


def test_two_queues_share_a_study(fakes):
    fakes.write()
    queues = [fakes.start("--jobs=1", hold_at=6) for _ in range(2)]
    fakes.wait_for(lambda: [line["step"] for line in fakes.noted("step")].count(6) == 2)  # both are at work
    fakes.let_go()
    printed = [queue.communicate(timeout=300)[0] for queue in queues]
    assert [queue.returncode for queue in queues] == [0, 0], printed
    assert_complete(fakes)
    starts = Counter(line["job"] for line in fakes.noted("start"))
    assert set(starts) == set(JOBS) and set(starts.values()) == {1}
    assert all(": starts" in text for text in printed)


def test_failures_are_reported_and_the_others_go_on(fakes):
    fakes.write(models={"A": {}, "F": {"train": {"bad": 1}}})
    code, printed = fakes.run()
    assert code == 1
    assert "train-F-s1: failed with exit code 3" in printed and "    it can't be done" in printed
    assert "eval-F-s1: not run: it builds on train-F-s1" in printed
    assert "4 of 8 jobs are done; not done: train-F-s1, eval-F-s1, train-F-s2, eval-F-s2" in printed
    # Mended: what failed starts anew with the new command, what is done stays.
    fakes.write(models={"A": {}, "F": {}})
    code, printed = fakes.run("--retry_failed")
    assert code == 0, printed
    assert Counter(line["job"] for line in fakes.noted("start"))["train-A-s1"] == 1


def test_a_changed_command_of_a_finished_job_is_refused(fakes):
    fakes.write()
    assert fakes.run()[0] == 0
    n_lines = len(fakes.noted())
    fakes.write(train=BASE["train"] | {"steps": 12})
    code, printed = fakes.run()
    assert code == 1 and len(fakes.noted()) == n_lines
    assert (
        "train-A-s1 is done with another command: it ran with --steps=10, the study now has --steps=12 instead"
        in printed
    )
    assert "3 more jobs" in printed

    # One job run anew: what was evaluated before is refused too, until it is thrown away.
    fakes.write(models={"A": {}}, seeds=[1])
    (fakes.root / "train-A-s1/job.json").unlink()
    code, printed = fakes.run("--only=train-A-s1")  # without it, nothing says whose files these are
    assert code == 1 and "train-A-s1/train was not written by wm-matrix" in printed
    shutil.rmtree(fakes.root / "train-A-s1")
    assert fakes.run("--only=train-A-s1")[0] == 0
    code, printed = fakes.run()
    assert code == 1 and "eval-A-s1 is done, but train-A-s1, which it builds on, was run anew since" in printed


def test_prophets_run_before_their_models_and_interventions_after(fakes):
    fakes.write(
        prophets={"pool": {"steps": 2}, "own": {"per_seed": True, "steps": 2}},
        models={
            "A": {},
            "F": {"prophet": "pool", "intervene": True, "train": {"policy.prophet.init_from": "{prophet}"}},
            "G": {"prophet": "own", "train": {"policy.prophet.init_from": "{prophet}"}},
        },
    )
    code, printed = fakes.run("--jobs=2")
    assert code == 0, printed
    order = [line["job"] for line in fakes.noted("start")]
    assert order.count("prophet-pool") == 1 and "prophet-own-s1" in order and "prophet-own-s2" in order
    ends = {line["job"]: i for i, line in enumerate(fakes.noted())}
    begins = {line["job"]: i for i, line in reversed(list(enumerate(fakes.noted())))}
    assert ends["prophet-pool"] < begins["train-F-s1"] < ends["train-F-s1"] < begins["intervene-F-s1"]
    assert ends["prophet-own-s2"] < begins["train-G-s2"]


def test_only_runs_what_fits_and_what_it_builds_on(fakes):
    fakes.write()
    assert fakes.run("--only=eval-F-*")[0] == 0
    assert {line["job"] for line in fakes.noted("start")} == {j for j in JOBS if "-F-" in j}
    code, printed = fakes.run("--plan")
    assert code == 0 and re.search(r"eval +A +2 +0$", printed, re.M) and re.search(r"eval +F +2 +2$", printed, re.M)
    assert fakes.log.read_text().count('"start"') == 4  # a plan runs nothing


def test_arms_and_scenes_may_be_added_to_a_finished_evaluation(fakes):
    fakes.write()
    assert fakes.run()[0] == 0
    more = {"A": {}, "F": {"arms": ["intact", "zero", "stale"]}}
    fakes.write(models=more, eval=BASE["eval"] | {"eval.n_episodes": 4})
    assert "4 done, 4 done in part" in fakes.run("--status")[1]
    code, printed = fakes.run("--plan")
    assert re.search(r"train +F +2 +2$", printed, re.M) and re.search(r"eval +F +2 +0$", printed, re.M)
    code, printed = fakes.run()
    assert code == 0, printed
    assert printed.count("done before") == 4 and "eval-F-s1: goes on" in printed  # the trainings are done
    assert len(parts_run(fakes)) == 2 * (4 + 3 * 4) and set(parts_run(fakes).values()) == {1}
    fakes.write(models=more, eval=BASE["eval"] | {"env.task": "a"})
    assert "ran with --env.task=a,b" in fakes.run()[1]


def test_arms_that_exchange_memories_are_refused_where_none_were_kept(fakes):
    fakes.write()
    assert fakes.run()[0] == 0
    fakes.write(models={"A": {}, "F": {"arms": ["intact", "zero", "shuffle"]}})
    code, printed = fakes.run()
    assert code == 1 and "eval-F-s1 is done with another command" in printed and "delete the job's folder" in printed
    assert "done" in fakes.run("--status")[1] and "failed" not in fakes.run("--status")[1]  # what was run counts still
