"""From physics to a chain of causes: which steps an episode has, read from contacts, motion, the gripper and success.

Each frame gets at most one event: the gripper (or the tool that it holds) touches, grasps or moves a thing. What lies
between two events is the way to the next thing. Runs of equal frames are the steps; they follow each other without
gaps from the start of the episode to its end. `docs/coc_judging.md` lists the rules and their thresholds.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from coc_tools.schema import LabelStep, Relation, RelationName
from coc_tools.sim_scene import SceneTrace
from coc_tools.sim_words import TaskWords

# Times in seconds, so that a recording with another frame rate is read alike.
COAST_S = 0.2
"""A thing that keeps moving for this long after a contact still moves because of it (a drawer that was jerked)."""
FLICKER_S = 0.2
"""Contacts of one thing that are this near each other in time are one contact (a handle that slips and is caught)."""
BRUSH_S = 0.1
"""A contact that moves nothing and is shorter than this is left out."""
SHORTEST_S = 0.0375
"""Three frames at 80 fps; a shorter event is part of its neighbour."""
MOVING_M_PER_S = 0.04
LIFT_M = 0.03
"""Rise from which a free object is lifted; below, it is pushed or pulled over the table."""
LEAVE_M = 0.05
"""Growth of the distance to a thing from which the gripper has left it."""


@dataclass(frozen=True)
class Event:
    """What one frame is part of: subject, relation and object; `held` when the object is between the fingers."""

    subject: str
    relation: RelationName
    object: str
    held: bool = False


@dataclass(frozen=True)
class Segment:
    """Frames `first` to `last`, inclusive, of one event."""

    event: Event
    first: int
    last: int


def trace_steps(trace: SceneTrace, words: TaskWords, fps: float) -> list[LabelStep]:
    """The steps of an episode.

    Args:
        trace: of n + 1 moments.
        words: of its task.
        fps: frames per second; moment i is at i / fps.

    Returns:
        Steps in order of time, from 0 to n / fps without gaps.
    """
    segments = find_segments(trace, words, fps)
    return [_step(segments, i, trace, words, fps) for i in range(len(segments))]


def find_segments(trace: SceneTrace, words: TaskWords, fps: float) -> list[Segment]:
    """The events in order of time; together they cover every frame."""
    frames = _paint_contacts(trace, words, fps)
    frames = _drop_short(frames, round(SHORTEST_S * fps))
    frames = _paint_ways(frames, trace, words, fps)
    frames = _drop_short(frames, round(SHORTEST_S * fps))
    return _join_alike(_segments(frames))


# --- events that need contact -------------------------------------------------------------------------------------


def _paint_contacts(trace: SceneTrace, words: TaskWords, fps: float) -> list[Event | None]:
    """Touching, grasping and moving, frame by frame. What a tool moves covers what happens to the tool."""
    frames: list[Event | None] = [None] * len(trace.opening)
    directly = {thing: _engaged(trace, thing, trace.touched(thing), fps) for thing in trace.objects}
    for thing, runs in directly.items():
        for first, last in runs:
            _paint_run(frames, trace, words, "gripper", thing, first, last, fps)
    for thing in trace.objects:
        for tool in trace.objects:
            in_hand = np.zeros(len(frames), bool)
            for first, last in directly[tool]:
                in_hand[first : last + 1] = trace.joint[tool] == "free" and trace.pinched[tool][first : last + 1].any()
            by_tool = trace.touching(tool, thing) & in_hand & ~trace.touched(thing)
            for first, last in _engaged(trace, thing, by_tool, fps):
                if _is_moving(trace, thing, fps)[first : last + 1].any():
                    _paint_run(frames, trace, words, tool, thing, first, last, fps)
    return frames


def _engaged(trace: SceneTrace, thing: str, contact: np.ndarray, fps: float) -> list[tuple[int, int]]:
    """Runs in which a thing is touched, or still moves because it was."""
    coast, flicker = round(COAST_S * fps), round(FLICKER_S * fps)
    moving = _is_moving(trace, thing, fps)
    engaged = contact.copy()
    for i in np.flatnonzero(contact):
        j = i
        while j + 1 < len(moving) and moving[j + 1] and j - i < coast:
            j += 1
        engaged[i : j + 1] = True
    runs = _close_gaps(_runs(engaged), flicker)
    return [(a, b) for a, b in runs if b - a + 1 >= BRUSH_S * fps or moving[a : b + 1].any()]


def _paint_run(
    frames: list[Event | None],
    trace: SceneTrace,
    words: TaskWords,
    subject: str,
    thing: str,
    first: int,
    last: int,
    fps: float,
) -> None:
    """One contact with a thing: first touched or grasped, then moved. What comes after motion still belongs to it."""
    moving = np.flatnonzero(_is_moving(trace, thing, fps)[first : last + 1]) + first
    grip = trace.pinched[thing] & trace.is_closing & (subject == "gripper")
    pinched = np.flatnonzero(grip[first : last + 1]) + first
    start = first
    held = len(pinched) >= round(SHORTEST_S * fps)
    if held:
        secured = int(min(pinched[0] + round(SHORTEST_S * fps) - 1, last))
        start = secured + 1
        closing = _closing_start(trace, first, fps)
        frames[closing:start] = [Event(subject, "grasps", thing)] * (start - closing)
        moving = moving[moving > secured]
    if not len(moving):
        if not held:
            frames[first : last + 1] = [Event(subject, "touches", thing)] * (last + 1 - first)
        else:
            frames[start : last + 1] = [Event(subject, "grasps", thing)] * (last + 1 - start)
        return
    if not held and moving[0] > start:
        frames[start : moving[0]] = [Event(subject, "touches", thing)] * (int(moving[0]) - start)
        start = int(moving[0])
    for relation, a, b in _motion(trace, words, thing, start, last, held):
        frames[a : b + 1] = [Event(subject, relation, thing, held)] * (b + 1 - a)
    # Fingers that are pushed apart while they are commanded to close have lost the thing, not released it.
    opening = [a + start for a, b in _runs(~trace.is_closing[start : last + 1]) if b - a + 1 >= round(SHORTEST_S * fps)]
    if held and opening:
        frames[opening[0] : last + 1] = [Event(subject, "releases", thing)] * (last + 1 - opening[0])


def _motion(
    trace: SceneTrace, words: TaskWords, thing: str, first: int, last: int, held: bool
) -> list[tuple[RelationName, int, int]]:
    """What the motion of frames `first` to `last` is called."""
    position = trace.position[thing]
    height = position[first : last + 1, 2] - position[max(first - 1, 0), 2]
    if trace.joint[thing] != "free":
        named = words.verb or (
            "turns" if trace.joint[thing] == "hinge" else _VERBS[direction(trace, thing, first, last)]
        )
        return [(named, first, last)]
    if not held or height.max() < LIFT_M:
        return [(_VERBS[direction(trace, thing, first, last)], first, last)]
    # Lifted until four fifths of the way up, lowered from where it last was that high.
    high = np.flatnonzero(height >= 0.8 * height.max()) + first
    up, down = int(high[0]), int(high[-1])
    spans: list[tuple[RelationName, int, int]] = [("lifts", first, up)]
    is_lowered = height.max() - height[-1] >= LIFT_M
    end = down if is_lowered else last
    if end > up:
        spans.append(("carries", up + 1, end))
    if is_lowered:
        spans.append(("places", end + 1, last))
    return spans


_VERBS: dict[str, RelationName] = {
    "away from the robot": "pushes",
    "towards the robot": "pulls",
    "sideways": "slides",
    "upwards": "pulls",
    "downwards": "presses",
}


def direction(trace: SceneTrace, thing: str, first: int, last: int) -> str:
    """Where a thing went, in words: the robot's base stands at y = 0 and looks along y.

    Free things are lifted or not, so for them only the way in the plane counts.
    """
    x, y, z = trace.position[thing][last] - trace.position[thing][first]
    if trace.joint[thing] != "free" and abs(z) > max(abs(x), abs(y)):
        return "upwards" if z > 0 else "downwards"
    if abs(x) > abs(y):
        return "sideways"
    return "away from the robot" if y > 0 else "towards the robot"


def _closing_start(trace: SceneTrace, contact: int, fps: float) -> int:
    """Where the fingers began to close on what they touch at `contact`, at most half a second before."""
    start = contact
    while start > max(0, contact - round(0.5 * fps)) and trace.opening[start - 1] > trace.opening[start] + 0.002:
        start -= 1
    return start


def _is_moving(trace: SceneTrace, thing: str, fps: float) -> np.ndarray:
    moving = trace.travel[thing] * fps > MOVING_M_PER_S
    # What moves from the very start on was put into the air by the reset and falls; the gripper doesn't move it.
    still = np.flatnonzero(~moving[1:])
    moving[: int(still[0]) + 1 if len(still) else 0] = False
    return moving


# --- the ways between --------------------------------------------------------------------------------------------


def _paint_ways(frames: list[Event | None], trace: SceneTrace, words: TaskWords, fps: float) -> list[Event]:
    """Fill what has no event: the way to the next thing, or away from the last."""
    painted = list(frames)
    spans = [(segment.event, segment.first, segment.last + 1) for segment in _segments(frames)]
    for k, (event, a, b) in enumerate(spans):
        if event is not None:
            continue
        before = spans[k - 1][0] if k else None
        after = spans[k + 1][0] if k + 1 < len(spans) else None
        turn = a
        if before is not None:
            distance = np.linalg.norm(trace.tcp[a:b] - trace.position[before.object][a:b], axis=1)
            turn = b if after is None else a + int(distance.argmax()) + 1
            if distance.max() - distance[0] < LEAVE_M and after is not None:
                turn = a
            painted[a:turn] = [Event("gripper", "leaves", before.object)] * (turn - a)
        if after is not None:
            painted[turn:b] = [Event("gripper", "approaches", after.object)] * (b - turn)
        elif before is None:
            painted[a:b] = [Event("gripper", "approaches", words.target)] * (b - a)
    return painted


# --- runs --------------------------------------------------------------------------------------------------------


def _runs(mask: np.ndarray) -> list[tuple[int, int]]:
    """First and last index of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(int)))
    return [(int(a), int(b) - 1) for a, b in edges.reshape(-1, 2)]


