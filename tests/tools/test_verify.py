"""`wm-verify` on artefacts that 0.1.0 wrote, and on copies of them that were damaged in one place each."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.fixtures_datasets import make_dataset
from tests.security.test_checkpoints import edit
from wm_tools.push.cli import main as push_main
from wm_tools.verify.kinds import KINDS, verify
from world_modality_core.io.errors import ConfigError

REPO = Path(__file__).parents[2]
WRITTEN = REPO / "tests/compatibility/0.1.0"
DATA = "data/chunk-000/file-000.parquet"


def tensors(path: Path, change) -> None:
    """Change the tensors of a file."""
    values = load_file(path)
    change(values)
    save_file(values, path)


def column(path: Path, name: str, change) -> None:
    """Change the values of a column of a parquet file."""
    table = pq.read_table(path)
    values = change(table[name].to_pylist())
    place = table.schema.get_field_index(name)
    pq.write_table(
        table.set_column(place, table.schema.field(name), pa.array(values, table.schema.field(name).type)), path
    )


def with_nan(values: dict) -> None:
    name = next(name for name, value in values.items() if value.dtype == np.float32 and value.size > 3)
    values[name].flat[0] = np.nan


def link(path: Path) -> None:
    """Put a link out of the artefact in a file's place."""
    outside = path.parents[len(path.parents) - 3] / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def rows_of(folder: Path, name: str, change) -> None:
    for path in sorted((folder / "episodes").glob("intact*")):
        column(path, name, change)


