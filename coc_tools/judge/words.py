"""Reading free text: which thing a name means, and which relation a sentence states where that is beyond doubt."""

from __future__ import annotations

import re

from coc_tools.schema import LabelStep, RelationName
from coc_tools.validate import ROBOT_NAMES

# "The gripper closes on the puck", not "the gripper closes the window".
ALONE = r"(?= *(?:$|[.,;]|on\b|around\b|over\b|and\b|to\b|at\b|near\b))"
# Verbs -> relation, as in docs/coc_judging.md. A sentence that fits several relations states none.
VERBS: dict[RelationName, str] = {
    "approaches": r"approach\w*|(?:moves?|moving|goes|reach(?:es)?|heads?|travels?|descends?) (?:down )?"
    r"(?:to|towards?|above|over|for)|reaches",
    "touches": r"touch\w*|(?:makes?|comes? into|in) contact",
    "grasps": r"grasp\w*|gripp(?:ed|ing)\b|grips|grabs?|grabbing"
    rf"|(?:closes?|closing)(?: (?:its|the))? (?:fingers|gripper)|(?:gripper|fingers) closes?{ALONE}",
    "lifts": r"lift\w*|raises?|raising",
    "carries": r"carr(?:y|ies|ied|ying)|transports?",
    "places": r"places?\b|placing|puts?\b|putting|lowers?|lowering|sets? (?:it )?down",
    "releases": r"releas\w*|lets? (?:it )?go|letting go|(?:opens?|opening)(?: (?:its|the))? (?:fingers|gripper)"
    rf"|(?:gripper|fingers) opens?{ALONE}",
    "leaves": r"leaves?\b|leaving|retract\w*|withdraw\w*|retreat\w*|(?:moves?|moving|backs?) away",
    "pushes": r"push\w*|shov\w*",
    "pulls": r"pull\w*|drag\w*",
    "slides": r"slid\w*",
    "presses": r"press(?:es|ed|ing)?\b",
    "turns": r"turn\w*|rotat\w*|twist\w*",
    "opens": r"opens?\b|opening",
    "closes": r"closes?\b|closing|shuts?",
    "inserts": r"insert\w*",
    "hits": r"hits?\b|hitting|strik\w*|hammers\b|kick\w*",
}
_VERBS = {name: re.compile(rf"\b(?:{pattern})", re.IGNORECASE) for name, pattern in VERBS.items()}
# What the fingers do is taken out of a sentence before "opens" and "closes" are looked for.
_FINGERS = ("grasps", "releases")
_ARTICLES = re.compile(r"^(?:the|a|an|its|this|that)\s+", re.IGNORECASE)


def normal(name: str) -> str:
    """A name in lower case, without article and plural s."""
    name = _ARTICLES.sub("", " ".join(name.casefold().split()))
    return name[:-1] if name.endswith("s") and not name.endswith("ss") and len(name) > 3 else name


_ROBOT = frozenset(normal(name) for name in ROBOT_NAMES)


def same_thing(one: str, other: str) -> bool:
    """Whether two names mean one thing: equal, or one is the other with more words before it ("red puck", "puck")."""
    one, other = normal(one).split(), normal(other).split()
    n = min(len(one), len(other))
    return n > 0 and one[-n:] == other[-n:]


def things(step: LabelStep) -> list[str]:
    """What a step names, each once, without the robot and its parts."""
    return list(dict.fromkeys(name for name in map(normal, step.objects) if name and name not in _ROBOT))


def relation_of(step: LabelStep) -> RelationName | None:
    """The one relation of a step: its own, or the one that `what` states; None if there is none or several."""
    names = {relation.relation for relation in step.relations} or _stated(step.what)
    return names.pop() if len(names) == 1 else None


def _stated(what: str) -> set[RelationName]:
    found: set[RelationName] = set()
    for name in (*_FINGERS, *(name for name in VERBS if name not in _FINGERS)):
        if _VERBS[name].search(what):
            found.add(name)
            what = _VERBS[name].sub(" ", what)
    return found