def _close_gaps(runs: list[tuple[int, int]], longest: int) -> list[tuple[int, int]]:
    closed: list[tuple[int, int]] = []
    for a, b in runs:
        if closed and a - closed[-1][1] - 1 <= longest:
            closed[-1] = (closed[-1][0], b)
        else:
            closed.append((a, b))
    return closed


def _segments(frames: list[Event]) -> list[Segment]:
    segments, i = [], 0
    for event, run in groupby(frames):
        n = len(list(run))
        segments.append(Segment(event, i, i + n - 1))
        i += n
    return segments


def _join_alike(segments: list[Segment]) -> list[Segment]:
    """Neighbours of the same subject, relation and object are one step, as people would describe it."""
    joined: list[Segment] = []
    for segment in segments:
        if joined and replace(joined[-1].event, held=segment.event.held) == segment.event:
            joined[-1] = replace(joined[-1], last=segment.last)
        else:
            joined.append(segment)
    return joined


def _drop_short(frames: list, shortest: int) -> list:
    """Give runs shorter than `shortest` to the run before (the first one to the run after), the shortest first."""
    frames = list(frames)
    while True:
        segments = _segments(frames)
        short = [i for i, s in enumerate(segments) if s.last - s.first + 1 < shortest]
        if not short or len(segments) == 1:
            return frames
        i = min(short, key=lambda k: segments[k].last - segments[k].first)
        neighbour = segments[i - 1] if i else segments[1]
        segment = segments[i]
        frames[segment.first : segment.last + 1] = [neighbour.event] * (segment.last + 1 - segment.first)


