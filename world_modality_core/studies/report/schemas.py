"""What the page takes for granted of the records that it reads; other keys are left alone."""

from __future__ import annotations

from typing import Annotated, NotRequired, TypedDict

from pydantic import Field

Finite = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]
"""A number that can be drawn."""
StepNumber = Annotated[int, Field(ge=0, le=10**12)]
Text = str | None


class JobRecord(TypedDict):
    """`job.json`, and the entries of `jobs.json`."""

    name: str
    kind: str
    command: list[str] | str
    model: NotRequired[Text]
    train_seed: NotRequired[int | None]
    commit: NotRequired[Text]
    versions: NotRequired[dict[str, str] | None]
    state: NotRequired[Text]
    seconds: NotRequired[Annotated[float, Field(allow_inf_nan=False, ge=0, le=1e12)] | None]
    started_at: NotRequired[Text]
    eval: NotRequired[EvalRecord | None]


class EvalRecord(TypedDict):
    """`eval.json`."""

    model: str
    train_seed: int
    arms: list[str]
    command: list[str] | str
    commit: NotRequired[Text]
    versions: NotRequired[dict[str, str | None] | None]
    started_at: NotRequired[Text]


class SourceRecord(TypedDict):
    """A memory source in `interventions.json`."""

    error: NotRequired[Finite | None]
    ratio: NotRequired[Finite | None]
    ratio_low: NotRequired[Finite | None]
    ratio_high: NotRequired[Finite | None]
    chunk_change: NotRequired[Finite | None]
    reading: NotRequired[str]


class RolloutStep(TypedDict):
    """A step of the open loop in `interventions.json`."""

    step: StepNumber
    prophet: Finite | None
    copy: Finite | None


class InterventionRecord(TypedDict):
    """`interventions.json`."""

    model: str
    train_seed: NotRequired[int | None]
    dataset: NotRequired[str]
    frames: int
    episodes: int
    gate_note: NotRequired[Text]
    sources: dict[str, SourceRecord]
    token_accuracy: NotRequired[list[Finite | None] | None]
    skill: NotRequired[list[Finite | None] | None]
    rollout_error: NotRequired[list[RolloutStep] | None]
