"""From YAML to jobs: what is filled in, and what is refused with which message."""

from pathlib import Path

import pytest
import yaml

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix import expand as expanding
from world_modality_core.studies.matrix.draw import draw_episodes
from world_modality_core.studies.matrix.expand import Job, expand, select
from world_modality_core.studies.matrix.job_record import duration
from world_modality_core.studies.matrix.study import Draw, load_study

BASE = {
    "root": "out/s",
    "seeds": [1, 2],
    "vars": {"data": "data/mw"},
    "train": {
        "dataset.root": "${data}/stripped",
        "policy.companion.root": "${data}/world",
        "policy.dropout": 0,
        "policy.d_model": 192,
        "policy.push_to_hub": False,
        "steps": 50,
    },
    "eval": {"env.task": "push-v3,reach-v3", "eval.n_episodes": 20, "seed": 100000},
    "models": {"A": {"train": {"policy.type": "world_A"}}},
}
TASKS = ["push"] * 4 + ["reach"] * 6


def make(tmp_path: Path, text: str | None = None, only=None, **changes):
    path = tmp_path / "study.yaml"
    path.write_text(text or yaml.safe_dump({**BASE, **changes}))
    jobs = select(expand(load_study(path), lambda policy_type: policy_type.startswith("world")), only or [])
    return {job.name: job for job in jobs}


def flags(job: Job) -> dict[str, str]:
    return dict(word.removeprefix("--").split("=", 1) for word in job.command[1:])


def test_a_tilde_in_a_study_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    train = make(tmp_path, vars={"data": "~/data"}, root="~/out")["train-A-s1"]
    assert flags(train)["dataset.root"] == f"{tmp_path}/data/stripped"
    assert flags(train)["output_dir"] == f"{tmp_path}/out/train-A-s1/train"


def test_jobs_of_a_model(tmp_path):
    jobs = make(tmp_path)
    assert list(jobs) == ["train-A-s1", "eval-A-s1", "train-A-s2", "eval-A-s2"]
    train, evaluation = jobs["train-A-s2"], jobs["eval-A-s2"]
    assert train.command[0] == "lerobot-train" and evaluation.command[0] == "wm-eval"
    assert flags(train) == {
        "dataset.root": "data/mw/stripped",
        "policy.companion.root": "data/mw/world",
        "policy.dropout": "0",
        "policy.d_model": "192",
        "policy.push_to_hub": "false",
        "steps": "50",
        "policy.type": "world_A",
        "policy.metrics_file": "out/s/train-A-s2/metrics.jsonl",
        "save_freq": "10",
        "seed": "2",
        "output_dir": "out/s/train-A-s2/train",
    }
    assert flags(evaluation) == {
        "policy.path": "out/s/train-A-s2/train/checkpoints/last/pretrained_model",
        "model": "A",
        "train_seed": "2",
        "arms": "intact",
        "env.task": "push-v3,reach-v3",
        "eval.n_episodes": "20",
        "seed": "100000",
        "output_dir": "out/s/eval-A-s2/eval",
    }
    assert evaluation.after == ("train-A-s2",)


def test_loops_and_several_evaluations(tmp_path):
    entry = {
        "for": {"m": ["A", "F"], "k": [4, 8]},
        "train": {"policy.type": "world_{m}", "policy.n_future_steps": "{k}"},
        "seeds": [2],
    }
    jobs = make(tmp_path, models={"{m}_k{k}": entry}, evals={"near": {"seed": 1}, "far": {"env.task": "far-v3"}})
    assert len(jobs) == 4 * 3
    assert flags(jobs["train-F_k8-s2"])["policy.type"] == "world_F"
    assert flags(jobs["train-F_k8-s2"])["policy.n_future_steps"] == "8"
    assert flags(jobs["eval-A_k4-s2-near"])["seed"] == "1"
    assert flags(jobs["eval-A_k4-s2-far"])["env.task"] == "far-v3"


def test_a_model_of_lerobot_takes_common_flags_away(tmp_path):
    own = {"policy.*": None, "policy.type": "act", "policy.push_to_hub": False, "dataset.root": "raw", "steps": None}
    got = flags(make(tmp_path, models={"ACT": {"train": own}})["train-ACT-s1"])
    assert got == {
        "policy.type": "act",
        "policy.push_to_hub": "false",
        "dataset.root": "raw",
        "seed": "1",
        "output_dir": "out/s/train-ACT-s1/train",
    }


