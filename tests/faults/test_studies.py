"""wm-matrix, wm-compare and wm-report: full disks, Ctrl-C, a clock that jumps, damaged records, two at once."""

import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.commands import At, fill, run, small_disk, start, wait
from tests.studies.matrix.helpers import Fakes
from tests.studies.report.synthetic import write_study
from world_modality_core.studies.evidence import compare_cli
from world_modality_core.studies.matrix.cli import main as matrix_main
from world_modality_core.studies.report import cli as report_cli

JOBS = {"train-A-s1", "train-A-s2", "train-F-s1", "train-F-s2", "eval-A-s1", "eval-A-s2", "eval-F-s1", "eval-F-s2"}


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    fakes = Fakes(tmp_path)
    monkeypatch.setenv("FAKE_LOG", str(fakes.log))
    monkeypatch.setenv("FAKE_STEP_S", "0")
    return fakes


def queue_of(fakes: Fakes, clock=None):
    def main():
        import sys

        if clock:
            time.time = clock
        return matrix_main(sys.argv[1:], find_program=lambda name: f"{fakes.bin}/{name}", check=lambda jobs: None)

    return main


def assert_complete(fakes: Fakes) -> None:
    assert {job: fakes.record(job)["state"] for job in JOBS} == dict.fromkeys(JOBS, "done")
    steps = Counter((line["job"], line["step"]) for line in fakes.noted("step"))
    assert set(steps) == {(job, step) for job in JOBS if job.startswith("train") for step in range(1, 11)}
    parts = Counter((line["job"], line["part"]) for line in fakes.noted("part"))
    assert len(parts) == 2 * 3 + 2 * 6 and set(parts.values()) == {1}


def test_a_study_on_a_full_disk_goes_on_when_there_is_room(fakes, tmp_path):
    study = fakes.write()
    with small_disk(fakes.root, 4 << 20) as disk:
        ballast = fill(disk, 40 << 10)
        done = run(queue_of(fakes), str(study), "--jobs=1", log=tmp_path / "log")
        assert done.status == 1 and "Traceback" not in done.err
        assert done.told.startswith(f"wm-matrix: {disk}/") and "no room left" in done.told
        ballast.unlink()
        # What failed on the full disk itself is failed; --retry_failed runs that again too.
        done = run(queue_of(fakes), str(study), "--jobs=1", "--retry_failed", log=tmp_path / "log")
        assert done.status == 0, done.err
        assert_complete(fakes)


@pytest.mark.parametrize("again_s", [None, 0.05])
def test_a_study_and_ctrl_c(fakes, tmp_path, monkeypatch, again_s):
    monkeypatch.setenv("FAKE_STEP_S", "0.02")
    study, at = fakes.write(), At("subprocess.Popen", "lerobot-train", signal.SIGINT, nth=2, again_s=again_s)
    done = run(queue_of(fakes), str(study), "--jobs=1", log=tmp_path / "log", at=at)
    assert done.status == 130 and done.told == "wm-matrix: stopped; the same command goes on from here"
    monkeypatch.setenv("FAKE_STEP_S", "0")
    assert run(queue_of(fakes), str(study), "--jobs=1", log=tmp_path / "log").status == 0
    assert_complete(fakes)


def test_a_study_whose_clock_jumps_back(fakes, tmp_path):
    true, looks = time.time, [0]

    def earlier():
        looks[0] += 1
        return true() - 86_400 * looks[0]

    study, at = fakes.write(), At("subprocess.Popen", "lerobot-train", signal.SIGKILL, nth=3)
    assert run(queue_of(fakes, earlier), str(study), "--jobs=1", log=tmp_path / "log", at=at).status == 137
    assert run(queue_of(fakes, earlier), str(study), "--jobs=1", log=tmp_path / "log").status == 0
    assert_complete(fakes)
    assert all(0 <= fakes.record(job)["seconds"] < 600 for job in JOBS)


