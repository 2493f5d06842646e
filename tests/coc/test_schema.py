"""The label schema: what it refuses, its text, its published JSON Schema."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest
from pydantic import ValidationError

from coc_tools.schema import EpisodeLabel, LabelStep, Relation, render_text, reply_schema, step_text
from tests.coc.helpers import PROVENANCE, step, steps_json

REPO = Path(__file__).parents[2]


def label(**kwargs) -> EpisodeLabel:
    values = {"episode_index": 3, "task": "push", "length_s": 2.0, "steps": [step(0, 1)], "provenance": PROVENANCE}
    return EpisodeLabel(**(values | kwargs))


def test_published_json_schema_is_the_models():
    published = json.loads((REPO / "docs/coc_schema.json").read_text())
    assert published == EpisodeLabel.model_json_schema(), (
        "write it again: python -c 'import json; from coc_tools.schema import EpisodeLabel; "
        "print(json.dumps(EpisodeLabel.model_json_schema(), indent=2))' > docs/coc_schema.json"
    )
    jsonschema.validate(json.loads(label().to_line()), published)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(json.loads(label().to_line()) | {"colour": "red"}, published)


def test_a_label_survives_its_line_and_lines_are_stable():
    before = label(steps=[step(0, 1), step(1, 2, "Der Greifer öffnet\n sich", relations=[
        Relation(subject="gripper", relation="releases", object="puck")])])  # fmt: skip
    line = before.to_line()
    after = EpisodeLabel.model_validate_json(line)
    assert after == before and after.to_line() == line and "\n" not in line
    assert after.steps[1].what == "Der Greifer öffnet sich"
    assert list(json.loads(line)) == sorted(json.loads(line))


def test_text_of_steps():
    steps = [step(0, 1, "The gripper closes.", why="because it must hold"), step(1, 2, "It slips", outcome="failure")]
    assert step_text(steps[0]) == "The gripper closes, because it must hold."
    assert render_text(steps) == (
        "1. The gripper closes, because it must hold. 2. It slips, because the goal of 1 is near. Outcome: failure."
    )
    assert label(steps=steps).text == render_text(steps)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": "something else"}, "not the rendering"),
        ({"steps": []}, "needs steps or text"),
        ({"length_s": float("nan")}, "finite"),
        ({"episode_index": -1}, "greater than or equal to 0"),
        ({"colour": "red"}, "Extra inputs"),
    ],
)
def test_labels_that_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        label(**change)


@pytest.mark.parametrize(
    "change",
    [{"end_s": 0.0}, {"start_s": -1}, {"what": " \n"}, {"why": ""}, {"outcome": "fine"}, {"objects": [""]},
     {"end_s": float("inf")}, {"what": "x" * 601}],
)  # fmt: skip
def test_steps_that_are_refused(change):
    good = step(0, 1).model_dump()
    LabelStep(**good)
    with pytest.raises(ValidationError):
        LabelStep(**(good | change))


def test_free_text_label_keeps_its_text():
    assert label(steps=[], text="It pushes.").text == "It pushes."


def test_reply_schema_is_strict():
    schema = reply_schema()
    jsonschema.validate(json.loads(steps_json(2.0)), schema)
    objects = [schema, *schema["$defs"].values()]
    assert len(objects) == 3
    for node in objects:
        assert node["additionalProperties"] is False
        assert node["required"] == list(node["properties"])
    missing = json.loads(steps_json(2.0))
    del missing["steps"][0]["relations"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(missing, schema)