# --- words -------------------------------------------------------------------------------------------------------

_WHAT = {
    "approaches": "The gripper moves to the {o}",
    "touches": "The {s} touches the {o}",
    "grasps": "The gripper closes its fingers on the {o}",
    "lifts": "The gripper lifts the {o}",
    "carries": "The gripper carries the {o} through the air",
    "places": "The gripper lowers the {o}",
    "releases": "The gripper opens its fingers and releases the {o}",
    "leaves": "The gripper moves away from the {o}",
    "pushes": "The {s} pushes the {o}",
    "pulls": "The {s} pulls the {o}",
    "slides": "The {s} slides the {o}",
    "presses": "The {s} presses the {o}",
    "turns": "The {s} turns the {o}",
    "opens": "The {s} opens the {o}",
    "closes": "The {s} closes the {o}",
    "hits": "The {s} hits the {o}",
}
# What a step makes possible: "before the gripper can {...}".
_ABLE = {
    "touches": "touch it", "grasps": "grasp it", "lifts": "lift it", "carries": "carry it", "places": "place it",
    "releases": "release it", "pushes": "push it", "pulls": "pull it", "slides": "slide it", "presses": "press it",
    "turns": "turn it", "opens": "open it", "closes": "close it", "hits": "hit it",
}  # fmt: skip


