"""Paired intervals and tests, the sequential test and the plan: published values, by hand, by simulation."""

from itertools import product
from math import sqrt

import numpy as np
import pytest
from scipy import stats

from world_modality_core.studies.evidence.compare import overall_means
from world_modality_core.studies.evidence.families import shaffer
from world_modality_core.studies.evidence.paired import (
    PairCounts,
    compare_partly_overlapping,
    compare_runs,
    compare_scenes,
    compare_tasks,
    design_effect,
    flip_p,
    heterogeneity_p,
    margin_p,
    tango_interval,
)
from world_modality_core.studies.evidence.plan import (
    episodes_needed,
    independent_discordance,
    mcnemar_power,
    runs_needed,
    smallest_effect,
    smallest_effect_over_runs,
    worst_standard_error,
)
from world_modality_core.studies.evidence.sequential import sequential_test


def runs_of(differences):
    return compare_runs(differences, compare_scenes(differences))


def test_tango_interval_as_published():
    """Fagerland, Lydersen and Laake (2014), Statistics in Medicine 33:2850-2875: airway hyper-responsiveness."""
    assert tango_interval(1, 7, 21) == pytest.approx((-0.517, -0.026), abs=0.0006)


@pytest.mark.parametrize(("wins", "losses", "n"), [(0, 0, 7), (0, 7, 7), (7, 0, 7), (5, 0, 41), (40, 20, 160)])
def test_tango_interval_at_the_edges(wins, losses, n):
    low, high = tango_interval(wins, losses, n)
    assert -1 <= low <= (wins - losses) / n <= high <= 1 and high > low
    assert tango_interval(losses, wins, n) == pytest.approx((-high, -low), abs=1e-9)


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (22, 2), (12, 2), (7, 7), (0, 0), (30, 41)])
def test_with_one_run_the_exact_test_is_mcnemar_s(wins, losses):
    expected = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert flip_p(np.array([1] * wins + [-1] * losses + [0] * 9)) == pytest.approx(expected)


def test_flips_of_scenes_are_all_counted():
    sums = np.array([3, -1, 2, 0, 1, 5, -2])
    flipped = [abs(np.dot(signs, sums)) for signs in product((-1, 1), repeat=len(sums))]
    assert flip_p(sums) == pytest.approx(np.mean([value >= abs(sums.sum()) for value in flipped]))


def test_a_scene_that_all_runs_share_counts_once():
    one = np.random.default_rng(0).choice([-1, 0, 1, 1], size=(1, 40))
    five = np.repeat(one, 5, axis=0)
    alone, again = compare_scenes([one]), compare_scenes([five])
    assert design_effect([five]) == pytest.approx(5.0)
    assert (again.p, again.low, again.high) == pytest.approx((alone.p, alone.low, alone.high))
    assert design_effect([np.random.default_rng(1).choice([-1, 0, 1], size=(3, 400))]) < 1.2


@pytest.mark.parametrize(("n_tasks", "n_scenes", "n_runs"), [(5, 1, 10), (1, 2, 10), (3, 2, 10), (3, 1, 5), (1, 3, 5)])
def test_intervals_of_few_scenes_in_many_runs_hold_the_truth(n_tasks, n_scenes, n_runs):
    """Scenes that favour one side in all its runs, either side as often: with few, luck favours one a lot."""
    rng = np.random.default_rng(0)

    def study():
        favours = rng.choice([0.8, 0.2], size=(n_tasks, 1, n_scenes))
        wins = rng.random((n_tasks, n_runs, n_scenes)) < favours
        return compare_scenes(list(np.where(rng.random(wins.shape) < 0.6, np.where(wins, 1, -1), 0)))

    intervals = [study() for _ in range(400)]
    assert np.mean([each.low <= 0 <= each.high for each in intervals]) >= 0.93


def test_pairs_are_counted_in_the_right_direction():
    counts = PairCounts.of(np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool))
    assert (counts.both, counts.wins, counts.losses, counts.neither) == (1, 2, 1, 1)
    assert counts.difference == pytest.approx(0.2)
    assert counts.discordance == pytest.approx(0.6)


def test_runs_without_scene_effects_are_a_t_test_on_the_runs():
    rng = np.random.default_rng(0)
    luck = np.array([0.0, 0.2, 0.4, 0.6, 0.1])
    runs = (rng.random((5, 400)) < luck[:, None]).astype(int)
    assert runs_of([runs]).p == pytest.approx(stats.ttest_1samp(runs.mean(axis=1), 0).pvalue, rel=0.2)


