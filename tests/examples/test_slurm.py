"""The scripts of examples/cluster through a real scheduler: arrays, kills, requeues; nothing is lost or done twice."""

import json
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.examples.slurm import MISSING, Slurm
from tests.studies.matrix.helpers import Fakes

CLUSTER = Path(__file__).parents[2] / "examples" / "cluster"
SMALL = ("--gpus-per-node=1", "--cpus-per-task=2")
pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"no {', '.join(MISSING)} here: apt-get install slurm-wlm munge"),
    pytest.mark.skipif(os.geteuid() != 0, reason="Slurm's daemons are started as root"),
]


@pytest.fixture(scope="module")
def slurm():
    folder = Path(tempfile.mkdtemp(prefix="slurm", dir="/tmp"))  # a socket's path is short
    cluster = Slurm(folder)
    cluster.start()
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


class Work:
    """Submits a script whose `accelerate` is a stand-in, and reads what that did."""

    def __init__(self, slurm: Slurm, folder: Path):
        self.slurm, self.folder, self.log = slurm, folder, folder / "log.jsonl"
        programs = folder / "programs"
        programs.mkdir()
        source = (Path(__file__).parent / "stand_in_accelerate.py").read_text()
        (programs / "accelerate").write_text(f"#!{sys.executable} -IS\n{source}")
        (programs / "accelerate").chmod(0o755)
        (folder / "datasets.txt").write_text("me/a\nme/b\nme/c\n")
        path = f"{programs}:{slurm.environment['PATH']}"
        self.environment = {"PATH": path, "WORK_LOG": str(self.log), "FOLDER": "out", "OUTPUT": "out/train"}

    def submit(self, script: str, *arguments: str, options: tuple[str, ...] = ()) -> str:
        return self.slurm.run(
            "sbatch", "--parsable", f"--chdir={self.folder}", *SMALL, *options, str(CLUSTER / script), *arguments,
            **self.environment,
        )  # fmt: skip

    def noted(self, key: str) -> list[dict]:
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in map(json.loads, lines) if key in line]

    def wait_until(self, n_pieces: int) -> None:
        self.slurm.wait_for(lambda: len(self.noted("piece")) >= n_pieces)

    def check_all_done_once(self, *outputs: str) -> None:
        done = Counter((line["output"], line["piece"]) for line in self.noted("piece"))
        assert done == {(output, piece): 1 for output in outputs for piece in range(12)}
        assert Counter(line["end"] for line in self.noted("end")).keys() == set(outputs)


@pytest.fixture
def work(slurm, tmp_path):
    return Work(slurm, tmp_path)


def test_an_array_whose_elements_are_killed_goes_on_when_submitted_again(slurm, work):
    job = work.submit("slurm_precompute.sh", "datasets.txt", options=("--array=1-3",))
    work.wait_until(6)
    os.kill(work.noted("start")[0]["pid"], signal.SIGKILL)
    slurm.wait_for(lambda: slurm.is_over(job))
    assert len(work.noted("end")) == 2  # the others were not disturbed
    again = work.submit("slurm_precompute.sh", "datasets.txt", options=("--array=1-3",))
    slurm.wait_for(lambda: slurm.is_over(again))
    work.check_all_done_once("me_a", "me_b", "me_c")


def test_a_node_s_daemon_that_dies_costs_its_jobs_nothing(slurm, work):
    job = work.submit("slurm_label.sh", "datasets.txt", options=("--array=1-2",))
    work.wait_until(4)
    slurm.kill_node()
    work.wait_until(10)
    slurm.start_node()
    slurm.wait_for(lambda: slurm.is_over(job))
    work.check_all_done_once("me_a.jsonl", "me_b.jsonl")
    assert len(work.noted("start")) == 2


def test_a_training_that_is_requeued_goes_on_from_its_last_checkpoint(slurm, work):
    job = work.submit("slurm_train.sh", options=("--gpus-per-node=2",))
    work.wait_until(4)
    slurm.run("scontrol", "requeue", job)
    slurm.go_on_at_once(job)
    slurm.wait_for(lambda: slurm.is_over(job))
    work.check_all_done_once("train")
    assert [line["job"] for line in work.noted("start")] == [job, job]


def test_a_study_is_an_array_for_each_kind_of_job(slurm, work, tmp_path):
    (tmp_path / "study").mkdir()
    fakes = Fakes(tmp_path / "study")
    study = fakes.write(vars={"device": "cpu"}, seeds=[1])
    matrix = tmp_path / "programs" / "wm-matrix"
    matrix.write_text(f"#!{sys.executable}\n{fakes.code}")
    matrix.chmod(0o755)
    repo = str(CLUSTER.parents[1])
    environment = work.environment | {"FAKE_LOG": str(fakes.log), "FAKE_STEP_S": "0.1", "PYTHONPATH": repo}

    def submit() -> list[str]:
        printed = slurm.run("bash", str(CLUSTER / "slurm_matrix.sh"), str(study), **environment)
        return [line.rpartition(" ")[2] for line in printed.splitlines()]

    jobs = submit()
    assert len(jobs) == 2  # trainings, evaluations
    slurm.wait_for(lambda: fakes.noted("step"), 15)
    slurm.run("scancel", "--signal=KILL", "--full", f"{jobs[0]}_0")
    slurm.wait_for(lambda: all(map(slurm.is_over, jobs)), 120)
    for job in submit():
        slurm.wait_for(lambda job=job: slurm.is_over(job), 120)
    records = [json.loads(path.read_text()) for path in fakes.root.glob("*/job.json")]
    assert [record["state"] for record in records] == ["done"] * 4
    assert sorted(record["n_starts"] for record in records) == [1] * 3 + [2]  # only what was killed ran again