def test_prophets_and_drawn_episodes(tmp_path, monkeypatch):
    monkeypatch.setattr(expanding, "read_tasks", lambda draw: TASKS)
    frozen = {"policy.type": "world_F", "policy.prophet.init_from": "{prophet}", "dataset.episodes": "{labelled}"}
    jobs = make(
        tmp_path,
        episodes={"draw": {"root": "d", "per_task": 2}},
        prophets={
            "pool": {"episodes": "{all}"},
            "own": {"per_seed": True, "exclude_episodes": "{labelled};", "steps": 7},
            "unused": {},
        },
        models={
            "F": {"prophet": "pool", "train": frozen, "intervene": {"n_frames": 9}},
            "G": {"prophet": "own", "train": frozen},
            "ceiling": {"train": {"policy.type": "world_A", "dataset.episodes": "{all}"}},
        },
    )
    assert list(jobs)[:3] == ["prophet-pool", "prophet-own-s1", "train-F-s1"]
    assert not any("unused" in name for name in jobs)
    assert flags(jobs["prophet-pool"]) == {
        "episodes": "0,1,2,3,4,5,6,7,8,9",
        "output_dir": "out/s/prophet-pool/prophet",
    }
    assert flags(jobs["train-F-s2"])["policy.prophet.init_from"] == "out/s/prophet-pool/prophet"
    assert jobs["train-F-s2"].after == ("prophet-pool",) and jobs["train-G-s2"].after == ("prophet-own-s2",)
    drawn = {seed: draw_episodes(Draw(per_task=2), TASKS, seed)[0] for seed in (1, 2)}
    assert drawn[1] != drawn[2]
    for seed, labelled in drawn.items():
        text = ",".join(map(str, labelled))
        assert flags(jobs[f"train-F-s{seed}"])["dataset.episodes"] == f"[{text}]"
        assert flags(jobs[f"prophet-own-s{seed}"])["exclude_episodes"] == f"{text};"
        assert flags(jobs[f"prophet-own-s{seed}"])["seed"] == str(seed)
    assert flags(jobs["train-ceiling-s1"])["dataset.episodes"] == "[0,1,2,3,4,5,6,7,8,9]"
    intervention = jobs["intervene-F-s1"]
    assert flags(intervention)["n_frames"] == "9" and intervention.after == ("train-F-s1",)


def test_draws():
    draw = Draw(per_task=1, unlabelled_per_task=2)
    labelled, unlabelled = draw_episodes(draw, TASKS, 5)
    assert [TASKS[i] for i in labelled] == ["push", "reach"]
    assert [TASKS[i] for i in unlabelled] == ["push"] * 2 + ["reach"] * 2
    assert not set(labelled) & set(unlabelled)
    assert draw_episodes(draw, TASKS, 5) == (labelled, unlabelled)
    rest = draw_episodes(Draw(per_task=1), TASKS, 5)
    assert sorted(sum(rest, [])) == list(range(10))
    assert {TASKS[i] for i in sum(draw_episodes(Draw(per_task=1, tasks=["reach"]), TASKS, 5), [])} == {"reach"}
    with pytest.raises(ConfigError, match="5 episodes of 'push' are asked for, the dataset has 4"):
        draw_episodes(Draw(per_task=5), TASKS, 0)


def test_only_takes_what_it_builds_on(tmp_path):
    models = {"A": {"train": {"policy.type": "world_A"}}, "B": {"train": {"policy.type": "world_B"}}}
    assert list(make(tmp_path, models=models, only=["eval-B-s2"])) == ["train-B-s2", "eval-B-s2"]
    assert list(make(tmp_path, models=models, only=["B"])) == ["train-B-s1", "eval-B-s1", "train-B-s2", "eval-B-s2"]
    with pytest.raises(ConfigError, match=r"--only=C\* fits no job; models and Prophets are A, B"):
        make(tmp_path, models=models, only=["C*"])


