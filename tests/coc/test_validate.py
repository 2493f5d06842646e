"""What a reply must be; every refusal is a message that a model can act on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from coc_tools.backends import Reply
from coc_tools.language_check import language_problem, latin_language, script
from coc_tools.validate import ReplyError, check_reply
from tests.coc.helpers import step, steps_json

TASK = "Push the puck to the goal"


def check(text: str, length_s: float = 4.0, objects=None, task: str = TASK, is_cut_off: bool = False):
    request = SimpleNamespace(episode=SimpleNamespace(task=task, length_s=length_s, fps=10), objects=objects)
    return check_reply(Reply(text, is_cut_off=is_cut_off), request)


def reply(*steps) -> str:
    return json.dumps({"steps": [s if isinstance(s, dict) else s.model_dump() for s in steps]})


@pytest.mark.parametrize(
    "wrap",
    ["{}", "```json\n{}\n```", "<think>First {{I}} look.</think>\n{}", "Here it is:\n{}\nI hope that this helps {{}}."],
)
def test_json_is_found_in_what_models_write_around_it(wrap):
    assert [s.end_s for s in check(wrap.format(steps_json(4.0)))] == [2.0, 4.0]


BAD = {
    "nothing": ("", "no JSON object"),
    "prose": ("The robot pushes the puck.", "no JSON object"),
    "half of it": (steps_json(4.0)[:60], "not valid JSON"),
    "a list": ("[1, 2]", "no JSON object"),
    "other keys": ('{"labels": []}', "steps: Field required"),
    "no steps": ('{"steps": []}', "at least one"),
    "a field is missing": (reply({"start_s": 0, "end_s": 1}), "steps.0.what: Field required"),
    "another relation": (
        reply(step(0, 1).model_dump() | {"relations": [{"subject": "a", "relation": "eats", "object": "b"}]}),
        "steps.0.relations.0.relation",
    ),
    "after the end": (reply(step(0, 9)), "step 1 ends at 9.0 s, after the end of the episode at 4.0 s"),
    "backwards": (reply(step(2, 3, "It falls"), step(0, 1)), "step 2 is not later than step 1"),
    "at once": (reply(step(0, 3, "It falls"), step(0, 4)), "step 2 is not later than step 1"),
    "end before start": (reply(step(0, 1).model_dump() | {"end_s": 0}), "must be after start_s"),
    "said twice": (reply(step(0, 1), step(1, 2, "the gripper pushes the puck.")), "says the same as step 1"),
    "going in circles": (
        reply(*(step(i / 2, i / 2 + 0.5, ("It opens", "It closes")[i % 2]) for i in range(6))), "repeat 2 sentences"
    ),
    "no cause": (reply(step(0, 1, "It moves", why="It moves.")), "why repeats what"),
    "runaway": (reply(*(step(i / 20, i / 20 + 0.04, f"It moves {i}") for i in range(61))), "at most 60"),
    "Chinese": (reply(step(0, 1, "机械臂推动冰球", why="它必须到达目标")), "written in Cjk letters"),
    "German": (
        reply(step(0, 1, "Der Greifer schiebt den Puck mit dem Finger", why="die Scheibe ist noch nicht auf dem Ziel")),
        "written in German, and the task in English",
    ),
    "too deep": ('{"steps":' * 100_000, "not valid JSON"),
    "not a number": (steps_json(4.0).replace("4.0", "NaN"), "finite"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_replies(name):
    text, message = BAD[name]
    with pytest.raises(ReplyError) as caught:
        check(text)
    assert message in str(caught.value) and len(str(caught.value)) < 2000


def test_good_replies():
    assert len(check(reply(step(0, 1), step(1, 4.05, "The gripper stops")))) == 2  # one frame late
    assert len(check(reply(step(0, 2, "It moves"), step(1, 3, "It pushes")))) == 2  # steps may overlap
    assert len(check(reply(*(step(i, i + 1, ("Es öffnet", "Es schließt", "x")[i % 3]) for i in range(4))))) == 4
    with pytest.raises(ReplyError, match="cut off"):
        check(steps_json(4.0), is_cut_off=True)


def test_objects_must_be_known_where_there_is_a_list():
    good = reply(step(0, 1, objects=["Puck", "gripper"]))
    assert check(good, objects=["puck"]) and check(reply(step(0, 1, objects=["unicorn"])))
    with pytest.raises(ReplyError, match="step 1 names 'unicorn': use only goal, puck"):
        check(reply(step(0, 1, objects=["unicorn"])), objects=["puck", "goal"])
    related = step(0, 1).model_dump() | {"relations": [{"subject": "gripper", "relation": "pushes", "object": "cup"}]}
    assert check(reply(related))
    with pytest.raises(ReplyError, match="names 'cup'"):
        check(reply(related), objects=["puck"])


@pytest.mark.parametrize(
    ("task", "text", "is_problem"),
    [
        (TASK, "The gripper closes on the puck, because it must be held", False),
        ("button-press-topdown-v3", "Der Greifer drückt den Knopf und die Taste ist unten", False),  # can't be told
        ("抓住红色方块", "夹爪合上，因为必须抓住方块", False),
        ("抓住红色方块", "The gripper closes on the block", True),
        ("Schiebe den Puck mit dem Greifer", "The gripper pushes the puck to the goal and it stops", True),
        ("Schiebe den Puck", "Der Greifer schiebt den Puck, weil er auf dem Weg zum Ziel ist", False),
        ("Pousse le palet vers la cible", "La pince pousse le palet vers la cible car elle est à côté", False),
        ("do not die", "The gripper moves to the puck and it stops", False),
        ("возьми кубик", "Захват берёт кубик", False),
        ("", "The gripper moves to the puck", False),
    ],
)
def test_language(task, text, is_problem):
    assert bool(language_problem(task, text)) == is_problem


def test_a_language_is_recognised_or_left_open():
    assert script("12 + 3") is None and script("Push 红") == "LATIN"
    assert latin_language("The gripper is on the puck") == "English"
    assert latin_language("gripper puck goal") is None
