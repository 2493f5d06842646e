"""A tiny study with the real commands: killed in the middle of a training, continued, evaluated, exported."""

import json
import signal

import pandas as pd
import pytest
import yaml

from tests.faults import commands
from tests.faults.commands import At, Done
from tests.fixtures_datasets import make_dataset
from tests.plugin.helpers import SMALL
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig
from world_modality_core.precompute.steps import precompute
from world_modality_core.studies.evidence.episode_records import read_episodes


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A study of two models on a dataset that looks like Meta-World's."""
    folder = tmp_path_factory.mktemp("study")
    make_dataset(folder / "source", "tests/light", cameras=["observation.image"], lengths=(12, 17, 14, 20, 15, 13))
    precompute(
        PrecomputeConfig(
            dataset=SourceConfig("tests/light", str(folder / "source")),
            output=OutputConfig("tests/light_world", str(folder / "world")),
            encoder=EncoderSpec(family="efficientnet_lite0", pooling="grid:2x2", height_px=64, width_px=64, pca_dim=8),
            device="cpu",
            num_workers=0,
        )
    )
    windows = {"n_obs_steps": SMALL["n_obs_steps"], "n_future_steps": SMALL["n_future_steps"]}
    small = {f"policy.{name}": value for name, value in SMALL.items()}
    path = folder / "tiny.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "vars": {"data": str(folder)},
                "root": str(folder / "root"),
                "seeds": [3],
                "prophet": {"device": "cpu", **windows},
                "train": {
                    "dataset.repo_id": "tests/light",
                    "dataset.root": "${data}/source",
                    "dataset.episodes": "{labelled}",
                    "policy.companion.root": "${data}/world",
                    **small,
                    "policy.metrics_every": 1,
                    "batch_size": 8,
                    "num_workers": 0,
                    "steps": 40,
                    "save_freq": 4,
                },
                "eval": {
                    "env.type": "metaworld_light",
                    "env.task": "reach-v3",
                    "env.episode_length": 3,
                    "env.observation_height": 64,
                    "env.observation_width": 64,
                    "eval.n_episodes": 2,
                    "eval.batch_size": 2,
                    "eval.use_async_envs": False,
                    "seed": 100000,
                },
                "intervene": {"sources": "pred,zero", "n_bootstrap": 100, "device": "cpu"},
                "episodes": {"draw": {"repo_id": "tests/light", "root": "${data}/source", "per_task": 1}},  # of two
                "prophets": {
                    "pool": {
                        "companions": "${data}/world",
                        "per_seed": True,
                        "exclude_episodes": "{labelled}",
                        "prophet.d_model": 16,
                        "prophet.n_heads": 2,
                        "steps": 4,
                        "batch_size": 4,
                    }
                },
                "models": {
                    "F": {
                        "prophet": "pool",
                        "arms": ["intact", "zero"],
                        "intervene": True,
                        "train": {"policy.type": "world_F", "policy.prophet.init_from": "{prophet}"},
                    }
                },
            }
        )
    )
    return path


def run(study, *arguments: str, at: At | None = None) -> Done:
    # wm-matrix, whose jobs are forks too.
    return commands.run("forked_study:main", str(study), "--jobs=1", *arguments, log=study.parent / "log", at=at)


@pytest.mark.slow
@pytest.mark.sim
def test_a_study_is_killed_continued_and_exported(study):
    root = study.parent / "root"
    last = root / "train-F-s3/train/checkpoints/last"
    killed = run(study, at=At("open", "000008/training_state/training_step"))  # the training's second checkpoint
    assert killed.status == 128 + signal.SIGKILL and last.resolve().name == "000004"
    assert json.loads((root / "train-F-s3/job.json").read_text())["state"] == "running"

    done = run(study)
    assert done.status == 0, done.err
    printed = done.out
    assert "prophet-pool-s3: done before" in printed and "train-F-s3: goes on" in printed
    assert "4 of 4 jobs are done" in printed
    log = (root / "train-F-s3/log.txt").read_text()
    assert "--resume=true" in log
    steps = [json.loads(line)["step"] for line in (root / "train-F-s3/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 41))
    assert sorted(path.name for path in last.parent.iterdir()) == ["000040", "last"]
    episodes = read_episodes(root)
    assert sorted(episodes["arm"]) == ["intact", "intact", "zero", "zero"]
    assert set(episodes["model"]) == {"F"} and set(episodes["train_seed"]) == {3}

    # The labelled episodes, one of each task, are what was trained on, and what the Prophet did not see.
    command = json.loads((root / "train-F-s3/job.json").read_text())["command"]
    labelled = json.loads(next(w for w in command if w.startswith("--dataset.episodes=")).partition("=")[2])
    assert len(labelled) == 2 and {episode % 2 for episode in labelled} == {0, 1}
    prophet = json.loads((root / "prophet-pool-s3/job.json").read_text())["command"]
    assert f"--exclude_episodes={labelled[0]},{labelled[1]}" in prophet

    folder = study.parent / "results"
    assert "4 jobs, 4 episodes, 1 interventions" in run(study, f"--export={folder}").out
    names = ["README.md", "episodes.parquet", "interventions.json", "jobs.json", "prophets.parquet", "study.yaml"]
    assert sorted(path.name for path in folder.iterdir()) == [*names, "training.parquet"]
    for path in folder.iterdir():
        assert str(study.parent).encode() not in path.read_bytes(), path.name
    pd.testing.assert_frame_equal(read_episodes(folder), episodes)
    jobs = {job["name"]: job for job in json.loads((folder / "jobs.json").read_text())["jobs"]}
    assert "--output_dir=$STUDY/train-F-s3/train" in jobs["train-F-s3"]["command"]
    assert jobs["eval-F-s3"]["eval"]["n_action_steps"] == SMALL["n_action_steps"]
    assert any("skill" in metric for metric in pd.read_parquet(folder / "prophets.parquet")["metric"])
    assert set(pd.read_parquet(folder / "training.parquet")["metric"]) >= {"loss_action", "world_gate"}
