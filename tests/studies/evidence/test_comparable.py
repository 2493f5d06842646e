"""What must not be compared is refused, with its reason; what may be is paired scene by scene."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.studies.evidence.simulated_studies import StudyShape, simulate_study
from world_modality_core.studies.evidence.comparable import ModelArm, NotComparableError, check_matched, pair
from world_modality_core.studies.evidence.compare import compare
from world_modality_core.studies.evidence.compare_table import format_report
from world_modality_core.studies.evidence.episode_records import read_episodes

RESULTS = Path(__file__).parents[3] / "results"
F, A, ZERO = ModelArm("F", "intact"), ModelArm("A", "intact"), ModelArm("F", "zero")
SHAPE = StudyShape(n_tasks=2, n_scenes=3, n_runs=2)


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    """Models F (intact, zero) and A, 2 training seeds, 2 tasks, 3 scenes each."""
    gains = {"F": {"intact": 0.1, "zero": 0.0}, "A": {"intact": 0.0}}
    return simulate_study(SHAPE, gains, np.random.default_rng(0)).episodes


def of(episodes: pd.DataFrame, side: ModelArm) -> pd.Series:
    return (episodes["model"] == side.model) & (episodes["arm"] == side.arm)


def changed(episodes: pd.DataFrame, where: pd.Series, /, **values) -> pd.DataFrame:
    other = episodes.copy()
    for name, value in values.items():
        other.loc[where, name] = value
    return other


@pytest.mark.parametrize("second", [A, ZERO])
def test_pairs_hold_the_right_episodes(study, second):
    shuffled = study.sample(frac=1, random_state=0)
    pairs = pair(shuffled, F, second)
    assert pairs.train_seeds == (0, 1)
    assert [(task.task, task.tier) for task in pairs.tasks] == [("task-0", "easy"), ("task-1", "hard")]
    index = study.set_index(["model", "arm", "train_seed", "task", "seed"])["success"]
    for task in pairs.tasks:
        for side, values in ((F, task.first), (second, task.second)):
            expected = [[index[side.model, side.arm, run, task.task, scene] for scene in range(3)] for run in range(2)]
            assert values.tolist() == expected
    # First scene of all tasks and runs, then the second, ...
    expected = [task.difference[run, scene] for scene in range(3) for task in pairs.tasks for run in range(2)]
    assert pairs.in_order().ravel().tolist() == expected


def test_scenes_that_come_later_change_nothing_before_them(study):
    """One task is ahead of the other: what it has alone waits, else every look would see another walk."""
    ahead = study[(study["task"] == "task-0") | (study["seed"] < 2)]
    part, whole = pair(ahead, F, ZERO), pair(study, F, ZERO)
    assert part.in_order(n_planned=12).tolist() == whole.in_order()[:4].tolist()
    assert len(part.in_order(n_planned=10)) == len(part.in_order()) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n_action_steps", 8), ("renderer", "osmesa: llvmpipe"), ("image_height", 96), ("image_width", 96),
        ("episode_length", 400), ("env", "metaworld"), ("env_hash", "other"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("second", [A, ZERO])
def test_refuses_what_was_evaluated_otherwise(study, second, name, value):
    before = study[name].iloc[0]
    with pytest.raises(NotComparableError, match=rf"{name} is {before} \({F}\) and {value} \({second}\)"):
        pair(changed(study, of(study, second), **{name: value}), F, second)


def test_names_everything_that_differs_at_once(study):
    other = changed(study, of(study, A), n_action_steps=8, renderer="osmesa", init_hash="moved")
    with pytest.raises(NotComparableError) as refusal:
        pair(other, F, A)
    for reason in ("n_action_steps is 4 (F/intact) and 8", "renderer is none", "initial states of 12 of 12 scenes"):
        assert reason in str(refusal.value)


def test_refuses_other_initial_states(study):
    where = of(study, A) & (study["task"] == "task-1") & (study["seed"] == 2)
    for common_scenes in (False, True):  # a moved scene is no missing scene
        with pytest.raises(NotComparableError, match="init_hash=1-2 and moved"):
            pair(changed(study, where, init_hash="moved"), F, A, common_scenes)


def test_refuses_scenes_that_move_between_training_seeds(study):
    where = study["train_seed"] == 1
    with pytest.raises(NotComparableError, match="F/intact saw 6 scenes with another initial state"):
        pair(changed(study, where, init_hash=study["init_hash"] + "x"), F, A)


def test_refuses_duplicates(study):
    with pytest.raises(NotComparableError, match="A/intact has 12 episodes more than once"):
        pair(pd.concat([study, study[of(study, A)]]), F, A)


def test_refuses_arms_of_several_checkpoints(study):
    where = of(study, ZERO) & (study["train_seed"] == 1)
    with pytest.raises(NotComparableError, match=r"train_seed=1 was evaluated from several checkpoints \(F-1, later\)"):
        pair(changed(study, where, checkpoint="later"), F, ZERO)


def test_refuses_a_side_that_is_not_there(study):
    with pytest.raises(NotComparableError, match="F/oracle has no episodes; those of A/intact, F/intact"):
        pair(study, F, ModelArm("F", "oracle"))


def test_refuses_missing_episodes_unless_asked_for_the_common_ones(study):
    missing = of(study, A) & (study["task"] == "task-0") & (study["seed"] == 2) & (study["train_seed"] == 1)
    rest = study[~missing]
    with pytest.raises(
        NotComparableError,
        match=r"A/intact with train_seed=1 lacks 1 of 6 scenes, the first task=task-0 seed=2.*--common",
    ):
        pair(rest, F, A)
    pairs = pair(rest, F, A, common_scenes=True)
    # The scene is left out for both training seeds, so that all have the same ones.
    assert [task.seeds.tolist() for task in pairs.tasks] == [[0, 1], [0, 1, 2]]
    assert pairs.n_left_out == len(rest[of(rest, F) | of(rest, A)]) - 20
    whole = pair(study, F, A)
    assert (pairs.tasks[0].first == whole.tasks[0].first[:, [0, 1]]).all()


def test_scenes_of_one_side_count_with_the_pairs():
    gains = {"F": {"intact": 0.25}, "A": {"intact": -0.25}}
    shape = StudyShape(n_tasks=2, n_scenes=30, n_runs=1)
    rows = simulate_study(shape, gains, np.random.default_rng(1)).episodes
    shared = rows[(of(rows, F) & (rows["seed"] < 20)) | (of(rows, A) & (rows["seed"] >= 10))]
    pairs = pair(shared, F, A, common_scenes=True)
    assert [len(task.seeds) for task in pairs.tasks] == [10, 10]
    assert [(len(first), len(second)) for first, second in pairs.alone] == [(10, 10), (10, 10)]
    wanted = rows[of(rows, F) & (rows["task"] == "task-1") & (rows["seed"] < 10)]["success"]
    assert pairs.alone[1][0].tolist() == wanted.tolist()
    comparison = compare(shared, baseline="A", candidates=["F"], common_scenes=True).comparisons[0]
    narrower, wider = comparison.overlapping, comparison.parts[0].result
    assert narrower.high - narrower.low < wider.high - wider.low and narrower.p < 0.001
    assert compare(rows, baseline="A", candidates=["F"]).comparisons[0].overlapping is None


def test_refuses_other_training_seeds_unless_asked_for_the_common_ones(study):
    rest = study[~(of(study, A) & (study["train_seed"] == 0))]
    with pytest.raises(NotComparableError, match=r"train_seed is 0, 1 \(F/intact\) and 1 \(A/intact\)"):
        pair(rest, F, A)
    assert pair(rest, F, A, common_scenes=True).train_seeds == (1,)
    with pytest.raises(NotComparableError, match="the two have no scene in common"):
        pair(rest[~(of(rest, F) & (rest["train_seed"] == 1))], F, A, common_scenes=True)


def test_episode_lengths_may_differ_between_tasks(study):
    other = changed(study, study["task"] == "task-1", episode_length=400)
    assert len(pair(other, F, A).tasks) == 2


# --- What fooled it ---------------------------------------------------------------------------------------------------


def test_refuses_one_checkpoint_that_was_given_several_training_seeds(study):
    same = changed(study, of(study, F), checkpoint="F-0")
    with pytest.raises(NotComparableError, match=r"F/intact has the same checkpoint \(F-0\) as train_seed=0, 1"):
        pair(same, F, A)


def test_refuses_a_checkpoint_against_itself_under_two_labels(study):
    copied = study.copy()
    copied.loc[of(study, A), "checkpoint"] = copied.loc[of(study, F), "checkpoint"].to_numpy()
    with pytest.raises(NotComparableError, match=r"both are the same checkpoint \(F-0\)"):
        pair(copied, F, A)
    pair(copied, F, ZERO)  # arms of one checkpoint are what arms are


def test_refuses_copies_of_a_checkpoint_whose_config_alone_differs(study):
    """By the hash of the weights; in older records by what they did in every scene."""
    same = changed(study, of(study, F), weights="w")
    with pytest.raises(NotComparableError, match=r"F/intact has the same weights \(w\) as train_seed=0, 1"):
        pair(same, F, A)
    rewards = np.arange(len(study)) + 0.5
    told = study.assign(sum_reward=rewards)  # no two episodes alike
    pair(told, F, A)
    copied = told.copy()
    for column in ("success", "sum_reward"):
        ran = [told.loc[of(told, F) & (told["train_seed"] == seed), column] for seed in (0, 1)]
        copied.loc[ran[1].index, column] = ran[0].to_numpy()
    with pytest.raises(NotComparableError, match="F/intact did the very same as train_seed=0 and 1, in all 6 scenes"):
        pair(copied, F, A)
    copied = told.copy()
    for column in ("success", "sum_reward"):
        copied.loc[of(told, A), column] = told.loc[of(told, F), column].to_numpy()
    with pytest.raises(NotComparableError, match="both did the very same in all 12 episodes"):
        pair(copied, F, A)


def test_refuses_outcomes_that_nobody_recorded(study):
    with pytest.raises(NotComparableError, match="F/intact: success is object, expected True or False"):
        pair(study.assign(success="False"), F, A)
    with pytest.raises(NotComparableError, match="sum_reward is no number in 12 of 12 episodes"):
        pair(study.assign(sum_reward=np.nan), F, A, outcome="reward")
    with pytest.raises(NotComparableError, match="F/intact: steps is 0 in 12 of 12 episodes"):
        pair(study.assign(steps=0, success=True), F, A, outcome="time")


def test_a_first_observation_that_comes_back_is_no_new_scene(study):
    again = changed(study, (study["task"] == "task-0") & (study["seed"] == 2), init_hash="0-0")
    with pytest.raises(NotComparableError, match="F/intact has 2 scenes that begin as another one.*task-0 seed=2"):
        pair(again, F, A)
    assert [task.seeds.tolist() for task in pair(again, F, A, common_scenes=True).tasks] == [[0, 1], [0, 1, 2]]


def test_refuses_episodes_that_were_taken_out_one_by_one(study):
    """Without its failures a side looks well; an evaluation that stopped early lacks its end."""
    for seed, is_forgiven in ((2, True), (0, True), (1, False)):
        rest = study[~(of(study, A) & (study["task"] == "task-0") & (study["seed"] == seed))]
        if is_forgiven:
            assert pair(rest, F, A, common_scenes=True).n_left_out == 2
        else:
            with pytest.raises(NotComparableError, match="A/intact with train_seed=0 lacks 1 scenes in between"):
                pair(rest, F, A, common_scenes=True)


def test_refuses_other_versions_of_mujoco_where_they_are_known(study):
    other = changed(changed(study, of(study, F), mujoco="3.3.7"), of(study, A), mujoco="3.8.1")
    with pytest.raises(NotComparableError, match=r"mujoco is 3.3.7 \(F/intact\) and 3.8.1 \(A/intact\)"):
        pair(other, F, A)
    pair(changed(study, of(study, F), mujoco="3.3.7"), F, A)  # an older record doesn't say


def test_refuses_scenes_that_were_told_otherwise(study):
    """push-v3 and push-back-v3 of stock Meta-World were told one thing, and push-back-v3 another thing later."""
    pull = changed(changed(study, of(study, F), instruction="Pull"), of(study, A), instruction="Push")
    with pytest.raises(NotComparableError, match=r"the instructions of \d+ of \d+ scenes differ.*'Pull' and 'Push'"):
        pair(pull, F, A)
    pair(changed(study, of(study, F), instruction="Pull"), F, A)  # an older record doesn't say


TRAINED = {"dataset": "me/push", "episodes": "0-24", "samples": 48000, "n_trainable": 1000, "sees": "images"}


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("episodes", "0-4", r"episodes is 0-24 \(F\) and 0-4 \(A\) at train_seed=0"),
        ("dataset", "me/reach", r"dataset is me/push \(F\) and me/reach \(A\)"),
        ("samples", 2000, r"samples is 48000 \(F\) and 2000 \(A\)"),
        ("n_trainable", 600, "A has 600 trainable parameters, F 1,000"),
        ("sees", "no images", "F sees images, A sees no images"),
    ],
)
def test_a_matched_control_saw_the_same_with_as_many_parameters(study, name, value, reason):
    known = changed(study, study["model"].notna(), **TRAINED)
    assert check_matched(known, "F", "A") == (
        [], ["not recorded, and so not checked: dataset_hash, train_steps of F or A"]
    )  # fmt: skip
    other = changed(known, of(known, A), **{name: value})
    with pytest.raises(NotComparableError, match=rf"matched='A' is no control of F: {reason}"):
        compare(other, matched="A")
    report = compare(other, baseline="A")  # a baseline may be anything; it is said
    assert len(report.notes) == 1 and report.notes[0].startswith("F and A were not trained alike: ")


def test_what_older_records_do_not_say_of_a_matched_control_is_said(study):
    needed = compare(study.replace({"arm": {"zero": "gate_closed"}}), matched="A").verdicts[1]
    assert any("not recorded, and so not checked: dataset" in reason for reason in needed.reasons)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("memory_content", "states", "the robot stays where it is, which is zero"),
        ("sees", "images through the memory alone", "the memory is all that this policy sees by"),
    ],
)
def test_arms_that_can_not_but_differ_tell_nothing(column, value, reason):
    gains = {"F": {"intact": 0.35, "shuffle_within_task": -0.3, "copy_current": -0.3}}
    episodes = simulate_study(StudyShape(n_tasks=2, n_scenes=30, n_runs=2), gains, np.random.default_rng(0)).episodes
    assert compare(episodes).verdicts[0].answer == "shown"
    used = compare(episodes.assign(**{column: value})).verdicts[0]
    assert used.answer == "not informative" and any(reason in each for each in used.reasons)


def test_committed_studies_can_not_be_mixed():
    episodes = read_episodes([RESULTS / "study1", RESULTS / "study2_fresh"])
    with pytest.raises(NotComparableError, match="matched='A_wide' is no control of F_states_only: episodes is "):
        compare(episodes, candidates=["F_states_only"], matched="A_wide", common_scenes=True)


def test_rates_of_pairs_are_those_of_the_pairs(study):
    """With --common_scenes a side may have more episodes than there are pairs."""
    rest = study[~(of(study, A) & (study["seed"] == 2))].assign(success=lambda rows: rows["seed"] == 2)
    report = compare(rest, baseline="A", common_scenes=True)
    row = next(line for line in format_report(report).splitlines() if line.startswith("F/intact - A/intact"))
    assert "0.0, 0.0" in row and "0 : 0 / 8" in row
