"""The episode bootstrap against a plain loop."""

import numpy as np
import pytest

from lerobot_policy_world_modality.intervention.ratio_bootstrap import bootstrap_ratio


def test_it_is_the_loop_that_it_stands_for():
    rng = np.random.default_rng(0)
    frames = [rng.uniform(size=(n, 2)) for n in (3, 9, 5, 12, 7)]  # (frames of an episode, clean and corrupt error)
    corrupt, clean = (np.array([episode[:, i].sum() for episode in frames]) for i in (0, 1))
    ratio, low, high = bootstrap_ratio(corrupt, clean, n_resamples=400, seed=4)

    draws = np.random.default_rng(4).multinomial(5, np.full(5, 1 / 5), size=400)
    ratios = []
    for counts in draws:
        drawn = np.concatenate([episode for episode, n in zip(frames, counts, strict=True) for _ in range(n)])
        ratios.append(drawn[:, 0].mean() / drawn[:, 1].mean())  # ratio of means over the frames drawn
    everything = np.concatenate(frames)
    assert ratio == pytest.approx(everything[:, 0].mean() / everything[:, 1].mean())
    assert (low, high) == pytest.approx(tuple(np.percentile(ratios, [2.5, 97.5])))
    assert low < ratio < high


def test_episodes_are_drawn_not_frames():
    rng = np.random.default_rng(1)
    clean = np.ones(8)
    spread = bootstrap_ratio(1 + rng.normal(size=8) / 3, clean, 500, 0)
    alike = bootstrap_ratio(np.full(8, 1.2), clean, 500, 0)
    assert spread[2] - spread[1] > 0.2
    assert [float(value) for value in alike] == pytest.approx([1.2, 1.2, 1.2])


def test_steps_are_apart_and_too_few_episodes_have_no_interval():
    value = np.array([[2.0, 1.0, 0.0], [4.0, 0.0, 0.0]])
    count = np.array([[2.0, 1.0, 0.0], [2.0, 0.0, 0.0]])  # the second step is reached by one episode, the third by none
    ratio, low, high = bootstrap_ratio(value, count, 300, 0)
    assert ratio[:2].tolist() == [1.5, 1.0] and np.isnan(ratio[2])
    assert (low[0], high[0]) == (1.0, 2.0)
    assert np.isnan(low[1:]).all() and np.isnan(high[1:]).all()
    assert np.isnan(bootstrap_ratio(np.ones(1), np.ones(1), 300, 0)[1:]).all()


def test_its_interval_covers():
    rng, hits = np.random.default_rng(2), 0
    for trial in range(200):
        clean = rng.gamma(4, size=40)
        _, low, high = bootstrap_ratio(1.1 * clean + rng.normal(size=40), clean, 300, trial)
        hits += low < 1.1 < high
    assert 0.89 < hits / 200 <= 1
