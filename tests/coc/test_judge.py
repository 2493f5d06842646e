"""Scoring labels: matching, metrics, corruptions, intervals, and metrics that are rejected."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from coc_tools.config import GripperConfig
from coc_tools.judge import score_report as report_module
from coc_tools.judge.cli import EvalConfig, evaluate, main
from coc_tools.judge.corruptions import CORRUPTIONS, shifted_times, shuffled_steps, swapped_objects
from coc_tools.judge.gripper import GripperSignal, gripper_agreement, read_grippers
from coc_tools.judge.matching import concordance, match_by_content, match_by_time, temporal_iou
from coc_tools.judge.score_report import ALL, format_report
from coc_tools.judge.score_report import judge as full_judge
from coc_tools.judge.scores import METRICS, Metric
from coc_tools.judge.words import VERBS, relation_of, same_thing, things
from coc_tools.schema import EpisodeLabel, LabelStep, Relation
from coc_tools.store import LabelFile
from tests.coc.helpers import PROVENANCE
from world_modality_core.io.errors import ConfigError

FPS = 10


def judge(labels, reference, grippers=None, seed=0):
    """With fewer resamples than the default, which is enough here."""
    return full_judge(labels, reference, grippers, n_bootstrap=300, seed=seed)


def step(
    start_s: float, end_s: float, relation: str | None = None, thing: str = "puck", what: str = "It moves"
) -> LabelStep:
    """A step of one relation between the gripper and a thing."""
    relations = [Relation(subject="gripper", relation=relation, object=thing)] if relation else []
    return LabelStep(
        start_s=start_s, end_s=end_s, what=what, why="so", objects=[thing], relations=relations, outcome="success"
    )


def true_steps(thing: str = "puck", offset: float = 0.0) -> list[LabelStep]:
    return [
        step(0, 1 + offset, "approaches", thing),
        step(1 + offset, 2, "grasps", thing),
        step(2, 3, "lifts", thing),
        step(3, 4, "releases", thing),
    ]


def make_label(
    episode: int, steps: list[LabelStep], task: str = "pick the puck", length_s: float = 4.0
) -> EpisodeLabel:
    return EpisodeLabel(
        episode_index=episode, task=task, length_s=length_s, steps=steps, text="" if steps else "t",
        provenance=PROVENANCE,
    )  # fmt: skip


@pytest.fixture
def reference() -> dict[int, EpisodeLabel]:
    """20 episodes of two tasks."""
    tasks = [("pick the puck", "puck"), ("pick the mug", "mug")]
    return {e: make_label(e, true_steps(tasks[e % 2][1], 0.02 * e), tasks[e % 2][0]) for e in range(20)}


@pytest.fixture
def grippers() -> dict[int, GripperSignal]:
    """Closed from 1.5 s to 3 s, as the reference tells."""
    is_closed = np.zeros(40, bool)
    is_closed[15:30] = True
    return {e: GripperSignal(is_closed, FPS) for e in range(20)}


# --- matching -------------------------------------------------------------------------------------------------------


def test_temporal_iou_is_overlap_over_union():
    iou = temporal_iou([step(0, 2), step(5, 6)], [step(1, 3), step(0, 2), step(2, 4)])
    np.testing.assert_allclose(iou, [[1 / 3, 1, 0], [0, 0, 0]])
    assert temporal_iou([], [step(0, 1)]).shape == (0, 1)


def test_the_assignment_is_the_best_one_not_the_greedy_one():
    # Greedy takes label 0 with reference 0 (0.8) and leaves label 1, which only fits reference 0, alone.
    label, reference = [step(0, 10), step(0, 6)], [step(0, 8), step(2, 11)]
    assert temporal_iou(label, reference)[0, 0] == 0.8
    assert match_by_time(label, reference, 0.5) == [(0, 1), (1, 0)]
    assert match_by_time(label, reference, 0.74) == [(0, 0)]


def test_equal_times_are_told_apart_by_the_things_named():
    label = [step(0, 1, thing="mug"), step(0, 1, thing="puck")]
    assert match_by_time(label, [step(0, 1, thing="puck"), step(0, 1, thing="mug")], 0.5) == [(0, 1), (1, 0)]


def test_content_is_matched_whatever_the_time():
    label = [step(2, 3, "lifts"), step(0, 1, "grasps"), step(1, 2, None), step(3, 4, "pushes", "mug")]
    reference = [step(0, 1, "grasps"), step(1, 2, "lifts"), step(3, 4, "pushes", "puck")]
    assert match_by_content(label, reference) == [(0, 1), (1, 0)]


def test_of_repeated_events_the_nearer_in_time_is_meant():
    reference = [step(0, 1, "turns"), step(4, 5, "turns")]
    assert match_by_content([step(4, 5, "turns")], reference) == [(0, 1)]


def test_concordance_counts_pairs_of_steps():
    label, reference = [step(2, 3), step(0, 1), step(4, 5)], [step(0, 1), step(2, 3), step(4, 5)]
    assert concordance(label, reference, [(0, 0), (1, 1), (2, 2)]) == (2, 3)
    assert concordance(label, reference, [(1, 0), (0, 1), (2, 2)]) == (3, 3)
    assert concordance(label, reference, [(0, 0)]) == (0, 0)


# --- words ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "relation"),
    [
        ("The robot arm moves towards the puck", "approaches"),
        ("The arm reaches for the red puck", "approaches"),
        ("It closes the gripper around the puck", "grasps"),
        ("It closes its fingers on the puck", "grasps"),
        ("The gripper grabs the handle", "grasps"),
        ("It raises the puck", "lifts"),
        ("The gripper opens its fingers", "releases"),
        ("The robot lets go of the puck", "releases"),
        ("It opens the drawer", "opens"),
        ("The gripper opens the drawer", "opens"),
        ("The gripper closes around the handle", "grasps"),
        ("The gripper opens.", "releases"),
        ("The gripper closes the window", "closes"),
        ("The arm drags the mug", "pulls"),
        ("The hand backs away from the button", "leaves"),
        ("It presses the button", "presses"),
        ("The lever is rotated", "turns"),
        ("The gripper picks up the puck", None),  # grasps and lifts: not one relation
        ("It pushes and then lifts the puck", None),
        ("The scene is quiet", None),
        ("The express lane", None),
    ],
)
def test_relations_are_read_from_text_only_where_there_is_no_doubt(what, relation):
    assert relation_of(step(0, 1, what=what)) == relation


def test_a_steps_own_relation_comes_before_its_text():
    assert relation_of(step(0, 1, "pushes", what="It lifts the puck")) == "pushes"
    two = [Relation(subject="gripper", relation=r, object="puck") for r in ("pushes", "lifts")]
    assert relation_of(step(0, 1).model_copy(update={"relations": two})) is None


def test_every_relation_but_none_else_has_verbs():
    from typing import get_args

    from coc_tools.schema import RelationName

    assert set(VERBS) == set(get_args(RelationName))
    for name in VERBS:
        assert relation_of(step(0, 1, what=f"It {name} the thing")) == name, name


def test_the_sims_own_sentences_tell_their_relation():
    pytest.importorskip("metaworld")
    from coc_tools.sim_trace import _WHAT

    for relation, sentence in _WHAT.items():
        assert relation_of(step(0, 1, what=sentence.format(s="gripper", o="puck"))) == relation


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("the red puck", "puck", True), ("Pucks", "puck", True), ("drawer handle", "drawer", False),
        ("soccer ball", "ball", True), ("glass", "glas", False), ("red puck", "blue puck", False), ("", "puck", False),
    ],
)  # fmt: skip
def test_names_of_one_thing(one, other, same):
    assert same_thing(one, other) is same


def test_the_robot_is_no_thing():
    named = step(0, 1).model_copy(update={"objects": ["The gripper", "robot arm", "fingers", "a Puck", "puck"]})
    assert things(named) == ["puck"]


# --- gripper --------------------------------------------------------------------------------------------------------


def test_steps_are_held_against_the_gripper(grippers):
    assert gripper_agreement(true_steps(), grippers[0]) == (3, 3)
    wrong = [step(0, 1, "grasps"), step(1.7, 2.5, "releases"), step(3.2, 4, "lifts"), step(0, 4, "pushes")]
    assert gripper_agreement(wrong, grippers[0]) == (0, 3)
    assert gripper_agreement([step(9, 10, "grasps")], grippers[0]) == (0, 0)


def test_the_gripper_signal_is_read_from_the_dataset(reader):
    dimension, signals = read_grippers(reader, [1], GripperConfig())
    high, low = signals[1], read_grippers(reader, [1], GripperConfig(closed_is="low"))[1][1]
    assert str(dimension).startswith("action[3]")
    assert high.fps == 10 and len(high.is_closed) == 17
    assert (high.is_closed != low.is_closed).all() and 0 < high.is_closed.sum() < 17
    stats = reader.meta.stats["action"]
    middle = (stats["min"][3] + stats["max"][3]) / 2
    np.testing.assert_array_equal(high.is_closed, reader[1].action[:, 3] > middle)
    with pytest.raises(ConfigError, match="gripper.key='grip'"):
        read_grippers(reader, [0], GripperConfig(key="grip"))
    with pytest.raises(ConfigError, match="gripper.dim=4: action has 4 dimensions"):
        read_grippers(reader, [0], GripperConfig(dim=4))
    with pytest.raises(ConfigError, match="episode 4 is labelled, but .* has 4 episodes"):
        read_grippers(reader, [4], GripperConfig())


# --- corruptions ----------------------------------------------------------------------------------------------------


def test_corruptions_change_what_they_say_and_nothing_else():
    steps, names = true_steps(), ["puck", "mug"]
    rng = np.random.default_rng(0)
    shuffled = shuffled_steps(steps, 4.0, names, rng)
    assert [(s.start_s, s.end_s) for s in shuffled] == [(s.start_s, s.end_s) for s in steps]
    assert all(a.relations != b.relations for a, b in zip(shuffled, steps, strict=True))
    assert sorted(s.relations[0].relation for s in shuffled) == sorted(s.relations[0].relation for s in steps)
    swapped = swapped_objects(steps, 4.0, names, rng)
    assert len({s.objects[0] for s in swapped}) == 1 and swapped[0].objects != ["puck"]
    assert [s.relations[0].relation for s in swapped] == [s.relations[0].relation for s in steps]
    assert swapped[0].relations[0].object == swapped[0].objects[0]
    shifted = shifted_times(steps, 4.0, names, rng)
    assert all(0 <= s.start_s < s.end_s <= 4.0 for s in shifted)
    assert {s.start_s for s in shifted} & {s.start_s for s in steps} == set()


def test_a_single_step_cannot_be_shuffled():
    assert shuffled_steps([step(0, 1, "pushes")], 1.0, [], np.random.default_rng(0)) == [step(0, 1, "pushes")]


# --- judging --------------------------------------------------------------------------------------------------------


def test_the_reference_scores_1_against_itself(reference, grippers):
    report = judge(reference, reference, grippers)
    assert list(report.scores) == ["pick the mug", "pick the puck", ALL]
    assert set(report.scores[ALL]) == {metric.name for metric in METRICS} and not report.rejected
    for scores in report.scores.values():
        assert {(s.value, s.low, s.high) for s in scores.values()} == {(1.0, 1.0, 1.0)}
    assert report.n_episodes == {"pick the mug": 10, "pick the puck": 10, ALL: 20}


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_corrupted_labels_score_lower_on_what_must_tell_them(reference, grippers, corruption):
    rng = np.random.default_rng(1)
    wrong = {
        e: make_label(e, CORRUPTIONS[corruption](label.steps, 4.0, ["puck", "mug"], rng), label.task)
        for e, label in reference.items()
    }
    scores = judge(wrong, reference, grippers).scores[ALL]
    found = {metric.name: scores[metric.name].value for metric in METRICS if corruption in metric.must_detect}
    values = {name: value for name, value in found.items() if value is not None}
    assert values and max(values.values()) < 0.8, found


def test_counts_of_a_known_case(reference):
    """Every episode misses the lift, calls the grasp a push, and adds a step: recall 3/4, precision 3/4, ..."""
    labels = {}
    for episode, label in reference.items():
        approach, grasp, _, release = label.steps
        pushes = grasp.model_copy(update={"relations": [Relation(subject="g", relation="pushes", object="puck")]})
        brief = step(2.0, 2.2, "lifts", "puck")  # a fifth of the true step's time
        labels[episode] = make_label(episode, [approach, pushes, brief, release], label.task)
    scores = judge(labels, reference).scores["pick the puck"]
    assert scores["step_recall"].value == scores["step_precision"].value == 3 / 4
    assert scores["object_accuracy"].value == 1
    assert scores["relation_accuracy"].value == pytest.approx(2 / 3) and scores["relation_accuracy"].n_counted == 30
    assert scores["order_agreement"].value == 1 and scores["order_agreement"].n_counted == 30


def test_free_text_labels_are_scored_too(reference):
    sentences = ["The arm reaches for the puck", "It grabs it", "It raises it", "It lets go of it"]
    labels = {}
    for episode, label in reference.items():
        steps = [
            s.model_copy(update={"relations": [], "what": what, "objects": [f"the {s.objects[0]}", "robot"]})
            for s, what in zip(label.steps, sentences, strict=True)
        ]
        labels[episode] = make_label(episode, steps, label.task)
    scores = judge(labels, reference).scores[ALL]
    assert {score.value for score in scores.values()} == {1.0}


def test_intervals_are_those_of_episodes_and_repeat(reference):
    """Half of the episodes are right, half have no step in common: the binomial's interval, not the steps'."""
    labels = {
        e: label if e < 10 else make_label(e, [step(3.99, 4, "hits", "wall")], label.task)
        for e, label in reference.items()
    }
    one, again, other = (judge(labels, reference, seed=seed).scores[ALL]["step_recall"] for seed in (0, 0, 1))
    assert one == again and one.value == 0.5
    assert (one.low, one.high) == pytest.approx((0.3, 0.7), abs=0.06)  # 20 episodes; 80 steps would give 0.39 to 0.61
    assert other.value == one.value and (other.low, other.high) == pytest.approx((one.low, one.high), abs=0.06)


def test_a_metric_that_cannot_tell_a_corruption_is_rejected(reference, grippers, monkeypatch):
    # Counting steps sees no corruption; counting matched steps sees shifted times, but no swapped things.
    blind = Metric("n_steps_right", lambda case: (len(case.label) == len(case.reference), 1), ("shuffled steps",))
    recall = next(metric for metric in METRICS if metric.name == "step_recall")
    half = Metric("half_blind", recall.count, ("shifted times", "swapped objects"))
    monkeypatch.setattr(report_module, "METRICS", (recall, blind, half))
    report = judge(reference, reference, grippers)
    assert set(report.scores[ALL]) == {"step_recall"}  # the control is kept
    assert report.rejected["n_steps_right"] == "on the reference itself it can't detect shuffled steps"
    assert report.rejected["half_blind"] == "on the reference itself it can't detect swapped objects"
    text = format_report(report)
    assert "n_steps_right" not in text.splitlines()[0] and "REJECTED: n_steps_right" in text


def test_episodes_of_one_step_have_no_order(reference):
    single = {e: make_label(e, [step(0, 4, "approaches", "goal")], "reach") for e in range(20)}
    report = judge(single, single)
    assert "shuffled steps" in report.rejected["order_agreement"]
    assert "shuffled steps" in report.rejected["relation_accuracy"]
    assert {"step_recall", "object_accuracy"} <= set(report.scores[ALL])


def test_labels_that_say_nothing_are_told_as_such(reference):
    rng = np.random.default_rng(0)
    noise = {}
    for e, label in reference.items():
        steps = shuffled_steps(label.steps, 4.0, [], rng)
        noise[e] = make_label(e, swapped_objects(steps, 4.0, ["puck", "mug", "cup"], rng), label.task)
    report = judge(noise, reference)
    assert report.no_better_than["object_accuracy"] == ["swapped objects"]
    assert report.no_better_than["order_agreement"] == ["shuffled steps"]
    assert "step_recall" not in report.no_better_than  # its times are right
    assert "NO BETTER THAN CHANCE: object_accuracy" in format_report(report)


def test_few_episodes_are_not_trusted(reference):
    few = {e: reference[e] for e in range(4)}
    report = judge(few, reference)
    assert not report.scores[ALL] and "4 episodes are too few" in report.rejected["step_recall"]
    assert "4 of 20 episodes of the reference have a label; the others are left out" in format_report(report)


def test_without_a_dataset_the_gripper_metric_says_what_it_needs(reference):
    assert "--dataset.root" in judge(reference, reference).rejected["gripper_agreement"]


def test_labels_of_another_dataset_are_refused(reference):
    other = {e: make_label(e, true_steps(), "open the drawer") for e in range(20)}
    with pytest.raises(ConfigError, match="episode 0 is 'open the drawer' in the labels and 'pick the puck'"):
        judge(other, reference)
    with pytest.raises(ConfigError, match="no episode in common"):
        judge({99: make_label(99, true_steps())}, reference)


def test_a_label_of_free_text_alone_matches_nothing(reference):
    labels = {**reference, 0: make_label(0, [])}
    scores = judge(labels, reference).scores["pick the puck"]
    assert scores["step_recall"].value == 0.9 and scores["step_precision"].value == 1


# --- the command ----------------------------------------------------------------------------------------------------


@pytest.fixture
def files(reference, tmp_path):
    paths = []
    for name, labels in (("labels", {e: reference[e] for e in range(12)}), ("reference", reference)):
        with LabelFile(tmp_path / f"{name}.jsonl") as file:
            for label in labels.values():
                file.append(label)
        paths.append(str(file.path))
    return paths


def test_the_command_prints_a_table_and_writes_json(files, tmp_path, capsys):
    labels, reference = files
    evaluate(EvalConfig(labels=labels, reference=reference, n_bootstrap=200, json=str(tmp_path / "scores.json")))
    printed = capsys.readouterr().out
    assert re.search(r"^pick the mug +6 +1\.00 \[1\.00, 1\.00\]", printed, flags=re.MULTILINE)
    assert re.search(r"^all +12 ", printed, flags=re.MULTILINE) and "12 of 20 episodes" in printed
    written = json.loads((tmp_path / "scores.json").read_text())
    assert written["scores"][ALL]["step_recall"] == {"value": 1.0, "low": 1.0, "high": 1.0, "n_counted": 48.0}
    assert written["options"]["min_iou"] == 0.5 and "gripper_agreement" in written["rejected"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"labels": "nowhere.jsonl"}, "labels='nowhere.jsonl': no such file"),
        ({"reference": ""}, "reference='': no such file"),
        ({"min_iou": 0.0}, "min_iou=0.0"),
        ({"n_bootstrap": 10}, "n_bootstrap=10"),
    ],
)
def test_wrong_options_are_named(files, options, message):
    labels, reference = files
    with pytest.raises(ConfigError, match=message):
        evaluate(EvalConfig(**{"labels": labels, "reference": reference, **options}))


def test_the_console_script_ends_with_one_line(files, monkeypatch):
    monkeypatch.setattr("sys.argv", ["coc-eval", f"--labels={files[0]}", "--reference=nowhere.jsonl"])
    with pytest.raises(SystemExit, match="^coc-eval: reference='nowhere.jsonl': no such file"):
        main()


def test_the_documentation_names_every_metric_relation_and_corruption():
    text = (Path(__file__).parents[2] / "docs" / "coc_judging.md").read_text()
    for metric in METRICS:
        assert re.search(rf"^\| `{metric.name}` \|.*\| {', '.join(metric.must_detect)} \|$", text, flags=re.MULTILINE)
    assert all(f"`{relation}`" in text for relation in VERBS)
    assert all(f"*{corruption}*" in text for corruption in CORRUPTIONS)
