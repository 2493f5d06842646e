"""Damaged files of every kind, a few of each: what a reader can't read it refuses by name, quickly.

`benchmarks/fuzz_readers.py` reads a hundred thousand of them.
"""

import random

import pytest

from tests.fuzz.mutations import damaged
from tests.fuzz.readers import Target, fresh, fuzz, make_targets
from tests.studies.report.synthetic import write_study

N = 2500
NAMES = [
    "companion: its own files", "companion: LeRobot's metadata", "companion: data", "latent cache",
    "unfinished precompute", "mark of a copy", "encoder spec", "video", "video of a page", "picture of a page",
    "eval.json", "episodes", "records of a page", "report page", "imagined futures", "study", "job", "Prophet",
    "Prophet of a policy", "monitor", "rows of a monitor", "labels", "labels that go on", "imported texts",
    "viewer", "object names", "a model's reply", "journal of a write",
]  # fmt: skip


@pytest.fixture(scope="module")
def targets(tiny_companion, tmp_path_factory):
    base = tmp_path_factory.mktemp("fuzz")
    made = make_targets(base, tiny_companion.source_root, tiny_companion.companion_root, write_study)
    assert [target.name for target in made] == NAMES
    return base, {target.name: target for target in made}


@pytest.mark.parametrize("name", NAMES)
def test_what_cannot_be_read_is_refused_by_name(targets, name):
    base, target = targets[0], targets[1][name]
    target.read(fresh(target, base / "work"))  # undamaged it can be read
    total = sum(each.weight for each in targets[1].values())
    n = max(10, round(N * target.weight / total))
    assert fuzz(target, n, 0, base / "work", damaged) == []
    assert target.outcomes["refused"], "no damage was noticed: nothing was tested"


def test_a_reader_with_a_fault_and_one_that_hangs_are_found(tmp_path):
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid/a.json").write_text('{"a": [1, 2, {"b": "c"}]}')

    def careless(root):
        return [chr(byte) for byte in (root / "a.json").read_bytes()].index("c") + {}["x"]

    def stuck(root):
        while True:
            pass

    for read, told, limit_s in ((careless, "Error", 120.0), (stuck, "Hang", 0.2)):
        target = Target("x", tmp_path / "valid", {"a.json": "json"}, read)
        found = fuzz(target, 2, 0, tmp_path / "work", damaged, limit_s)
        assert len(found) == 2 and told in found[0]["error"]


def test_the_damage_is_damage_and_depends_on_the_seed_alone():
    valid = b'{"a": [1, 2, {"b": "c"}], "d": 5.5}\n'
    for kind in ("json", "jsonl", "text", "binary"):
        made = [damaged(valid, kind, random.Random(i)) for i in range(200)]
        assert made == [damaged(valid, kind, random.Random(i)) for i in range(200)]
        assert sum(each != valid for each in made) > 190 and len(set(made)) > 100
