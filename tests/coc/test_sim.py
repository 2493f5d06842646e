"""The `sim` backend: steps from physics, held against hand-made traces and against Meta-World's own signals."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("metaworld")

from lerobot.envs.metaworld import TASK_DESCRIPTIONS, TASK_POLICY_MAPPING  # noqa: E402

from coc_tools.backends import BackendError, BackendUnusable, LabelRequest  # noqa: E402
from coc_tools.backends.sim import RECORD_FILE, SimLabeller  # noqa: E402
from coc_tools.episodes import EpisodeReader  # noqa: E402
from coc_tools.schema import LabelStep, StepList  # noqa: E402
from coc_tools.sim_scene import HAND, LEFT, RIGHT, Scene, SceneTrace  # noqa: E402
from coc_tools.sim_trace import trace_steps  # noqa: E402
from coc_tools.sim_words import words_of  # noqa: E402
from coc_tools.store import read_labels  # noqa: E402
from coc_tools.validate import check_steps  # noqa: E402
from tests.coc.helpers import run_pipeline  # noqa: E402

FPS = 80


def relations(steps: list[LabelStep]) -> list[tuple[str, str, str]]:
    return [(r.subject, r.relation, r.object) for step in steps for r in step.relations]


def assert_covers(steps: list[LabelStep], length_s: float) -> None:
    """One after the other, from the start to the end."""
    assert steps[0].start_s == 0 and steps[-1].end_s == pytest.approx(length_s, abs=1e-6)
    for before, after in zip(steps[:-1], steps[1:], strict=True):
        assert before.end_s == after.start_s


# --- hand-made traces -----------------------------------------------------------------------------------------------


def make_trace(n: int = 160, joint: str = "free", **changes) -> SceneTrace:
    """A puck at rest that nobody touches, for n frames."""
    still = np.zeros(n + 1, bool)
    trace = SceneTrace(
        tcp=np.tile([0.0, 0.5, 0.2], (n + 1, 1)),
        opening=np.ones(n + 1),
        is_closing=still.copy(),
        is_success=still.copy(),
        objects=["puck"],
        position={"puck": np.tile([0.0, 0.6, 0.02], (n + 1, 1))},
        joint={"puck": joint},
        travel={"puck": np.zeros(n + 1)},
        pinched={"puck": still.copy()},
        touches={},
    )
    return replace(trace, **changes)


def move(trace: SceneTrace, thing: str, first: int, last: int, way: tuple[float, float, float]) -> None:
    """Let a thing move evenly by a way in frames first to last."""
    steps = np.zeros((len(trace.opening), 3))
    steps[first : last + 1] = np.array(way) / (last - first + 1)
    trace.position[thing] = trace.position[thing] + steps.cumsum(axis=0)
    trace.travel[thing] = trace.travel[thing] + np.linalg.norm(steps, axis=1)


def touch(trace: SceneTrace, one: str, other: str, first: int, last: int) -> None:
    pair = tuple(sorted((one, other)))
    trace.touches.setdefault(pair, np.zeros(len(trace.opening), bool))[first : last + 1] = True


def grip(trace: SceneTrace, thing: str, first: int, last: int) -> None:
    touch(trace, LEFT, thing, first, last)
    touch(trace, RIGHT, thing, first, last)
    trace.pinched[thing][first : last + 1] = True
    trace.is_closing[first - 5 : last + 1] = True


def picked_and_placed() -> SceneTrace:
    trace = make_trace()
    grip(trace, "puck", 40, 119)
    move(trace, "puck", 50, 69, (0, 0, 0.2))
    move(trace, "puck", 70, 89, (0.1, 0.2, 0))
    move(trace, "puck", 90, 109, (0, 0, -0.2))
    touch(trace, LEFT, "puck", 120, 124)  # still there while the fingers open
    trace.tcp[125:] += np.linspace(0, 0.2, len(trace.tcp) - 125)[:, None]
    trace.is_success[108:] = True
    return trace


def steps_of(trace: SceneTrace, task: str = "pick-place-v3") -> list[LabelStep]:
    steps = trace_steps(trace, words_of(task), FPS)
    length_s = (len(trace.opening) - 1) / FPS
    assert_covers(steps, length_s)
    check_steps(steps, length_s, FPS)
    return steps


def test_a_puck_is_picked_carried_placed_and_left():
    steps = steps_of(picked_and_placed())
    told = ["approaches", "grasps", "lifts", "carries", "places", "releases", "leaves"]
    assert relations(steps) == [("gripper", relation, "puck") for relation in told]
    starts = dict(zip(told, (round(step.start_s * FPS) for step in steps), strict=True))
    assert starts["grasps"] == 40 and 42 <= starts["lifts"] <= 50
    assert 62 <= starts["carries"] <= 70 and 88 <= starts["places"] <= 100 and starts["releases"] == 120
    assert steps[0].why == "it must be at the puck before it can grasp it"
    assert "held between its fingers" in steps[2].why and "the task wants the puck at the goal" in steps[2].why
    assert steps[-1].why == "the task is done: the puck at the goal"
    assert {step.outcome for step in steps} == {"success"}


def test_what_moves_while_the_fingers_are_told_to_close_is_not_released():
    trace = picked_and_placed()
    trace.is_closing[35:] = True  # pushed apart, as under load
    trace.is_closing[60] = False  # noise on the action
    assert "releases" not in [r for _, r, _ in relations(steps_of(trace))]


def test_a_grasp_that_moves_nothing_failed():
    trace = make_trace()
    grip(trace, "puck", 40, 70)
    steps = steps_of(trace)
    assert relations(steps)[:2] == [("gripper", "approaches", "puck"), ("gripper", "grasps", "puck")]
    assert steps[1].outcome == "failure"


@pytest.mark.parametrize(
    ("way", "relation", "words"),
    [
        ((0, 0.2, 0), "pushes", "away from the robot"),
        ((0, -0.2, 0), "pulls", "towards the robot"),
        ((0.2, 0, 0), "slides", "sideways"),
    ],
)
def test_the_direction_over_the_table_names_the_motion(way, relation, words):
    trace = make_trace()
    touch(trace, HAND, "puck", 40, 100)
    move(trace, "puck", 40, 100, way)
    step = steps_of(trace, "push-v3")[1]
    assert step.relations[0].relation == relation and words in step.what
    assert step.why.startswith("the gripper presses against the puck")
    assert step.outcome == "partial"  # the goal was not reached


@pytest.mark.parametrize(("task", "relation"), [("drawer-open-v3", "opens"), ("drawer-close-v3", "closes")])
def test_the_task_names_what_happens_on_a_joint(task, relation):
    trace = make_trace(joint="slide")
    touch(trace, LEFT, "puck", 60, 62)
    move(trace, "puck", 60, 72, (0, -0.2, 0))  # goes on for a moment after the contact
    steps = steps_of(trace, task)
    assert relations(steps)[1] == ("gripper", relation, "puck")
    assert steps[1].end_s * FPS == pytest.approx(73, abs=1)


def test_only_what_the_gripper_caused_is_told():
    trace = make_trace()
    move(trace, "puck", 1, 30, (0, 0, -0.05))  # put down in the air by the reset
    move(trace, "puck", 100, 140, (0.2, 0, 0))  # rolls, long after the brush
    touch(trace, HAND, "puck", 60, 62)
    assert relations(steps_of(trace)) == [("gripper", "approaches", "goal")]
    touch(trace, HAND, "puck", 98, 102)  # the control: with a contact, the same motion is told
    assert ("gripper", "slides", "puck") in relations(steps_of(trace))


def test_a_tool_moves_the_next_thing():
    trace = make_trace()
    grip(trace, "puck", 40, 160)
    move(trace, "puck", 50, 160, (0, 0.3, 0.1))
    trace.objects.append("screw")
    trace.position["screw"] = np.tile([0.0, 0.9, 0.1], (161, 1))
    trace.travel["screw"], trace.pinched["screw"] = np.zeros(161), np.zeros(161, bool)
    trace.joint["screw"] = "slide"
    touch(trace, "puck", "screw", 120, 160)
    move(trace, "screw", 121, 150, (0, 0.05, 0))
    steps = steps_of(trace, "hammer-v3")
    assert relations(steps)[-1] == ("puck", "hits", "screw")
    assert steps[-1].objects == ["screw", "puck"] and "the puck in its fingers presses" in steps[-1].why


def test_a_second_try_is_told_as_leaving_and_coming_back():
    trace = make_trace(joint="hinge")
    for first in (40, 120):
        touch(trace, HAND, "puck", first, first + 12)
        move(trace, "puck", first, first + 10, (0.1, 0, 0))
    trace.tcp[60:90] += np.linspace(0, 0.2, 30)[:, None]
    trace.tcp[90:] += 0.2
    told = [relation for _, relation, _ in relations(steps_of(trace, "door-lock-v3"))]
    assert told[:5] == ["approaches", "turns", "leaves", "approaches", "turns"]


# --- all tasks ------------------------------------------------------------------------------------------------------


def expert_actions(scene: Scene, n: int):
    """What Meta-World's scripted expert does, n times."""
    policy = TASK_POLICY_MAPPING[scene.task]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its raw output exceeds 1 by design
        for _ in range(n):
            yield np.clip(policy.get_action(scene.observation), -1, 1).astype(np.float32)


