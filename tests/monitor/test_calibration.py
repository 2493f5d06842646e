"""The promise: of exchangeable successful episodes, at most the promised share has any alarm; and its live path."""

import numpy as np
import pytest

from world_modality_core.io.errors import ConfigError
from world_modality_core.monitor.calibration import (
    EpisodeScores,
    calibrate,
    conformal_quantile,
    n_hold_needed,
    split_in_two,
)

LENGTH, EVERY, GROUPS = 40, 4, [0, 0, 1]


def draw(rng: np.random.Generator, n: int, failing: bool = False) -> list[EpisodeScores]:
    """Episodes whose scores drift, differ in spread between phases, and are unknown at first; lengths vary."""
    episodes = []
    for _ in range(n):
        steps = np.arange(0, rng.integers(24, 60), EVERY)
        values = rng.standard_t(3, (len(steps), 3)) * (1 + steps[:, None] / 10) + rng.normal(size=(1, 3))
        values[:2, 0] = np.nan
        if failing:
            values[len(steps) // 2 :] += 100
        episodes.append(EpisodeScores(0, steps, values))
    return episodes


def calibrated(rng, n, rate):
    split = {0: split_in_two(n, rate, rng, "a task")}
    return calibrate(draw(rng, n), ["a task"], [LENGTH], 4, GROUPS, 2, rate, split)


def has_alarm(calibration, episode: EpisodeScores) -> bool:
    return bool((calibration.level(0, episode.steps, episode.values) > calibration.quantile[0]).any())


@pytest.mark.parametrize(("n", "rate"), [(24, 0.05), (40, 0.2)])
def test_the_rate_of_false_alarms_is_what_was_promised(n, rate):
    rng = np.random.default_rng(0)
    alarms, caught = [], []
    for _ in range(250):
        calibration = calibrated(rng, n, rate)
        alarms += [has_alarm(calibration, episode) for episode in draw(rng, 6)]
        caught += [has_alarm(calibration, episode) for episode in draw(rng, 1, failing=True)]
    error = 3 * (rate * (1 - rate) / 250) ** 0.5  # episodes of one calibration are dependent: counted as one
    n_hold = max(n_hold_needed(rate), n // 2)
    assert rate - 1 / (n_hold + 1) - error < np.mean(alarms) < rate + error
    assert np.mean(caught) > 0.9  # the control: a line that nothing crosses keeps any promise


def test_the_quantile_is_corrected_for_finite_samples():
    values = np.arange(1.0, 20.0)  # 19: the fewest that can promise 5 %
    assert conformal_quantile(values, 0.05) == 19 and n_hold_needed(0.05) == 19
    assert conformal_quantile(values, 0.1) == 18
    with pytest.raises(ValueError, match="it takes 19"):
        conformal_quantile(values[:18], 0.05)


def test_too_few_episodes_are_refused_with_the_rate_that_they_can_promise():
    with pytest.raises(ConfigError, match="false_alarm_rate=0.05: task 'x' has 20 .* needs 24 .* or a rate of 0.062"):
        split_in_two(20, 0.05, np.random.default_rng(0), "task 'x'")
    shape, hold = split_in_two(24, 0.05, np.random.default_rng(0), "task 'x'")
    assert len(shape) == 5 and len(hold) == 19 and not set(shape) & set(hold)


def test_live_levels_are_those_of_the_whole_episode():
    rng = np.random.default_rng(1)
    calibration = calibrated(rng, 30, 0.1)
    episodes = sorted(draw(rng, 3), key=lambda episode: len(episode.steps))
    n = len(episodes[0].steps)
    live = calibration.live([0, 0, 0])
    told = [live(step, np.stack([e.values[i] for e in episodes])) for i, step in enumerate(episodes[0].steps)]
    for row, episode in enumerate(episodes):
        whole = calibration.level(0, episode.steps, episode.values)[:n]
        np.testing.assert_allclose([level[row] for level, _ in told], whole, rtol=1e-12)
        assert [bool(alarm[row]) for _, alarm in told] == (whole > calibration.quantile[0]).tolist()


def test_surprise_rises_beyond_all_that_was_seen_and_ties_are_none():
    rng = np.random.default_rng(2)
    calibration = calibrated(rng, 30, 0.1)
    top = float(calibration.maxima[0, 0, 2].max())
    values = np.full((3, 3), np.nan)
    values[:, 2] = [top - 100, top + 1, top + 2]
    surprise = calibration.surprise(0, np.zeros(3, dtype=int), values)
    assert surprise[0, 2] == 0 < surprise[1, 2] < surprise[2, 2] and np.isnan(surprise[:, :2]).all()
    # Elapsed time is the same in all episodes until the last phase: no surprise there.
    same = [EpisodeScores(0, e.steps, e.steps[:, None].astype(float)) for e in draw(rng, 12)]
    split = {0: (np.arange(6), np.arange(6, 12))}
    clock = calibrate(same, ["a task"], [LENGTH], 4, [0], 1, 0.3, split)
    assert clock.surprise(0, np.array([8, 200]), np.array([[8.0], [200.0]]))[:, 0].tolist() == pytest.approx(
        [np.log(7 / 6), clock.surprise(0, np.array([200]), np.array([[200.0]]))[0, 0]]
    )
    assert clock.surprise(0, np.array([200]), np.array([[200.0]]))[0, 0] > 2
