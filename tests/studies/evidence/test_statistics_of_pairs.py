"""Paired intervals and tests, the e-process, the bootstrap and the plan, against published values and by simulation."""

import os
import subprocess
import sys
from math import log, sqrt

import numpy as np
import pytest
from scipy import stats

from world_modality_core.studies.evidence.hierarchical_bootstrap import bootstrap_intervals, overall_means
from world_modality_core.studies.evidence.paired import PairCounts, compare_counts, compare_runs, newcombe_interval
from world_modality_core.studies.evidence.plan import (
    episodes_needed,
    independent_discordance,
    mcnemar_power,
    runs_needed,
    smallest_effect,
    smallest_effect_over_runs,
)
from world_modality_core.studies.evidence.sequential import log_e_values, sequential_test, share_interval


# (both, wins, losses, neither) -> interval of method 10. First: Altman et al. (2000), "Statistics with confidence",
# table 6.2, worked out on p. 52 (0.01 to 0.23). Second and third: Fagerland, Lydersen and Laake (2014), "Recommended
# tests and confidence intervals for paired binomial proportions", Statistics in Medicine 33:2850-2875.
@pytest.mark.parametrize(
    ("table", "low", "high"),
    [((14, 5, 0, 22), 0.011, 0.226), ((1, 1, 7, 12), -0.507, -0.026), ((59, 6, 16, 80), -0.1186, -0.0046)],
)
def test_newcombe_interval_as_published(table, low, high):
    digits = len(str(low).split(".")[1])
    assert newcombe_interval(PairCounts(*table)) == pytest.approx((low, high), abs=0.6 * 10**-digits)


def test_newcombe_interval_by_hand():
    """Without concordance of either kind, and phi = 0 after the continuity correction: square and add two Wilsons."""
    # both 1, neither 1, one each: covariance 1 - 1 = 0. Rates 1/2 and 1/2 of n = 4, Wilson: (0.5 ± half).
    z = stats.norm.ppf(0.975)
    half = z * sqrt(0.25 / 4 + z**2 / (4 * 16)) / (1 + z**2 / 4)
    assert newcombe_interval(PairCounts(1, 1, 1, 1)) == pytest.approx((-half * sqrt(2), half * sqrt(2)))


@pytest.mark.parametrize("table", [(0, 0, 0, 7), (7, 0, 0, 0), (0, 7, 0, 0), (0, 0, 7, 0), (3, 0, 0, 3)])
def test_newcombe_interval_at_the_edges(table):
    counts = PairCounts(*table)
    low, high = newcombe_interval(counts)
    assert -1 <= low <= counts.difference <= high <= 1
    assert high > low
    mirrored = newcombe_interval(PairCounts(counts.both, counts.losses, counts.wins, counts.neither))
    assert mirrored == pytest.approx((-high, -low))


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (22, 2), (12, 2), (7, 7), (0, 0), (30, 41)])
def test_mcnemar_is_a_fair_coin_on_the_discordant_pairs(wins, losses):
    p = compare_counts(PairCounts(10, wins, losses, 10)).p
    assert p == pytest.approx(stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0)


def test_pairs_are_counted_in_the_right_direction():
    counts = PairCounts.of(np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool))
    assert (counts.both, counts.wins, counts.losses, counts.neither) == (1, 2, 1, 1)
    assert counts.difference == pytest.approx(0.2)
    assert counts.discordance == pytest.approx(0.6)


def test_one_task_of_runs_without_scene_effects_is_a_t_test_on_the_runs():
    rng = np.random.default_rng(0)
    runs = rng.choice([-1, 0, 1], p=[0.1, 0.7, 0.2], size=(5, 40))
    result = compare_runs([runs])
    expected = stats.ttest_1samp(runs.mean(axis=1), 0)
    scenes = 5 * runs.mean(axis=0).var(ddof=1)
    residual = runs - runs.mean(axis=0) - runs.mean(axis=1, keepdims=True) + runs.mean()
    if scenes <= (residual**2).sum() / (4 * 39):  # nothing that the scenes have in common
        assert result.p == pytest.approx(expected.pvalue)
    assert result.difference == pytest.approx(runs.mean())
    assert (result.low < 0 < result.high) == (result.p > 0.05)


def test_runs_that_agree_by_luck_are_not_certain():
    # Three runs with the very same count, but other scenes: a plain t-test would divide by 0.
    runs = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]])
    result = compare_runs([runs])
    assert result.high > result.difference > result.low
    assert 0 < result.p < 1


def test_scenes_that_all_runs_share_widen_the_interval_over_runs():
    rng = np.random.default_rng(1)
    own = rng.choice([-1, 0, 1], size=(4, 60))
    shared = np.repeat(rng.choice([-1, 0, 1], size=(1, 60)), 4, axis=0)
    runs_differ = np.array([[0], [0], [0], [1]]) * np.eye(1, 60, dtype=int)
    assert compare_runs([shared + runs_differ]).standard_error == pytest.approx(sqrt(shared.var() / 60), rel=0.1)
    assert compare_runs([own]).standard_error < 0.8 * compare_runs([shared]).standard_error


def test_a_single_run_says_nothing_about_others():
    assert compare_runs([np.array([[1, 0, -1]])]) is None


