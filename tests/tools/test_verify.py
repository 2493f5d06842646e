"""`wm-verify` on artefacts of every kind: silent where all is well, and one line for each thing that isn't."""

import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from coc_tools.episodes import EpisodeReader
from coc_tools.store import LabelFile
from tests.coc.helpers import label_of
from tests.fixtures_datasets import make_dataset
from tests.intervention.helpers import make_checkpoint
from tests.security.test_checkpoints import edit
from tests.studies.report.synthetic import write_eval, write_job
from wm_tools.push import cli as push_cli
from wm_tools.verify import cli
from wm_tools.verify.artefacts import kind_of
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import open_companion
from world_modality_core.precompute.finish import write_stripped
from world_modality_core.precompute.source import SourceDataset

DATA = "data/chunk-000/file-000.parquet"
VIDEO = "videos/observation.images.top/chunk-000/file-000.mp4"
SOURCED = ("companion", "companion_stripped", "labels/labels.jsonl")


@pytest.fixture(scope="module")
def artefacts(tiny_companion, tmp_path_factory):
    """One of each kind; do not write there."""
    base = tmp_path_factory.mktemp("artefacts")
    source = SourceDataset("tests/source", str(tiny_companion.source_root))
    shutil.copytree(tiny_companion.companion_root, base / "companion", ignore=shutil.ignore_patterns("cache"))
    shutil.copytree(tiny_companion.source_root, base / "dataset")
    write_stripped(source, open_companion(root=base / "companion"))
    make_dataset(base / "images", lengths=(3,), cameras=["observation.images.top"], use_videos=False, size=32)
    make_checkpoint(base / "checkpoint", tiny_companion, "world_F")
    (base / "labels").mkdir()
    with LabelFile(base / "labels/labels.jsonl") as labels:
        labels.append(label_of(EpisodeReader("tests/source", str(tiny_companion.source_root)), 0))
    arms = {"intact": 0.5, "zero": 0.4}
    write_eval(base / "evaluation", "F", 0, arms, n_scenes=3, video=b"x", n_episodes=3)
    edit(base / "evaluation/eval.json", lambda info: info.update(seed=100_000))
    write_job(base / "study/eval-F-0", "eval", "F", 0, ["wm-eval"])
    shutil.copytree(base / "evaluation", base / "study/eval-F-0/eval")
    return base


NAMES = [
    "companion",
    "companion_stripped",
    "dataset",
    "images",
    "checkpoint",
    "labels/labels.jsonl",
    "evaluation",
    "study",
]


def faults(path: Path, source: Path | None = None) -> list[str]:
    return kind_of(path).faults(path, source)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_whole_has_no_faults_and_nothing_is_written(artefacts, name):
    before = sorted(artefacts.rglob("*"))
    assert faults(artefacts / name, artefacts / "dataset" if name in SOURCED else None) == []
    assert sorted(artefacts.rglob("*")) == before


def flip(path: Path) -> None:
    """Another value in the middle of a parquet file's latents, in a file that is otherwise valid."""
    table = pq.read_table(path)
    name = next(name for name in table.column_names if name.endswith("latents"))
    rows = table[name].to_pylist()
    rows[len(rows) // 2][0] += 1.0
    column = pa.array(rows, table[name].type)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), path)


def only_named(path: Path) -> None:
    """The image is no longer in the file, but a path is."""
    table = pq.read_table(path)
    name = "observation.images.top"
    rows = [{"bytes": None, "path": "/etc/hostname"}, *table[name].to_pylist()[1:]]
    pq.write_table(table.set_column(table.column_names.index(name), name, pa.array(rows, table[name].type)), path)


def not_a_number(path: Path) -> None:
    tensors = load_file(path)
    next(value for value in tensors.values() if value.is_floating_point() and value.numel()).view(-1)[0] = torch.nan
    save_file(tensors, path)


def lead_out(path: Path) -> None:
    elsewhere = path.parents[1] / f"moved-{path.name}"
    shutil.move(path, elsewhere.parent.parent / elsewhere.name)
    path.symlink_to(elsewhere.parent.parent / elsewhere.name)


def hostile(path: Path) -> None:
    edit(path, lambda content: content["steps"].append({"class": "subprocess.Popen", "config": {"args": "true"}}))