def _step(segments: list[Segment], i: int, trace: SceneTrace, words: TaskWords, fps: float) -> LabelStep:
    """One segment in words. It ends where the next one starts, the last one with the episode."""
    event, first = segments[i].event, segments[i].first
    n = len(trace.opening) - 1
    last = segments[i + 1].first if i + 1 < len(segments) else n
    what = _WHAT[event.relation].format(s=event.subject, o=event.object)
    if event.relation in ("pushes", "pulls", "slides"):
        what += f" {direction(trace, event.object, first, last)}"
    subject = [] if event.subject == "gripper" else [event.subject]
    return LabelStep(
        start_s=round(first / fps, 6),
        end_s=round(last / fps, 6),
        what=what,
        why=_why(segments, i, trace, words),
        objects=[event.object, *subject],
        relations=[Relation(subject=event.subject, relation=event.relation, object=event.object)],
        outcome=_outcome(segments, i, trace),
    )


def _why(segments: list[Segment], i: int, trace: SceneTrace, words: TaskWords) -> str:
    event = segments[i].event
    # Success that comes with the very start of a step was reached by the one before.
    is_done = bool(trace.is_success[: segments[i].first + 1].any())
    goal = f"the task wants {words.goal}"
    later = [s.event for s in segments[i + 1 :] if s.event.object == event.object and s.event.relation in _ABLE]
    if event.relation == "approaches":
        return f"it must be at the {event.object} before it can {_ABLE[later[0].relation]}" if later else goal
    if event.relation in ("touches", "grasps"):
        hold = "touch it" if event.relation == "touches" else "hold it from both sides"
        if later and later[0].relation != "releases":
            return f"it must {hold} before it can {_ABLE[later[0].relation]}"
        return f"the task is done: {words.goal}" if is_done else goal
    if event.relation in ("releases", "leaves"):
        if is_done:
            return f"the task is done: {words.goal}"
        other = [s.event.object for s in segments[i + 1 :] if s.event.object != event.object]
        if other:
            return f"the {other[0]} comes next, and {goal}"
        if event.relation == "releases":
            return f"it need not hold the {event.object} any longer, and {goal}"
        return f"it must come to the {event.object} from another side, and {goal}" if later else goal
    if event.held:
        cause = f"the {event.object} is held between its fingers and moves with them"
    elif event.subject == "gripper":
        cause = f"the gripper presses against the {event.object}"
    else:
        cause = f"the {event.subject} in its fingers presses against the {event.object}"
    return f"{cause}, and {goal}"


def _outcome(segments: list[Segment], i: int, trace: SceneTrace) -> str:
    """Whether the step did what it was for: reached the task's goal, or made the next step possible."""
    segment = segments[i]
    last = segments[i + 1].first if i + 1 < len(segments) else len(trace.opening) - 1
    if trace.is_success[: last + 1].any():
        return "success"
    event, following = segment.event, [s.event for s in segments[i + 1 :]]
    same = [e.relation for e in following if e.object == event.object]
    if event.relation in ("releases", "leaves"):
        return "success"
    if event.relation == "approaches":
        return "success" if same else "failure"
    if event.relation in ("touches", "grasps"):
        return "success" if [r for r in same if r not in ("approaches", "leaves", "releases")][:1] else "failure"
    if event.relation == "lifts":
        return "success"
    return "success" if trace.is_success.any() else "partial"