def test_e_value_by_hand():
    # Beta(1, 1): after w wins and l losses 2^m w! l! / (m + 1)!, here 2^3 * 2! * 1! / 4! = 2/3.
    assert np.exp(log_e_values(np.array([1, 0, 1, -1]), prior=1.0)) == pytest.approx([1.0, 1.0, 4 / 3, 2 / 3])


def test_e_values_average_one_without_an_effect():
    signs = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1).T  # all 256 sequences, each as probable
    assert np.exp(log_e_values(signs)).mean(axis=0) == pytest.approx(np.ones(8))


def test_sequential_test_holds_its_level_under_continuous_peeking_where_mcnemar_does_not():
    signs = np.random.default_rng(0).choice([-1, 0, 0, 0, 1], size=(500, 600))
    e_process = (log_e_values(signs) >= log(20)).any(axis=1)
    wins, losses = np.cumsum(signs > 0, axis=1), np.cumsum(signs < 0, axis=1)
    mcnemar = (2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5) <= 0.05).any(axis=1)
    assert e_process.mean() <= 0.05
    assert mcnemar.mean() > 0.2


def test_sequential_test_stops_early_and_says_where():
    signs = np.tile([1, 0, 1, 0, -1, 1, 0, 1], 50)
    result = sequential_test(signs)
    assert result.stopped_at < 100
    assert log_e_values(signs)[result.stopped_at - 1] >= log(20) > log_e_values(signs)[: result.stopped_at - 1].max()
    assert result.p < 0.05
    assert result.wins_at_stop + result.losses_at_stop < result.stopped_at
    assert 0.5 < result.share_low < result.wins / (result.wins + result.losses) < result.share_high
    undecided = sequential_test(np.tile([1, -1, 0], 50))
    assert undecided.stopped_at is None
    assert undecided.p > 0.05
    assert undecided.share_low < 0.5 < undecided.share_high


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (1, 0), (0, 9), (40, 3), (200, 200)])
def test_share_interval_holds_what_the_e_process_does_not_refute(wins, losses):
    low, high = share_interval(wins, losses, 0.05)
    refuted = sequential_test(np.array([1] * wins + [-1] * losses + [0]), 0.05).e_value >= 20
    assert (low <= 0.5 <= high) == (not refuted)
    mirrored = share_interval(losses, wins, 0.05)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


def test_overall_means_are_three():
    easy, hard = np.array([[1.0, 1.0, 1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])[:1]
    means = overall_means([easy, easy, hard], ["easy", "easy", "hard"])
    assert means == pytest.approx({"episodes": 6 / 10, "tasks": 0.5, "tiers": 0.375})
    assert "tiers" not in overall_means([easy, hard], ["easy", ""])
    missing = np.array([[1.0, np.nan], [0.0, 1.0]])
    assert overall_means([missing], [""])["episodes"] == pytest.approx(2 / 3)


def test_bootstrap_spreads_over_what_it_resamples():
    def width(values, tiers=None):
        low, high = bootstrap_intervals(values, tiers or [""] * len(values), 500, 0)["tasks"]
        return high - low

    same = np.zeros((4, 30))
    assert width([same] * 4) == 0.0
    assert width([same, same + 1]) == pytest.approx(1.0)  # tasks differ
    runs = np.repeat([[0.0], [1.0]], 30, axis=1)
    assert width([runs] * 4) == pytest.approx(1.0)  # runs differ, and are the same for all tasks
    scenes = np.tile([0.0, 1.0], (4, 15))
    assert 0.2 < width([scenes]) < 0.5  # +- 1.96 * 0.5 / sqrt(30)
    # The tiers are what they are: only the tasks within them are drawn.
    low, high = bootstrap_intervals([same, same + 1], ["easy", "hard"], 500, 0)["tiers"]
    assert low == high == 0.5


def test_bootstrap_is_the_same_in_every_process():
    code = (
        "import numpy as np\n"
        "from world_modality_core.studies.evidence.hierarchical_bootstrap import bootstrap_intervals\n"
        "values = [np.random.default_rng(i).random((2, 9)) for i in range(6)]\n"
        "print(bootstrap_intervals(values, ['easy', 'hard', 'medium'] * 2, 50, 0))"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("0", "1", "2")
    }
    assert len(printed) == 1


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
    runs = compare_runs([np.random.default_rng(2).choice([-1, 0, 0, 1, 1], size=(4, 50))])
    effect = smallest_effect_over_runs(runs.standard_error, 4)
    # Power of a t-test by simulation.
    rng = np.random.default_rng(0)
    draws = effect + runs.standard_error * 2 * rng.standard_normal((20000, 4))
    result = stats.ttest_1samp(draws, 0, axis=1)
    assert np.mean((result.pvalue <= 0.05) & (result.statistic > 0)) == pytest.approx(0.8, abs=0.02)
    assert runs_needed(effect, runs) == 4
    assert runs_needed(effect / 2, runs) > 8


def test_independent_success_is_the_upper_bound():
    assert independent_discordance(0.6, 0.1) == pytest.approx(0.6 * 0.3 + 0.4 * 0.7)


@pytest.mark.parametrize(("difference", "discordance"), [(0.3, 0.2), (0.0, 0.2), (0.1, 1.2)])
def test_power_refuses_the_impossible(difference, discordance):
    with pytest.raises(ValueError, match=f"discordance={discordance:g}"):
        mcnemar_power(100, difference, discordance)