def test_runs_that_agree_by_luck_are_no_surer_than_chance():
    """Three runs with the very same count, of other scenes: between them there is less than chance would give."""
    runs = np.zeros((3, 60), dtype=int)
    for i in range(3):
        runs[i, 20 * i : 20 * i + 6] = 1
    result, scenes = runs_of([runs]), compare_scenes([runs])
    assert result.standard_error == result.chance_error == pytest.approx(sqrt(0.1 * 0.9 / 180), rel=0.1)
    assert result.low <= scenes.low and result.high >= scenes.high and result.p >= scenes.p


@pytest.mark.parametrize("seed", range(20))
def test_a_wider_population_is_never_surer(seed):
    rng = np.random.default_rng(seed)
    differences = [rng.choice([-1, 0, 0, 1, 1], size=(3, 10)) for _ in range(6)]
    scenes = compare_scenes(differences)
    runs = compare_runs(differences, scenes)
    tasks = compare_tasks(differences, runs, runs_vary=True)
    assert tasks.low <= runs.low <= scenes.low <= scenes.high <= runs.high <= tasks.high
    assert tasks.p >= runs.p >= scenes.p


def test_scenes_that_all_runs_share_widen_the_interval_over_runs():
    rng = np.random.default_rng(1)
    own = rng.choice([-1, 0, 1], size=(4, 60))
    shared = np.repeat(rng.choice([-1, 0, 1], size=(1, 60)), 4, axis=0)
    runs_differ = np.array([[0], [0], [0], [1]]) * np.eye(1, 60, dtype=int)
    assert runs_of([shared + runs_differ]).standard_error == pytest.approx(sqrt(shared.var() / 60), rel=0.1)
    assert runs_of([own]).standard_error < 0.8 * runs_of([shared]).standard_error


def test_a_single_run_says_nothing_about_others():
    assert runs_of([np.array([[1, 0, -1]])]) is None


def test_of_tasks_like_these_nothing_is_said_below_five():
    five = [np.random.default_rng(i).choice([-1, 0, 1], size=(2, 30)) for i in range(5)]
    assert compare_tasks(five[:4], compare_scenes(five[:4]), runs_vary=False) is None
    alone = [task[:1] for task in five]
    result = compare_tasks(alone, compare_scenes(alone), runs_vary=False)
    assert result.p >= stats.ttest_1samp([task.mean() for task in alone], 0).pvalue - 1e-9


def test_tasks_that_differ_are_found_and_equal_ones_are_not():
    rng = np.random.default_rng(0)

    def tasks(*shares):
        return [rng.choice([1, -1, 0], p=[0.5 * s, 0.5 * (1 - s), 0.5], size=(3, 40)) for s in shares]

    assert heterogeneity_p(tasks(0.9, 0.1, 0.5)) <= 0.01
    found = [heterogeneity_p(tasks(0.7, 0.7, 0.7)) <= 0.05 for _ in range(400)]
    assert np.mean(found) <= 0.08
    assert heterogeneity_p(tasks(0.5)) is None
    assert heterogeneity_p([np.zeros((1, 5), dtype=int)] * 3) == 1.0
    assert heterogeneity_p([np.ones((1, 1)), np.zeros((1, 1))]) > 0.05


@pytest.mark.parametrize(
    ("n", "noise"), [((10, 100), (0.48, 0.1)), ((8, 8, 100), (0.48, 0.48, 0.1)), ((400, 40), (0.01, 0.2))]
)
def test_a_task_of_few_scenes_that_is_noisier_is_no_other_task(n, noise):
    rng = np.random.default_rng(0)

    def study():
        return [rng.choice([1, -1, 0], p=[x / 2, x / 2, 1 - x], size=(1, m)) for m, x in zip(n, noise, strict=True)]

    assert np.mean([heterogeneity_p(study()) <= 0.05 for _ in range(600)]) <= 0.05 + 3 * sqrt(0.05 * 0.95 / 600)


def test_as_good_needs_its_own_test():
    tie = np.random.default_rng(0).permutation([1] * 30 + [-1] * 30 + [0] * 340)[None]
    counts = PairCounts(200, 30, 30, 140)
    wide, narrow = (margin_p(counts, compare_scenes([tie]), None, margin) for margin in (0.1, 0.01))
    assert max(wide) < 0.001 and max(narrow) > 0.2
    few = compare_scenes([tie[:, :20]])
    assert max(margin_p(PairCounts(10, 2, 1, 7), few, None, 0.1)) > 0.05  # "no difference shown" is not "as good"


def test_no_level_is_lost_by_looking_after_every_scene():
    rng = np.random.default_rng(0)
    scene = rng.choice([-1, 1], size=(400, 60, 1)) * (rng.random((400, 60, 3)) < 0.4)  # a scene favours one side
    assert np.mean([sequential_test(study, 180, with_share=False).p <= 0.05 for study in scene]) <= 0.07