# (artefact, its source or None, what is done to it, what the line says)
DAMAGE = {
    "companion: a latent": ("companion", None, lambda r: column(r / DATA, "world.latents", lambda v: v[::-1]),
                            "latents are not those"),
    "companion: statistics": ("companion", None, lambda r: tensors(
        r / "meta/world_stats.safetensors", lambda v: v.update(mean=v["mean"] + 1)), "mean is not that of the latents"),
    "companion: PCA": ("companion", None, lambda r: tensors(
        r / "meta/world_pca.safetensors", lambda v: v.update({k: x * 2 for k, x in v.items()})), "is not the PCA"),
    "companion: another source": ("companion", "source", lambda r: edit(
        r / "meta/world_modality.json", lambda c: c["source"].update(episode_lengths_sha256="0" * 64)),
        "was made from"),
    "companion: a task of another source": ("companion", "source", lambda r: column(
        r / DATA, "task_index", lambda v: [1 - x for x in v]), "its task_index are not what"),
    "companion: a link": ("companion", None, lambda r: link(r / "meta/stats.json"), "stats.json is a link to"),
    "dataset: a part is missing": ("source", None, lambda r: (r / DATA).unlink(), "lacks 1 of its files"),
    "dataset: counts": ("source", None, lambda r: edit(r / "meta/info.json", lambda c: c.update(total_frames=35)),
                        "total_frames=35"),
    "dataset: NaN": ("source", None, lambda r: column(
        r / DATA, "observation.state", lambda v: [[float("nan")] * len(v[0]), *v[1:]]),
        "state is NaN or Inf in 1 frames"),
    "dataset: unfinished": ("source", None, lambda r: (r / "meta/x.partial").write_text(""), "not written to its end"),
    "Prophet: a tensor": ("prophet", None, lambda r: tensors(
        r / "model.safetensors", lambda v: v.pop("prophet.head.bias")), "'head.bias' has shape None"),
    "Prophet: NaN": ("prophet", None, lambda r: tensors(r / "model.safetensors", with_nan), "holds NaN"),
    "Prophet: horizon": ("prophet", None, lambda r: edit(r / "config.json", lambda c: c.update(n_future_steps=3)),
                         "the config asks for"),
    "checkpoint: code": ("policies/world_F", None, lambda r: edit(
        r / "policy_preprocessor.json", lambda c: c["steps"][0].update({"class": "subprocess.Popen", "config": {}}) or
        c["steps"][0].pop("registry_name")), "names 'subprocess.Popen'"),
    "checkpoint: cut short": ("policies/world_F", None, lambda r: os.truncate(r / "model.safetensors", 9000),
                              "can't be read as a policy's weights"),
    "checkpoint: a script": ("policies/world_F", None, lambda r: (r / "hook.py").write_text("1"), "may hold code"),
    "checkpoint: NaN": ("policies/world_F", None, lambda r: tensors(r / "model.safetensors", with_nan), "holds NaN"),
    "checkpoint: no processor": ("policies/world_F", None, lambda r: (r / "policy_preprocessor.json").unlink(),
                                 "policy_preprocessor.json is missing"),
    "checkpoint: config": ("policies/world_F", None, lambda r: edit(
        r / "config.json", lambda c: c.update(n_future_steps="many")), "can't be read as a policy's config"),
    "evaluation: an episode is missing": ("evaluation", None, lambda r: edit(
        r / "eval.json", lambda c: c.update(n_episodes=11)), "2 of 22 episodes are missing, the first gate_closed"),
    "evaluation: another model's rows": ("evaluation", None, lambda r: rows_of(r, "model", lambda v: ["X"] * len(v)),
                                         "rows of model X"),
    "evaluation: table": ("evaluation", None, lambda r: column(
        r / "episodes.parquet", "success", lambda v: [not x for x in v]), "does not hold the rows"),
    "evaluation: not ended": ("evaluation", None, lambda r: (r / "episodes.parquet").unlink(), "it did not end"),
    "evaluation: not a checkpoint's": ("evaluation", "policies/world_A", lambda r: None, "is not an evaluation of"),
    "evaluation: scenes": ("evaluation", None, lambda r: rows_of(r, "init_hash", lambda v: ["0"] * len(v)),
                           "did not look the same"),
    "evaluation: no description": ("evaluation", None, lambda r: (r / "eval.json").unlink(), "eval.json: No such file"),
    "labels: cut off": ("labels.jsonl", None, lambda p: os.truncate(p, p.stat().st_size - 9),
                         "its last line is cut off"),
    "labels: of another task": ("labels.jsonl", "source", lambda p: p.write_text(
        p.read_text().replace('"task": "', '"task": "never ')), "These are labels of another dataset"),
    "labels: twice": ("labels.jsonl", None, lambda p: p.write_text(p.read_text() * 2), "both of episode"),
}  # fmt: skip


@pytest.fixture
def written(tmp_path):
    copy = shutil.copytree(WRITTEN, tmp_path / "written")
    edit(copy / "evaluation/eval.json", lambda content: content.update(n_action_steps=4))  # its rows are made up
    return copy


def test_what_is_whole_passes(written):
    for name, source in (
        ("companion", "source"), ("source", None), ("prophet", None), ("policies/world_A", None),
        ("policies/world_F", None), ("evaluation", None), ("labels.jsonl", "source"),
    ):  # fmt: skip
        facts, faults = verify(written / name, source and written / source)
        assert faults == [] and any(character.isdigit() for character in facts), name


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named(written, name):
    path, source, damage, says = DAMAGE[name]
    damage(written / path)
    before = {each: each.stat().st_mtime_ns for each in written.rglob("*")}
    _, faults = verify(written / path, source and written / source)
    assert any(says in line for line in faults), faults
    assert {each: each.stat().st_mtime_ns for each in written.rglob("*")} == before


@pytest.mark.parametrize("study", ["study1", "study2_fresh"])
def test_an_exported_study(tmp_path, study):
    copy = shutil.copytree(REPO / "results" / study, tmp_path / study)
    assert verify(copy)[1] == []
    if (copy / "jobs.json").is_file():
        table = pq.read_table(copy / "episodes.parquet")
        pq.write_table(table.slice(1), copy / "episodes.parquet")
        assert "1 of " in verify(copy)[1][0] and "episodes are missing" in verify(copy)[1][0]