A = {"policy.type": "world_A"}
F = {"policy.type": "world_F"}
REFUSED = [
    ({"modles": {}}, "modles: unknown key; expected one of .*models.*vars"),
    ({"models": {"A": {"tarin": A}}}, "models.A.tarin: unknown key; expected one of .*train.*for"),
    ({"models": {"A": {"train": {"policy": A}}}}, "models.A.train.policy: .*flags are written with dots"),
    ({"models": {}}, "models.*at least 1"),
    ({"models": {"A": None}}, "models.A.train: no policy.type"),
    ({"models": {"A b": {"train": A}}}, "models.A b: a name is made of"),
    ({"models": {"F": {"prophet": "pol", "train": F}}}, r"models.F.prophet: 'pol' is no Prophet of the study \(none\)"),
    ({"models": {"F": {"prophet": "p", "train": F}}, "prophets": {"p": {}}}, "models.F.prophet: no flag .*{prophet}"),
    ({"models": {"F": {"train": F | {"x": "{prophet}"}}}}, r"models.F.train.x: {prophet} is unknown here; .*{seed}"),
    ({"models": {"A": {"train": A | {"dataset.episodes": "{labelled}"}}}}, "{labelled} is unknown"),
    ({"models": {"A": {"train": A | {"seed": 3}}}}, "models.A.train: seed is given by the study itself"),
    ({"eval": {"arms": "zero"}}, "arms is given by the study itself; leave it out"),
    ({"models": {"A": {"train": A, "arms": ["zero", "zero"]}}}, "models.A.arms: .*each once"),
    ({"seeds": []}, "seeds.*at least 1"),
    ({"seeds": [1, 1]}, "seeds: .*each once"),
    ({"seeds": [1, -1]}, r"seeds.1 \(-1\): Input should be greater than or equal to 0"),
    ({"seeds": [2**32]}, r"seeds.0 \(4294967296\): Input should be less than 4294967296"),
    ({"seeds": [True]}, r"seeds.0 \(True\): Input should be a valid integer"),
    ({"models": {"A": {"train": A, "seeds": [-1]}}}, r"models.A.seeds.0 \(-1\): Input should be greater"),
    ({"models": {"A": {"for": {"k": [1, 2]}, "train": A}}}, "models.A: several entries get the name 'A'"),
    ({"models": {"A{k}": {"for": {"k": 4}, "train": A}}}, "models.A{k}.for: expected a list"),
    ({"models": {"A{seed}": {"for": {"seed": [4]}, "train": A}}}, "models.A{seed}.for.seed: choose another name"),
    ({"train": {"dataset.root": "${dota}"}}, r"train.dataset.root: \${dota} is unknown here; known: \${data}"),
    ({"keep_checkpoints": "some"}, "keep_checkpoints .*'last' or 'all'"),
    ({"episodes": {"draw": {"per_task": 5, "tsks": []}}}, "episodes.draw.tsks: unknown key; .*tasks"),
    (
        {
            "models": {"F": {"prophet": "p", "train": F | {"x": "{prophet}"}}},
            "prophets": {"p": {"seed": "{seed}"}},
        },
        "prophets.p.seed: '{seed}' differs from seed to seed; set per_seed: true",
    ),
]


@pytest.mark.parametrize(
    ("changes", "message"), REFUSED, ids=lambda value: value[:40] if isinstance(value, str) else ""
)
def test_what_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "study.yaml: while parsing"),
        ("just text", "expected a mapping"),
        ("root: x\nseeds: [1]\nmodels:\n  A: {}\n  A: {}\n", "line 5: the key 'A' is written twice"),
        ("seeds: [1]\nmodels: {A: {}}\n", "root.*required"),
    ],
)
def test_what_is_no_study(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        make(tmp_path, text)


def test_variables_are_overridden_by_name(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(BASE))
    study = load_study(path, {"data": "elsewhere"}, root="other")
    assert study.root == "other" and study.study == "study"
    assert study.train["dataset.root"] == "elsewhere/stripped"
    with pytest.raises(ConfigError, match="--set dat=...: .* has the vars data"):
        load_study(path, {"dat": "x"})


def test_durations():
    assert [duration(s) for s in (7, 125, 7384)] == ["7 s", "2 min 05 s", "2 h 03 min"]