def test_power_at_the_planned_end_is_near_that_of_one_look():
    studies = np.random.default_rng(1).choice([1, -1, 0], p=[0.21, 0.11, 0.68], size=(200, 300, 1))
    in_turn = [sequential_test(study, 300, with_share=False) for study in studies]
    once = np.mean([flip_p(study.sum(axis=1)) <= 0.05 for study in studies])
    assert np.mean([result.stopped_at is not None for result in in_turn]) >= 0.9 * once
    assert np.mean([result.stopped_at or 300 for result in in_turn]) < 220


def test_sequential_test_stops_early_and_says_where():
    differences = np.tile([1, 0, 1, 0, -1, 1, 0, 1], 50)[:, None]
    result = sequential_test(differences, 400)
    assert result.stopped_at < 100 and result.p < 0.05
    assert result.wins_at_stop + result.losses_at_stop < result.stopped_at
    assert 0.5 < result.share[0] < 0.8 < result.share[1]
    assert sequential_test(-differences, 400).share == pytest.approx(
        (1 - result.share[1], 1 - result.share[0]), abs=1e-3
    )
    # What comes after the stop, or after the plan, changes nothing.
    assert sequential_test(differences[: result.stopped_at], 400) == result.__class__(
        **result.__dict__ | {"n_pairs": result.stopped_at}
    )
    assert sequential_test(np.concatenate([differences, -differences]), 400) == result


def test_sequential_test_is_open_until_its_planned_end():
    tie = np.tile([1, -1, 0], 50)[:, None]
    still, ended = sequential_test(tie, 300), sequential_test(tie, 150)
    assert still.is_open and still.p == 1.0 and still.share is None
    assert not ended.is_open and ended.p > 0.05 and ended.share[0] < 0.5 < ended.share[1]


def test_bounds_of_the_sequential_test_by_hand():
    """Six scenes, all won: at the end 2 / 2**6 <= 0.05; nothing could be spent before."""
    assert sequential_test(np.ones((6, 1), dtype=int), 6, with_share=False).stopped_at == 6
    assert sequential_test(np.ones((5, 1), dtype=int), 5, with_share=False).stopped_at is None
    assert sequential_test(np.ones((6, 1), dtype=int), 6, with_share=False).p == pytest.approx(2 / 64)


