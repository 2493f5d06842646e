"""What earlier versions wrote is read, and means the same numbers, for ever after (make.py writes the folders)."""

import json
import re
import shutil
from importlib.metadata import version

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.compatibility import make

VERSIONS = sorted(path.parent for path in make.HERE.glob("*/expected.json"))
ids = {"ids": lambda path: path.name}


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda path: path.name)
def read(request, tmp_path_factory):
    """(folder, what is read from a copy of it)."""
    copied = shutil.copytree(request.param, tmp_path_factory.mktemp("old") / request.param.name)
    return request.param, copied, make.read_numbers(copied)


def test_this_version_has_a_folder():
    assert version("lerobot_policy_world_modality") in [path.name for path in VERSIONS], (
        "python tests/compatibility/make.py"
    )


def test_every_number_is_what_that_version_read(read):
    folder, _, (tensors, values) = read
    expected = load_file(folder / "expected.safetensors")
    assert set(tensors) == set(expected)
    for name, value in expected.items():
        # Latents are read as they are; actions come out of matrix products, whose last bits are the machine's.
        exact = {"rtol": 0, "atol": 0} if name in ("latents", "tokens", "is_pad") else {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(tensors[name], value, **exact, msg=lambda text, name=name: f"{name}: {text}")
    assert values == json.loads((folder / "expected.json").read_text())


def test_the_expected_numbers_say_something(read):
    folder, _, _ = read
    expected = load_file(folder / "expected.safetensors")
    assert expected["is_pad"].any() and not expected["is_pad"].all()
    for name in make.TYPES:
        live = expected[f"{name}.live"]
        assert torch.isfinite(live).all() and (live[0] != live[1]).any() and live.abs().max() > 0.01
    assert not torch.equal(expected["world_F.live"], expected["world_A.live"])


def test_changed_weights_give_other_numbers(read, tmp_path):
    # The control: what is compared depends on what is in the folder.
    folder, copied, (tensors, _) = read
    root = shutil.copytree(copied, tmp_path / "changed")
    weights = root / "policies/world_A/model.safetensors"
    changed = load_file(weights)
    changed["action_head.3.bias"] += 1
    save_file(changed, weights)
    meta = make.LeRobotDatasetMetadata(make.SOURCE, root=root / "source")
    acts = make._acts(root, weights.parent, meta)
    assert (acts["live"] - tensors["world_A.live"]).abs().max() > 0.01
    assert (acts["recorded"] - tensors["world_A.recorded"]).abs().max() > 0.1


@pytest.mark.parametrize("folder", VERSIONS, **ids)
def test_the_folder_is_small_and_names_no_disk(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".parquet", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 600_000
    for path in files:
        found = re.search(rb"/(?:home|root|tmp|work|Users|mnt|var)/[\w.-]+", path.read_bytes())
        assert found is None, (path, found)


def test_a_version_is_never_written_twice(capsys):
    before = {path: path.stat().st_mtime_ns for path in make.HERE.rglob("*.json")}
    with pytest.raises(SystemExit, match="exists: it is what that version wrote"):
        make.main()
    assert {path: path.stat().st_mtime_ns for path in make.HERE.rglob("*.json")} == before
