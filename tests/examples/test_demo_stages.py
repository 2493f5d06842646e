"""The demo's stage runner: once, again when arguments change, on when interrupted."""

import os
import sys
from pathlib import Path

import pytest

from stages import Stage, StageError, duration, read_stamp, run_stages

APPEND = "import sys; open(sys.argv[1], 'a').write(sys.argv[2])"


def append(folder: Path, name: str, text: str, **kwargs) -> Stage:
    output = folder / f"{name}.txt"
    return Stage(name, "append", [sys.executable, "-c", APPEND, str(output), text], [output], **kwargs)


def run(folder, *stages):
    run_stages([list(stages)], folder, "", dict(os.environ))
    return [stage.outputs[0].read_text() for stage in stages]


def test_a_finished_stage_is_not_repeated(tmp_path, capsys):
    stages = append(tmp_path, "a", "1"), append(tmp_path, "b", "2")
    assert run(tmp_path, *stages) == ["1", "2"]
    (tmp_path / "a.txt").write_text("kept")
    assert run(tmp_path, *stages) == ["kept", "2"]
    assert "done before" in capsys.readouterr().out


def test_a_changed_argument_repeats_it_and_all_after_it(tmp_path):
    run(tmp_path, append(tmp_path, "a", "1"), append(tmp_path, "b", "2"))
    (tmp_path / "b.txt").write_text("stale")
    assert run(tmp_path, append(tmp_path, "a", "changed"), append(tmp_path, "b", "2")) == ["changed", "2"]


def test_a_lost_output_is_made_again(tmp_path):
    stage = append(tmp_path, "a", "1")
    run(tmp_path, stage)
    stage.outputs[0].unlink()
    assert run(tmp_path, stage) == ["1"]


def test_an_interrupted_stage_goes_on_with_its_resume_command(tmp_path):
    output = tmp_path / "a.txt"
    fail = [sys.executable, "-c", f"open({str(output)!r}, 'a').write('half '); raise SystemExit('disk on fire')"]
    stage = Stage("a", "", fail, [output])
    with pytest.raises(StageError, match="(?s)disk on fire.*exit code 1.*a.log"):
        run(tmp_path, stage)
    assert not read_stamp(tmp_path, "a")["done"]
    stage.resume = lambda: [sys.executable, "-c", APPEND, str(output), "done"]
    assert run(tmp_path, stage) == ["half done"]
    assert run(tmp_path, stage) == ["half done"]


def test_an_interrupted_stage_without_resume_starts_anew(tmp_path):
    stage = append(tmp_path, "a", "1")
    run(tmp_path, stage)
    stamp = tmp_path / "stages" / "a.json"
    stamp.write_text(stamp.read_text().replace("true", "false"))
    assert run(tmp_path, stage) == ["1"]


def test_lanes_run_at_the_same_time_and_each_end_is_told(tmp_path):
    """Each lane waits for a file of the other's first stage: one after the other, they would wait for ever."""
    meet = "import pathlib, sys, time\npathlib.Path(sys.argv[1]).touch()\n"
    meet += "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.01)"
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    lanes = [
        [Stage("a", "", [sys.executable, "-c", meet, str(a), str(b)], [a]), append(tmp_path, "a2", "1")],
        [Stage("b", "", [sys.executable, "-c", meet, str(b), str(a)], [b])],
    ]
    ends = []
    key = run_stages(lanes, tmp_path, "", dict(os.environ), lambda: ends.append(1))
    assert len(ends) == 3 and (tmp_path / "a2.txt").read_text() == "1"
    assert run_stages(lanes, tmp_path, "", dict(os.environ), lambda: ends.append(1)) == key and len(ends) == 3


def test_a_stage_that_fails_stops_the_others(tmp_path):
    lanes = [
        [Stage("a", "", [sys.executable, "-c", "raise SystemExit(3)"], [])],
        [Stage("b", "", [sys.executable, "-c", "import time; time.sleep(600)"], [])],
    ]
    with pytest.raises(StageError, match="a failed with exit code 3"):
        run_stages(lanes, tmp_path, "", dict(os.environ))
    assert not read_stamp(tmp_path, "b")["done"]


def test_output_goes_to_the_log(tmp_path):
    stage = Stage("a", "", [sys.executable, "-c", "print('hello'); import sys; print('aside', file=sys.stderr)"], [])
    run_stages([[stage]], tmp_path, "", dict(os.environ))
    assert set((tmp_path / "logs" / "a.log").read_text().split()) == {"hello", "aside"}


def test_duration():
    assert (duration(59.4), duration(125)) == ("59 s", "2 min 05 s")
