"""What must not be compared is refused, with its reason; what may be is paired scene by scene."""

import numpy as np
import pandas as pd
import pytest

from tests.studies.evidence.simulated_studies import StudyShape, simulate_study
from world_modality_core.studies.evidence.comparable import ModelArm, NotComparableError, pair

F, A, ZERO = ModelArm("F", "intact"), ModelArm("A", "intact"), ModelArm("F", "zero")
SHAPE = StudyShape(n_tasks=2, n_scenes=3, n_runs=2)


@pytest.fixture(scope="module")
def study() -> pd.DataFrame:
    """Models F (intact, zero) and A, 2 training seeds, 2 tasks, 3 scenes each."""
    gains = {"F": {"intact": 0.1, "zero": 0.0}, "A": {"intact": 0.0}}
    return simulate_study(SHAPE, gains, np.random.default_rng(0)).episodes


def of(episodes: pd.DataFrame, side: ModelArm) -> pd.Series:
    return (episodes["model"] == side.model) & (episodes["arm"] == side.arm)


def changed(episodes: pd.DataFrame, where: pd.Series, **values) -> pd.DataFrame:
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
    missing = of(study, A) & (study["task"] == "task-0") & (study["seed"] == 1) & (study["train_seed"] == 1)
    rest = study[~missing]
    with pytest.raises(
        NotComparableError,
        match=r"A/intact with train_seed=1 lacks 1 of 6 scenes, the first task=task-0 seed=1.*--common",
    ):
        pair(rest, F, A)
    pairs = pair(rest, F, A, common_scenes=True)
    # The scene is left out for both training seeds, so that all have the same ones.
    assert [task.seeds.tolist() for task in pairs.tasks] == [[0, 2], [0, 1, 2]]
    assert pairs.n_left_out == len(rest[of(rest, F) | of(rest, A)]) - 20
    whole = pair(study, F, A)
    assert (pairs.tasks[0].first == whole.tasks[0].first[:, [0, 2]]).all()


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