def test_a_study_is_as_whole_as_its_jobs(written, tmp_path):
    job = {"name": "eval-F-7", "kind": "eval", "model": "F", "train_seed": 7, "command": ["wm-eval"], "seconds": 1.0}
    job |= {"state": "done", "started_at": "2026-01-01", "after": {}}
    study = tmp_path / "study"
    shutil.copytree(written / "evaluation", study / "eval-F-7/eval")
    (study / "eval-F-7/job.json").write_text(json.dumps(job))
    assert verify(study)[1] == []
    (study / "eval-F-7/job.json").write_text(json.dumps(job | {"state": "running", "after": {"train-F-7": "then"}}))
    (study / "eval-F-7/eval/episodes.parquet").unlink()
    running, after, inside = verify(study)[1]
    assert "is running" in running and "another run of train-F-7" in after and "did not end" in inside
    shutil.rmtree(study / "eval-F-7/eval")
    (study / "eval-F-7/job.json").write_text(json.dumps(job))
    assert "what it made is not there" in verify(study)[1][0]


@pytest.mark.parametrize("use_videos", [True, False], ids=["videos", "images"])
def test_pictures(tmp_path, use_videos):
    root = tmp_path / "pictures"
    make_dataset(root, lengths=(5, 6), cameras=("observation.images.top",), use_videos=use_videos)
    assert verify(root)[1] == []
    if use_videos:
        video = next(root.rglob("*.mp4"))
        os.truncate(video, video.stat().st_size // 2)
        assert verify(root)[1][0].startswith(f"{video}")
        return
    data = next((root / "data").rglob("*.parquet"))
    large = tmp_path / "large.png"
    Image.new("RGB", (900, 900)).save(large)
    for image, says in (({"bytes": None, "path": "/etc/passwd"}, "1 images of observation.images.top are only named"),
                        ({"bytes": large.read_bytes(), "path": None}, "900 x 900 px")):  # fmt: skip
        column(data, "observation.images.top", lambda values, image=image: [image, *values[1:]])
        assert says in verify(root)[1][0]


def test_what_can_not_be_checked(written, tmp_path):
    for path, source, says in (
        (tmp_path / "none", None, "does not exist"), (tmp_path, None, "nothing that is known here"),
        (written / "prophet", written, "is not held against anything"),
        (written / "companion", tmp_path / "none", "name the dataset that it was made from"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            verify(path, source)


def test_every_kind_has_a_check():
    import importlib

    for kind in KINDS:
        module, name = kind.check.split(":")
        assert callable(getattr(importlib.import_module(f"wm_tools.verify.{module}"), name))


RUN = """
import sys
from wm_tools.verify.cli import main
status = 0
try:
    status = main()
except SystemExit as stop:
    status = stop.code
print("HEAVY", status, sorted({"torch", "lerobot", "transformers"} & set(sys.modules)))
"""


@pytest.mark.parametrize(
    ("arguments", "says", "status"),
    [(["--help"], "usage: wm-verify", 0), (["evaluation"], "20 episodes of 2 arms: nothing is wrong", 0),
     (["labels.jsonl"], "2 episodes: nothing is wrong", 0), (["nothing"], "", 2)],
)  # fmt: skip
def test_the_command(written, arguments, says, status):
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], capture_output=True, text=True, cwd=written, env=os.environ
    )
    *_, last = done.stdout.splitlines()
    assert says in done.stdout and last == f"HEAVY {status} []", (done.stdout, done.stderr)


def test_an_upload_is_checked_first(written, capsys, monkeypatch):
    tensors(written / "companion/meta/world_stats.safetensors", lambda values: values.update(std=values["std"] * 2))
    monkeypatch.setattr(sys, "argv", ["wm-push", str(written / "companion"), "--repo_id=me/x"])
    with pytest.raises(SystemExit, match="nothing was uploaded: .*std is not that of the latents"):
        push_main()