@pytest.mark.slow
def test_every_task_has_a_trace_in_its_own_words():
    known = {*words_of("push-v3").bodies.values(), *words_of("coffee-push-v3").bodies.values(), "goal", "hole"}
    untold = []
    for task, instruction in TASK_DESCRIPTIONS.items():
        scene = Scene(task)
        _, _, trace = scene.play(100, expert_actions(scene, 120))
        scene.env.close()
        steps = trace_steps(trace, words_of(task), FPS)
        assert_covers(steps, 120 / FPS)
        named = {name for step in steps for name in step.objects}
        assert named <= known, (task, named)
        if not any(name.split()[-1] in instruction.lower() for name in named):
            untold.append(task)
    assert set(untold) <= {"hand-insert-v3", "soccer-v3"}


def test_a_task_without_words_gets_a_generic_trace():
    words = words_of("no-such-task-v3")
    trace = make_trace(joint="hinge")
    touch(trace, HAND, "puck", 60, 80)
    move(trace, "puck", 60, 80, (0.1, 0, 0))
    steps = trace_steps(trace, words, FPS)
    assert relations(steps)[1] == ("gripper", "turns", "puck")
    assert "the task wants its goal reached" in steps[1].why


# --- recorded episodes ----------------------------------------------------------------------------------------------

