"""What is said of a Prophet that was trained before the policy was."""

import json
from types import SimpleNamespace

import pytest

from lerobot_policy_world_modality.intervention.pretraining import seen_beforehand
from tests.intervention.helpers import make_checkpoint, run

COMPANION = SimpleNamespace(info=SimpleNamespace(content_sha256="a" * 64))


def policy(prophet=None, trunk=None):
    return SimpleNamespace(prophet=SimpleNamespace(initialised_from=prophet), trunk_initialised_from=trunk)


def write(folder, sha256: str, episodes) -> str:
    folder.mkdir(exist_ok=True)
    companions = [{"repo_id": "x", "content_sha256": sha256, "episodes": episodes, "held_out_episodes": [9]}]
    (folder / "config.json").write_text(json.dumps({"training": {"companions": companions}}))
    return str(folder)


def test_a_policy_without_a_start_has_nothing_to_say():
    assert seen_beforehand(policy(), COMPANION, [1, 2]) == ""
    assert seen_beforehand(SimpleNamespace(), None, [1, 2]) == ""


def test_episodes_that_the_prophet_learned_from_are_counted(tmp_path):
    start = write(tmp_path / "prophet", "a" * 64, [1, 2, 3])
    said = seen_beforehand(policy(prophet=start), COMPANION, [2, 3, 9])
    assert "its Prophet" in said and "on 2 of them, so that its skill is not that on new ones" in said
    said = seen_beforehand(policy(prophet=start), COMPANION, [9])
    assert said.endswith("on none of them")
    said = seen_beforehand(policy(trunk=start), COMPANION, [1, 9])
    assert "its trunk started from" in said and said.endswith("on 1 of them")


def test_what_is_unknown_is_said(tmp_path):
    start = write(tmp_path / "prophet", "b" * 64, [1])
    assert "other companions than this one" in seen_beforehand(policy(prophet=start), COMPANION, [1])
    assert "without a companion" in seen_beforehand(policy(prophet=start), None, [1])
    assert "its folder does not say" in seen_beforehand(policy(prophet=str(tmp_path / "gone")), COMPANION, [1])


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"training": 3}', '{"training": {"companions": [{"x": 1}]}}'])
def test_a_damaged_start_says_nothing(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    assert "its folder does not say" in seen_beforehand(policy(prophet=str(tmp_path)), COMPANION, [1])


def test_the_record_says_it(tiny_companion, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "policy", tiny_companion, gate=0.5)
    sha256 = json.loads((tiny_companion.companion_root / "meta" / "world_modality.json").read_text())["content_sha256"]
    start = write(tmp_path / "prophet", sha256, [0, 1])
    config = json.loads((checkpoint / "config.json").read_text())
    config["prophet"]["initialised_from"] = start
    (checkpoint / "config.json").write_text(json.dumps(config))
    record = run(checkpoint, tmp_path / "record", sources="zero", rollout_rounds=1)
    assert "training saw none of them" in record["held_out"]
    assert "trained beforehand on 1 of them" in record["held_out"]
