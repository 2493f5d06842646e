"""What leaves the machine with the records of a study."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
import yaml

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix.expand import expand
from world_modality_core.studies.matrix.export import CURVE_COLUMNS, export, path_cleaner, thinned
from world_modality_core.studies.matrix.job_record import new_record, write_record
from world_modality_core.studies.matrix.study import Study, load_study


def test_no_path_of_the_machine_is_left():
    study = Study(study="s", root="/mnt/runs/s1", seeds=[1], models={"A": {}})
    clean = path_cleaner(study, {"data": "/mnt/data/mw"})
    home, here = Path.home(), Path.cwd()
    cases = {
        "--output_dir=/mnt/runs/s1/train-A-s1/train": "--output_dir=$STUDY/train-A-s1/train",
        '"/mnt/runs/s1"': '"$STUDY"',
        "/mnt/runs/s12/x": "<path>/x",
        "--dataset.root=/mnt/data/mw/stripped": "--dataset.root=${data}/stripped",
        f"--x={here}/outputs/a": "--x=outputs/a",
        f"--x={home}/models/a": "--x=$HOME/models/a",
        "a=[/opt/w/x.py,/opt/y]": "a=[<path>/x.py,<path>/y]",
        "lerobot/smolvla_base": "lerobot/smolvla_base",
        "outputs/study/a 1/2 and/or": "outputs/study/a 1/2 and/or",
        "https://host.org/a/b": "https://host.org/a/b",
        "${data}/stripped {job}/metrics.jsonl": "${data}/stripped {job}/metrics.jsonl",
    }
    assert {text: clean(text) for text in cases} == cases


def test_a_relative_root_is_named_too():
    clean = path_cleaner(Study(study="s", root="outputs/s", seeds=[1], models={"A": {}}), {})
    assert clean("--policy.path=outputs/s/train-A-s1 old/outputs/s") == "--policy.path=$STUDY/train-A-s1 old/outputs/s"


def test_curves_are_thinned_and_keep_their_ends():
    lines = [{"step": i} for i in range(1000)]
    kept = thinned(lines)
    assert len(kept) == 200 and kept[0] == lines[0] and kept[-1] == lines[-1]
    assert thinned(lines[:150]) == lines[:150]


@pytest.mark.parametrize("evaluation", [{}, {"eval": {"env.task": "a", "eval.n_episodes": 3}}])
def test_what_is_done_is_exported(tmp_path, evaluation):
    path = tmp_path / "study.yaml"
    models = {name: {"train": {"policy.type": "a"}} for name in "AB"}
    content = {"root": str(tmp_path / "root"), "seeds": [7], "models": models} | evaluation
    path.write_text("# What for?\n" + yaml.safe_dump(content))
    study = load_study(path)
    jobs = expand(study, lambda policy_type: True)
    folder = tmp_path / "my results"
    with pytest.raises(ConfigError, match="no job of study is done"):
        export(study, jobs, path, folder, {})
    write_record(jobs[0].folder, new_record(jobs[0], 1, "now") | {"state": "done"})
    jobs[0].metrics.write_text('{"step": 5, "loss_action": 0.5, "world_gate": 0.1}\n')
    printed = export(study, jobs, path, folder, {})
    others = ["  train-B s7", *["  eval-A s7", "  eval-B s7"][: len(jobs) - 2]]
    assert "1 jobs" in printed
    assert sorted(printed.splitlines()[1:]) == sorted([f"Not done, and left out: {len(jobs) - 1} jobs", *others])
    exported = json.loads((folder / "jobs.json").read_text())
    assert exported["schema"] == 1 and [job["name"] for job in exported["jobs"]] == ["train-A-s7"]
    curves = pd.read_parquet(folder / "training.parquet")
    assert list(curves) == CURVE_COLUMNS
    assert curves.values.tolist() == [["A", 7, 5, "loss_action", 0.5], ["A", 7, 5, "world_gate", 0.1]]
    readme = (folder / "README.md").read_text()
    assert "What for?" in readme and f"- Not done yet: {len(jobs) - 1} of {len(jobs)} jobs" in readme
    commands = [shlex.split(line) for line in readme.split("```")[1].splitlines()[1:]]
    assert commands[2] == ["wm-matrix", "my results/study.yaml", "--export=my results"]
    # `wm-compare` refuses models that have not come equally far, unless it may compare what both have.
    assert commands[3] == ["wm-compare", "my results", "--baseline=A", *["--common_scenes"] * bool(evaluation)]
    for file in folder.iterdir():
        assert str(tmp_path).encode() not in file.read_bytes(), file.name
    export(study, jobs, path, tmp_path / "other", {"hold": "24", "data": str(tmp_path)})
    other = (tmp_path / "other" / "README.md").read_text()
    assert "study.yaml --set hold=24 --plan" in other and "data=" not in other
    (folder / "README.md").write_text("mine")
    export(study, jobs, path, folder, {})
    assert (folder / "README.md").read_text() == "mine"