TASKS = {
    "push-v3": ["approaches puck", "grasps puck", "pushes puck"],
    "push-back-v3": ["approaches puck", "grasps puck", "pulls puck"],
    "reach-v3": ["approaches goal"],
    "pick-place-v3": ["approaches puck", "grasps puck", "lifts puck", "carries puck"],
    "drawer-open-v3": ["approaches drawer", "opens drawer"],
    "window-open-v3": ["approaches window", "opens window"],
    "button-press-topdown-v3": ["approaches button", "presses button"],
    "door-open-v3": ["approaches door", "opens door"],
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory) -> Path:
    """One noisy episode of each task, by the real recorder."""
    from lerobot_policy_world_modality.record.cli import record
    from lerobot_policy_world_modality.record.record_options import RecordConfig, RecordEnv, RecordOutput

    return record(
        RecordConfig(
            tasks=",".join(TASKS),
            n_episodes=1,
            start_seed=3,
            n_workers=1,
            action_noise=0.1,
            output=RecordOutput("tests/recorded", str(tmp_path_factory.mktemp("sim") / "data")),
            env=RecordEnv(observation_height=32, observation_width=32),
        )
    )


@pytest.fixture(scope="module")
def recorded(recording) -> EpisodeReader:
    return EpisodeReader("tests/recorded", str(recording))


def label(labeller: SimLabeller, episode) -> list[LabelStep]:
    (reply,) = labeller.label_many([LabelRequest(episode)])
    return StepList.model_validate_json(reply.text).steps


def changed(reader: EpisodeReader, index: int, key: str, frame: int, value) -> object:
    """An episode of which one recorded value is another."""
    episode = reader[index]
    column = episode.table.column_names.index(key)
    values = episode.table[key].to_pylist()
    values[frame] = value
    episode.table = episode.table.set_column(column, key, pa.array(values, type=episode.table.schema.field(key).type))
    return episode


pytestmark = pytest.mark.sim


