"""A few random kills of the cheapest jobs; `make storm` has thirty of each job."""

import time

import pytest

from tests.faults.storm import Job, jobs, storm


@pytest.mark.parametrize("name", ["labels", "precompute", "prophet"])
def test_random_kills_cost_nothing(name, tmp_path):
    with jobs([name], tmp_path) as known:
        found = storm(known[name], 3, 0, tmp_path / "storm")
    assert found.kills >= 3 and found.is_weathered, str(found)


@pytest.mark.parametrize(
    ("how", "fault"), [("loses", "lost"), ("repeats", "twice"), ("ends otherwise", "different"), ("fails", "notes")]
)
def test_a_job_that_is_not_safe_is_found(tmp_path, how, fault):
    """The control: a job of three parts that goes on badly after a kill."""

    def make(folder):
        def main():
            runs = folder / "runs"
            n = int(runs.read_text()) + 1 if runs.exists() else 1
            runs.write_text(str(n))
            for i in range(3):
                part = folder / f"part-{i}"
                if n > 1 and how == "loses":
                    part.unlink(missing_ok=True)
                elif not part.exists() or how == "repeats":
                    part.write_text("x")
                time.sleep(0.1)
            if n > 1 and how == "ends otherwise":
                (folder / "part-0").write_text("y")
            if n > 1 and how == "fails":
                raise RuntimeError("not again")

        return main

    current = []

    def arguments(folder):
        current[:] = [folder]
        return []

    job = Job(
        lambda: make(current[0])(),
        arguments,
        lambda folder: [path.read_text() for path in sorted(folder.glob("part-*"))],
        lambda folder: {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*")},
    )
    found = storm(job, 5, 0, tmp_path / "storm")
    assert not found.is_weathered and getattr(found, fault), str(found)