def test_overall_means_are_three():
    easy, hard = np.array([[1.0, 1.0, 1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])[:1]
    means = overall_means([easy, easy, hard], ["easy", "easy", "hard"])
    assert means == pytest.approx({"episodes": 6 / 10, "tasks": 0.5, "tiers": 0.375})
    assert "tiers" not in overall_means([easy, hard], ["easy", ""])
    missing = np.array([[1.0, np.nan], [0.0, 1.0]])
    assert overall_means([missing], [""])["episodes"] == pytest.approx(2 / 3)


def test_power_by_simulation():
    rng = np.random.default_rng(0)
    n, difference, discordance = 150, 0.12, 0.3
    pairs = rng.multinomial(n, [(discordance + difference) / 2, (discordance - difference) / 2, 0.7], size=4000)
    p = 2 * stats.binom.cdf(pairs[:, 1], pairs[:, 0] + pairs[:, 1], 0.5)
    found = ((p <= 0.05) & (pairs[:, 0] > pairs[:, 1])).mean()
    assert mcnemar_power(n, difference, discordance) == pytest.approx(found, abs=0.03)


def test_pairs_needed_near_the_usual_formula():
    """Connor (1987), Biometrics 43:207-211: the normal approximation asks for a little less than the exact test."""
    for difference, discordance in ((0.1, 0.25), (0.05, 0.2), (0.2, 0.4)):
        z = stats.norm.ppf([0.975, 0.8])
        approximate = ((z[0] * sqrt(discordance) + z[1] * sqrt(discordance - difference**2)) / difference) ** 2
        n = episodes_needed(difference, discordance)
        assert approximate < n < 1.15 * approximate
        assert mcnemar_power(n, difference, discordance) >= 0.8
        assert smallest_effect(n, discordance) == pytest.approx(difference, abs=0.002)


def test_too_few_pairs_see_nothing():
    assert smallest_effect(5, 0.3) is None  # 5 : 0 has p = 1/16
    assert smallest_effect(8, 0.3) is not None


def test_plan_over_runs():
    runs = runs_of([np.random.default_rng(2).choice([-1, 0, 0, 1, 1], size=(4, 50))])
    effect = smallest_effect_over_runs(runs.standard_error, 4)
    # Power of a t-test by simulation.
    rng = np.random.default_rng(0)
    draws = effect + runs.standard_error * 2 * rng.standard_normal((20000, 4))
    result = stats.ttest_1samp(draws, 0, axis=1)
    assert np.mean((result.pvalue <= 0.05) & (result.statistic > 0)) == pytest.approx(0.8, abs=0.02)
    assert runs_needed(effect, runs) == 4
    assert runs_needed(effect / 2, runs) > 8


def test_few_runs_may_hide_how_much_they_differ():
    runs = runs_of([np.random.default_rng(2).choice([-1, 0, 0, 1, 1], size=(3, 50))])
    # 80 % interval of a chi-squared with two degrees of freedom: 0.211 to 4.605.
    assert worst_standard_error(runs) == pytest.approx(runs.standard_error * sqrt(2 / 0.2107), rel=1e-3)


def test_independent_success_is_the_upper_bound():
    assert independent_discordance(0.6, 0.1) == pytest.approx(0.6 * 0.3 + 0.4 * 0.7)


@pytest.mark.parametrize(("difference", "discordance"), [(0.3, 0.2), (0.0, 0.2), (0.1, 1.2)])
def test_power_refuses_the_impossible(difference, discordance):
    with pytest.raises(ValueError, match=f"discordance={discordance:g}"):
        mcnemar_power(100, difference, discordance)


@pytest.mark.parametrize(("n", "n_runs", "rate"), [(20, 1, 0.5), (100, 1, 0.5), (50, 1, 0.95), (50, 5, 0.6)])
def test_partly_overlapping_scenes_keep_their_level_and_gain_power(n, n_runs, rate):
    rng = np.random.default_rng(0)

    def rejections(gain, n_studies=1000):
        found = []
        for _ in range(n_studies):
            hard = np.clip(rate + rng.normal(0, 0.2, (2, 3, n)), 0, 1)  # of common scenes, and of others
            first, second = (rng.random((n_runs, 3, n // 2)) < hard[0, :, : n // 2] + g for g in (gain, 0))
            others = [(rng.random((n_runs, 3, n // 2)) < each + g).mean(0) for g, each in
                      ((gain, hard[1, :, : n // 2]), (0, hard[0, :, n // 2 : n // 2 * 2]))]  # fmt: skip
            differences = [first[:, t].astype(int) - second[:, t] for t in range(3)]
            with_others = compare_partly_overlapping(differences, list(zip(*others, strict=True)))
            found.append((with_others.p <= 0.05, compare_scenes(differences).p <= 0.05))
        return np.mean(found, 0)

    assert rejections(0.0)[0] <= 0.05 + 3 * sqrt(0.05 * 0.95 / 1000)
    if rate == 0.5 and n == 100:
        with_others, pairs_alone = rejections(0.1, 200)
        assert with_others > pairs_alone + 0.1
    assert compare_partly_overlapping([np.ones((1, 4))], [(np.ones(3), np.empty(0))]) is None


def test_a_task_with_more_scenes_of_one_side_counts_no_more_for_that():
    """+30 points in one task and -30 in another are no difference, whichever of the two has other scenes."""
    rng = np.random.default_rng(0)

    def study():
        rates = ((0.75, 0.45), (0.45, 0.75))
        sides = [[(rng.random((1, 20)) < rate).astype(int) for rate in of_task] for of_task in rates]
        others = [[(rng.random(n) < rate).astype(float) for rate in of_task]
                  for n, of_task in zip((40, 10), rates, strict=True)]  # fmt: skip
        return compare_partly_overlapping([a - b for a, b in sides], others)

    assert np.mean([study().p <= 0.05 for _ in range(600)]) <= 0.05 + 3 * sqrt(0.05 * 0.95 / 600)


@pytest.mark.parametrize(("n", "margin"), [(25, 0.1), (52, 0.05), (12, 0.2), (100, 0.1)])
def test_as_good_keeps_its_level_where_all_but_the_margin_agree(n, margin):
    """The second is better by the margin, and where it isn't the two agree: exact, over how many pairs are lost."""
    lost = np.arange(n + 1)
    p = [margin_p(PairCounts(n - k, 0, k, 0), compare_scenes([-(np.arange(n) < k)[None].astype(int)]), None, margin)
         for k in lost]  # fmt: skip
    assert stats.binom.pmf(lost, n, margin)[[max(each) <= 0.05 for each in p]].sum() <= 0.05


def test_margins_of_several_candidates_share_one_level():
    assert shaffer([(0.03, 0.001)]) == [(0.03, 0.001)]  # of one candidate at most one side is true: nothing is added
    # Either side's Holm alone would leave 0.03 as it is, since the other candidate's p is small.
    (a, _), (_, b) = shaffer([(0.03, 0.001), (0.001, 0.03)])
    assert (a, b) == (0.06, 0.06)