CASES = {
    "another latent": ("companion", DATA, flip, "latents are not those that wm-precompute wrote"),
    "a data file that is missing": ("companion", DATA, Path.unlink, "files that its metadata names are not there"),
    "a cut file": ("dataset", DATA, lambda path: path.write_bytes(path.read_bytes()[:900]), "can't be read as parquet"),
    "a missing video": ("dataset", VIDEO, Path.unlink, "the first is videos/observation.images.top"),
    "a cut video": ("dataset", VIDEO, lambda path: path.write_bytes(path.read_bytes()[:-1500]), "video"),
    "an image that is only named": ("images", DATA, only_named, "1 images of observation.images.top are only named"),
    "a link": ("checkpoint", "model.safetensors", lead_out, "is a link to"),
    "a foreign class": ("checkpoint", "policy_preprocessor.json", hostile, "names 'subprocess.Popen'"),
    "weights that are no numbers": ("checkpoint", "model.safetensors", not_a_number, "holds NaN"),
    "code": ("checkpoint", "hook.py", lambda path: path.write_text("1"), "hook.py may hold code"),
    "a line that is no label": ("labels/labels.jsonl", "", lambda path: path.write_text("{}\n"), "line 1"),
    "a part that is missing": ("evaluation", "episodes/zero-push-v3-100000.parquet", Path.unlink, "of episodes/"),
    "scenes that were not run": (
        "evaluation", "eval.json", lambda path: edit(path, lambda info: info.update(n_episodes=5)),
        "2 of 5 scenes are missing, the first is seed 100003",
    ),
    "a film that is missing": ("evaluation", "videos/intact-0-0.mp4", Path.unlink, "intact-0-0.mp4 is missing"),
    "a job that is not done": (
        "study", "eval-F-0/job.json", lambda path: edit(path, lambda job: job.update(state="failed")), "failed, not",
    ),
    "a job without its table": ("study", "eval-F-0/eval/episodes.parquet", Path.unlink, "the evaluation did not end"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_fault_is_named(artefacts, tmp_path, case):
    name, file, harm, said = CASES[case]
    top = name.split("/")[0]
    shutil.copytree(artefacts / top, tmp_path / "here" / top)
    path = tmp_path / "here" / name
    harm(path / file if file else path)
    found = faults(path)
    assert any(said in fault for fault in found), found
    assert all("\n" not in fault for fault in found)


def test_what_is_of_another_source_is_named(artefacts, tmp_path):
    for name in ("companion", "labels/labels.jsonl"):
        found = faults(artefacts / name, artefacts / "images")
        assert len(found) == 1 and ("is not that dataset or a copy of it" in found[0] or "line 1" in found[0])
    assert "it is no copy of" in faults(artefacts / "companion_stripped", artefacts / "images")[0]


def test_the_command(artefacts, capsys, monkeypatch, tmp_path):
    def command(*arguments):
        monkeypatch.setattr(sys, "argv", ["wm-verify", *map(str, arguments)])
        return cli.main()

    assert command(artefacts / "evaluation", artefacts / "companion", f"--source={artefacts / 'dataset'}") == 0
    assert capsys.readouterr().out.count(", whole\n") == 2
    shutil.copytree(artefacts / "evaluation", tmp_path / "evaluation")
    (tmp_path / "evaluation/eval.json").write_text("{")
    assert command(artefacts / "evaluation", tmp_path / "evaluation") == 1
    assert capsys.readouterr().out.count(f"{tmp_path / 'evaluation'}: ") == 1
    with pytest.raises(SystemExit, match="is none of a copy of a dataset, a companion"):
        command(tmp_path)


def test_wm_push_verifies_first(artefacts, tmp_path):
    shutil.copytree(artefacts / "checkpoint", tmp_path / "checkpoint")
    not_a_number(tmp_path / "checkpoint/model.safetensors")
    given = push_cli.make_parser().parse_args([str(tmp_path / "checkpoint"), "--repo_id=me/x", "--dry_run"])
    with pytest.raises(ConfigError, match="a checkpoint, is not uploaded: .* holds NaN"):
        push_cli.work(given)


def test_the_help_and_what_needs_no_torch_come_at_once(artefacts):
    command = [sys.executable, "-m", "wm_tools.verify.cli"]
    assert "companion" in subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    look = (
        f"import sys; from wm_tools.verify.cli import main; sys.argv = ['x', {str(artefacts / 'evaluation')!r}]; main()"
    )
    heavy = "print([name for name in ('torch', 'lerobot', 'transformers') if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"from wm_tools.verify import cli; {look}; {heavy}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "[]"
