"""Checking a reply: is it steps, and can these be the steps of that episode?

Each check has a message that a model can act on: it is sent back with the next attempt.
"""

from __future__ import annotations

import json
import re

from pydantic import ValidationError

from coc_tools.backends import LabelRequest, Reply
from coc_tools.language_check import language_problem
from coc_tools.schema import LabelStep, StepList

# More steps than this in one episode is a model that has run away.
MAX_STEPS = 60
# Names that need no place in a list of objects: they are the robot.
ROBOT_NAMES = frozenset({"robot", "robot arm", "arm", "gripper", "hand", "finger", "fingers", "end effector"})
_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


class ReplyError(ValueError):
    """A reply is not a label of its episode."""


def check_reply(reply: Reply, request: LabelRequest) -> list[LabelStep]:
    """The steps that a reply holds.

    Args:
        reply: What the backend gave.
        request: What it was asked.

    Raises:
        ReplyError: saying what is wrong.
    """
    if reply.is_cut_off:
        raise ReplyError("the reply was cut off at the limit of tokens: use fewer or shorter steps")
    steps = parse_steps(reply.text)
    check_steps(steps, request.episode.length_s, request.episode.fps, request.objects)
    problem = language_problem(request.episode.task, " ".join(f"{step.what} {step.why}" for step in steps))
    if problem:
        raise ReplyError(problem)
    return steps


def parse_steps(text: str) -> list[LabelStep]:
    """Read the JSON object of a reply, whatever the model wrote around it.

    Raises:
        ReplyError: if there is none, or it does not fit the schema.
    """
    text = _THINKING.sub("", text)
    start = text.find("{")
    if start < 0:
        raise ReplyError('no JSON object in the reply: expected {"steps": [...]}')
    try:
        value, _ = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise ReplyError(f"the reply is not valid JSON: {error}") from error
    try:
        return StepList.model_validate(value).steps
    except ValidationError as error:
        found = [
            f"{'.'.join(str(part) for part in e['loc']) or 'reply'}: {e['msg']}"
            for e in error.errors(include_url=False, include_input=False)[:5]
        ]
        raise ReplyError(f"the reply does not fit the schema: {'; '.join(found)}") from error


def check_steps(steps: list[LabelStep], length_s: float, fps: float, objects: list[str] | None = None) -> None:
    """Check steps against their episode.

    Args:
        steps: The steps.
        length_s: Seconds of the episode.
        fps: Frames per second; a time may be off by one frame.
        objects: Names that may be used, or None for any.

    Raises:
        ReplyError: naming the first thing that is wrong.
    """
    if not steps:
        raise ReplyError("no steps: give at least one")
    if len(steps) > MAX_STEPS:
        raise ReplyError(f"{len(steps)} steps: give at most {MAX_STEPS}")
    for number, step in enumerate(steps, start=1):
        if step.end_s > length_s + 1 / fps:
            raise ReplyError(f"step {number} ends at {step.end_s} s, after the end of the episode at {length_s} s")
        if _plain(step.what) == _plain(step.why):
            raise ReplyError(f"step {number}: why repeats what; give its cause")
    for number, (before, after) in enumerate(zip(steps[:-1], steps[1:], strict=True), start=2):
        if after.start_s <= before.start_s or after.end_s < before.end_s:
            raise ReplyError(f"step {number} is not later than step {number - 1}: give steps in the order of time")
        if _plain(after.what) == _plain(before.what):
            raise ReplyError(
                f"step {number} says the same as step {number - 1}: make them one step, or tell them apart"
            )
    n_different = len({_plain(step.what) for step in steps})
    if n_different < len(steps) / 2:
        raise ReplyError(f"the {len(steps)} steps repeat {n_different} sentences: describe each event once")
    if objects is not None:
        _check_objects(steps, objects)


def _check_objects(steps: list[LabelStep], objects: list[str]) -> None:
    known = {name.casefold() for name in objects} | ROBOT_NAMES
    for number, step in enumerate(steps, start=1):
        related = [name for relation in step.relations for name in (relation.subject, relation.object)]
        unknown = [name for name in (*step.objects, *related) if name.casefold() not in known]
        if unknown:
            raise ReplyError(f"step {number} names {unknown[0]!r}: use only {', '.join(sorted(objects))}")


def _plain(text: str) -> str:
    return re.sub(r"\W+", " ", text).strip().casefold()