@pytest.mark.slow
def test_recorded_episodes_are_labelled_by_the_pipeline(recorded, tmp_path):
    labeller = SimLabeller(recorded)
    summary = run_pipeline(recorded, labeller, tmp_path / "sim.jsonl")
    labeller.close()
    assert (summary.n_labelled, summary.failures) == (len(TASKS), {})
    labels = read_labels(tmp_path / "sim.jsonl")
    told = [[f"{r.relation} {r.object}" for s in labels[i].steps for r in s.relations] for i in range(len(TASKS))]
    assert dict(zip(TASKS, told, strict=True)) == TASKS
    for label_ in labels.values():
        assert_covers(label_.steps, label_.length_s)
        assert label_.steps[-1].outcome == "success"
        assert (label_.provenance.backend, label_.provenance.model) == ("sim", "metaworld")
        assert "mujoco" in label_.provenance.revision


@pytest.mark.slow
def test_a_scene_that_played_other_episodes_labels_the_same(recorded):
    forwards, backwards = SimLabeller(recorded), SimLabeller(recorded)
    order = range(4)
    first = {i: label(forwards, recorded[i]) for i in order}
    assert {i: label(backwards, recorded[i]) for i in [*reversed(order), *order]} == first


@pytest.mark.slow
@pytest.mark.parametrize("task", ["push-v3", "pick-place-v3"])
def test_the_grasp_is_where_meta_world_says_both_fingers_touch(recorded, task):
    """Meta-World's own `touching_main_object` as witness."""
    index = list(TASKS).index(task)
    episode = recorded[index]
    labeller = SimLabeller(recorded)
    steps = label(labeller, episode)
    grasp = next(step for step in steps if step.relations[0].relation == "grasps")
    from coc_tools.backends.sim import executed_actions

    scene, witness = Scene(task), []

    def actions():
        for action in executed_actions(episode.action, task, 3, 0.1):
            witness.append(bool(scene.env.touching_main_object))
            yield action

    scene.play(3, actions())
    first = witness.index(True)
    assert grasp.start_s * FPS <= first <= grasp.end_s * FPS + 1
    assert all(not touching for touching in witness[: round(grasp.start_s * FPS)])


@pytest.mark.slow
def test_an_episode_that_cannot_be_played_again_gets_no_label(recorded):
    labeller = SimLabeller(recorded)
    assert label(labeller, recorded[4])  # the control
    action = recorded[4].action[20].tolist()
    wrong = {
        # Meta-World's reward of a step depends on its action; the state that follows is another one too.
        "next.reward differs from frame 20 on": ("action", 20, [-action[0], 1.0, 1.0, -action[3]]),
        "observation.state differs from frame 30 on": ("observation.state", 30, [0.0, 0.6, 0.1, 1.0]),
        "next.reward differs from frame 40 on": ("next.reward", 40, -5.0),
        "next.success differs from frame 10 on": ("next.success", 10, True),
        "knows no recording of 'Open a drawer' with seed 99": ("episode_seed", 0, 99),
    }
    for message, (key, frame, value) in wrong.items():
        with pytest.raises(BackendError, match=message):
            label(labeller, changed(recorded, 4, key, frame, value))


@pytest.mark.slow
def test_another_noise_than_the_recorded_one_is_noticed(recorded, monkeypatch):
    labeller = SimLabeller(recorded)
    monkeypatch.setitem(labeller._record, "action_noise", 0.0)
    with pytest.raises(BackendError, match="drawer-open-v3: observation.state differs from frame"):
        label(labeller, recorded[4])


def test_a_dataset_of_other_origin_is_refused(reader):
    with pytest.raises(BackendUnusable, match=f"{RECORD_FILE} does not exist.*backend=endpoint"):
        SimLabeller(reader)


def test_a_recording_without_its_seeds_is_refused(coc_source, tmp_path):
    root = shutil.copytree(coc_source, tmp_path / "copy")
    (root / RECORD_FILE).write_text(json.dumps({"tasks": {}, "action_noise": 0.1, "versions": {}}))
    with pytest.raises(BackendUnusable, match="lacks episode_seed, next.reward, next.success"):
        SimLabeller(EpisodeReader("tests/coc", str(root)))
