"""`wm-push` uploads files of the folder itself, of names that the artefact is made of, and nothing behind a link.

That what lies beside is left out is seen in tests/hub, on the files that arrive.
"""

import os
import shutil
from pathlib import Path

import pytest

from coc_tools.episodes import EpisodeReader
from coc_tools.store import LabelFile
from lerobot_policy_world_modality.hub.trusted_files import checkpoint_files
from lerobot_policy_world_modality.hub.uploads import push
from tests.coc.helpers import label_of
from tests.intervention.helpers import make_checkpoint
from tests.security.test_checkpoints import edit
from wm_tools.push.cli import make_parser
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.hub_transfer import dataset_files

# Of each artefact, files that may be links in a hostile or careless copy.
LINKED = [
    ("companion", "meta/world_stats.safetensors"),
    ("companion", "meta/info.json"),
    ("companion", "meta/episodes"),
    ("companion", "data/chunk-000/file-000.parquet"),
    ("companion", "data"),
    ("checkpoint", "config.json"),
    ("checkpoint", "model.safetensors"),
    ("checkpoint", "policy_preprocessor.json"),
    ("checkpoint", "policy_preprocessor_step_3_normalizer_processor.safetensors"),
    ("checkpoint", "train_config.json"),
    ("labels", "labels.jsonl"),
]


def dry_run(path: Path) -> str:
    return push(make_parser().parse_args([str(path), "--repo_id=me/x", "--dry_run"]))


@pytest.fixture(scope="module")
def clean(tiny_companion, tmp_path_factory):
    """A companion, a checkpoint and a file of labels."""
    base = tmp_path_factory.mktemp("artefacts")
    shutil.copytree(tiny_companion.companion_root, base / "companion")
    make_checkpoint(base / "checkpoint", tiny_companion, "world_A")
    (base / "labels").mkdir()
    with LabelFile(base / "labels/labels.jsonl") as labels:
        labels.append(label_of(EpisodeReader(tiny_companion.source_repo_id, str(tiny_companion.source_root)), 0))
    return base


@pytest.fixture
def artefacts(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "artefacts")


def path_of(artefacts: Path, kind: str) -> Path:
    return artefacts / "labels/labels.jsonl" if kind == "labels" else artefacts / kind


@pytest.mark.parametrize("kind", ["companion", "checkpoint", "labels"])
def test_what_is_regular_passes(artefacts, kind):
    assert dry_run(path_of(artefacts, kind))
    (artefacts / "last").symlink_to(path_of(artefacts, kind).parent)  # `checkpoints/last`: the way there may be a link
    assert dry_run(artefacts / "last" / path_of(artefacts, kind).name)


@pytest.mark.parametrize("kind, name", LINKED)
def test_a_link_is_refused_by_its_name(artefacts, tmp_path, kind, name):
    path = artefacts / kind / name
    shutil.move(path, tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match=f"{name}.* is a link"):
        dry_run(path_of(artefacts, kind))


def test_what_is_no_part_is_not_among_the_files(artefacts, tmp_path):
    (tmp_path / "key").write_text("secret")
    for kind in ("companion", "checkpoint"):
        (artefacts / kind / "meta").mkdir(exist_ok=True)
        os.symlink(tmp_path / "key", artefacts / kind / "meta/notes.json")
        for name in ("notes.json", "notes.yaml", "notes.safetensors", "data/notes.parquet", ".netrc"):
            (artefacts / kind / name).parent.mkdir(exist_ok=True)
            (artefacts / kind / name).write_text("secret")
        assert dry_run(artefacts / kind)
    names = {*checkpoint_files(artefacts / "checkpoint"), *dataset_files(artefacts / "companion")}
    assert {"config.json", "meta/info.json", "data/chunk-000/file-000.parquet"} <= names
    assert not [name for name in names if "notes" in name or "netrc" in name]


def test_a_state_file_is_of_safetensors(artefacts):
    (artefacts / "checkpoint/id_rsa").write_text("secret")
    file = artefacts / "checkpoint/policy_preprocessor.json"
    edit(file, lambda content: content["steps"][0].update(state_file="id_rsa"))
    with pytest.raises(ConfigError, match="'id_rsa' is no file of safetensors"):
        dry_run(artefacts / "checkpoint")
