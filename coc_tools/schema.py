"""What a chain-of-causality label is: an episode's steps, each with what happens and why, and where it comes from.

A label file holds one `EpisodeLabel` per line as JSON (`coc_tools.store`). The JSON Schema is `docs/coc_schema.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, model_validator

RelationName = Literal[
    "approaches", "touches", "grasps", "lifts", "carries", "places", "releases", "leaves",
    "pushes", "pulls", "slides", "presses", "turns", "opens", "closes", "inserts", "hits",
]  # fmt: skip
Outcome = Literal["success", "failure", "partial", "unknown"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


# Runs of white space (line breaks too) count as one space: a step is one line of text wherever it is shown.
Text = Annotated[str, AfterValidator(_one_line), StringConstraints(min_length=1, max_length=600)]
Name = Annotated[str, AfterValidator(_one_line), StringConstraints(min_length=1, max_length=80)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class LineModel(BaseModel):
    """What is kept as one line of a file."""

    def to_line(self) -> str:
        """This as one line of JSON with sorted keys, without the line break."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, sort_keys=True)


class _Model(BaseModel):
    # An unknown key in a label is a mistake (a misspelt field, another version), not something to drop.
    model_config = ConfigDict(extra="forbid")


class Relation(_Model):
    """Who does what to what: ("gripper", "pushes", "puck")."""

    subject: Name
    relation: RelationName
    object: Name


class LabelStep(_Model):
    """One step of an episode.

    `what` is a sentence of what can be seen ("The gripper closes on the puck"), `why` a clause that completes
    "because ..." with its precondition, contact or goal ("it must be held before it can be lifted").
    """

    __qualname__ = "Step"  # pydantic's name of it in the schema's $defs
    model_config = ConfigDict(title="Step")

    start_s: Seconds
    end_s: Seconds
    what: Text
    why: Text
    objects: list[Name]
    relations: list[Relation] = []
    outcome: Outcome

    @model_validator(mode="after")
    def _lasts(self) -> LabelStep:
        if self.end_s <= self.start_s:
            raise ValueError(f"end_s={self.end_s} must be after start_s={self.start_s}")
        return self


Steps = Sequence[LabelStep]


class StepList(_Model):
    """What a labelling model replies with."""

    steps: list[LabelStep]


class Provenance(_Model):
    """How a label was made."""

    backend: str
    model: str
    revision: str | None = None
    prompt_name: str | None = None
    prompt_version: str | None = None
    prompt_sha256: str | None = None
    sampling: dict[str, Any] = {}
    # Camera key -> timestamps (s) of the frames that the model was shown.
    frames_shown: dict[str, list[Seconds]] = {}
    # Dimension whose changes helped to choose these frames: "action[3] gripper".
    gripper: str | None = None
    # UTC, ISO 8601.
    date: str
    tool_version: str


class EpisodeLabel(_Model, LineModel):
    """The label of one episode.

    `text` is `render_text(steps)` and is filled in where it is empty. A label without steps is free text about the
    whole episode, as imports of other formats give.
    """

    episode_index: Annotated[int, Field(ge=0)]
    task: str
    length_s: Seconds
    steps: list[LabelStep]
    text: str = ""
    provenance: Provenance

    @model_validator(mode="after")
    def _has_its_text(self) -> EpisodeLabel:
        rendered = render_text(self.steps)
        if not self.steps and not self.text.strip():
            raise ValueError("a label needs steps or text")
        if self.steps and not self.text:
            self.text = rendered
        if self.steps and self.text != rendered:
            raise ValueError('text is not the rendering of the steps: change the steps and set text to ""')
        return self


def step_text(step: LabelStep) -> str:
    """One step as a sentence: "The gripper closes on the puck, because it must be held before it can be lifted."."""
    what = step.what.rstrip(" .")
    why = step.why.rstrip(" .")
    why = why[len("because ") :] if why.lower().startswith("because ") else why
    outcome = f" Outcome: {step.outcome}." if step.outcome in ("failure", "partial") else ""
    return f"{what}, because {why}.{outcome}"


def render_text(steps: Steps) -> str:
    """All steps as numbered sentences on one line; empty without steps."""
    return " ".join(f"{number}. {step_text(step)}" for number, step in enumerate(steps, start=1))


def label_starts(label: EpisodeLabel) -> list[tuple[float, str]]:
    """(start in seconds, text) of what a label says, in order; without steps its text from the start on."""
    if not label.steps:
        return [(0.0, label.text)]
    return [(step.start_s, step_text(step)) for step in label.steps]


def reply_schema() -> dict:
    """JSON Schema of a model's reply, in the form that structured output asks for.

    Servers that hold a reply to a schema (OpenAI's `strict`) want every property required and no defaults.
    """
    return _strict(StepList.model_json_schema())


def _strict(node: Any) -> Any:
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items() if key not in ("default", "title")}
    if isinstance(node.get("properties"), dict):
        strict["properties"] = {name: _strict(value) for name, value in node["properties"].items()}
        strict["required"] = list(node["properties"])
    return strict