def test_a_training_that_was_killed_between_two_links_is_not_begun_anew(fakes, tmp_path):
    study = fakes.write(seeds=[1], models={"A": {}})
    assert run(queue_of(fakes), str(study), log=tmp_path / "log").status == 0
    folder = fakes.root / "train-A-s1"
    (folder / "train/checkpoints/last").unlink()
    shutil.copytree(folder / "train/checkpoints/000010", folder / "train/checkpoints/000008")
    record = (folder / "job.json").read_text()
    (folder / "job.json").write_text(record.replace('"done"', '"interrupted"'))
    assert run(queue_of(fakes), str(study), log=tmp_path / "log").status == 0
    starts = [line["start"] for line in fakes.noted("start") if line["program"] == "lerobot-train"]
    assert len(starts) == 2 and "--resume=true" in starts[1]
    assert max(line["step"] for line in fakes.noted("step")) == 10 and len(fakes.noted("step")) == 10


def test_a_damaged_record_of_a_job_is_named(fakes, tmp_path):
    study = fakes.write(seeds=[1], models={"A": {}})
    assert run(queue_of(fakes), str(study), log=tmp_path / "log").status == 0
    path = fakes.root / "train-A-s1/job.json"
    path.write_bytes(path.read_bytes()[:50])
    done = run(queue_of(fakes), str(study), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith(f"wm-matrix: {path} can't be read as JSON")


# Records.


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study") / "study", n_seeds=2, n_scenes=4)


def report_options(study: Path, page: Path) -> list[str]:
    return [str(study), f"--output={page}", "--no_videos"]


@pytest.fixture(scope="module")
def page(study, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "r.html"
    assert run(report_cli.main, *report_options(study, path), log=path.with_suffix(".log")).status == 0
    return path.read_bytes()


def test_a_page_is_there_whole_or_not_at_all(study, page, tmp_path):
    path, log = tmp_path / "r.html", tmp_path / "log"
    assert run(report_cli.main, *report_options(study, path), log=log, at=At("os.rename", "r.html")).status == 137
    assert not path.exists()
    at = At("os.rename", "r.html", signal.SIGINT, again_s=0.01)
    done = run(report_cli.main, *report_options(study, path), log=log, at=at)
    assert done.status == 130 and done.told == "wm-report: stopped; the same command begins anew" and not path.exists()
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        ballast = fill(disk, 20 << 10)
        done = run(report_cli.main, *report_options(study, disk / "r.html"), log=log)
        assert done.status == 1 and done.told.startswith(f"wm-report: {disk / 'r.html'}: no room left")
        ballast.unlink()
        assert run(report_cli.main, *report_options(study, disk / "r.html"), log=log).status == 0
        assert (disk / "r.html").read_bytes() == page


def test_two_that_write_one_page_leave_a_whole_one(study, page, tmp_path):
    path = tmp_path / "r.html"
    logs = [tmp_path / f"log{i}" for i in range(2)]
    pids = [start(report_cli.main, *report_options(study, path), log=log) for log in logs]
    assert [wait(pid, log).status for pid, log in zip(pids, logs, strict=True)] == [0, 0]
    assert path.read_bytes() == page and sorted(tmp_path.glob("r.html*")) == [path]


@pytest.mark.parametrize(
    "name",
    [
        "eval-F_k4-0/eval/eval.json", "eval-F_k4-0/eval/episodes", "train-F_k4-0/job.json",
        "intervene-F_k4-0/intervene/interventions.json",
    ],
)  # fmt: skip
def test_damaged_records_are_named(study, tmp_path, name):
    damaged = shutil.copytree(study, tmp_path / "study")
    path = damaged / name
    path = sorted(path.iterdir())[0] if path.is_dir() else path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    done = run(report_cli.main, *report_options(damaged, tmp_path / "r.html"), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith(f"wm-report: {path} can't be read"), done.told
    assert not (tmp_path / "r.html").exists()
    if name.endswith("episodes"):
        done = run(compare_cli.main, str(damaged), log=tmp_path / "log")
        assert done.status == compare_cli.REFUSED and done.told.startswith(f"wm-compare: {path} can't be read")
