"""Intervals for success rates."""

import numpy as np
import pytest

from world_modality_core.studies.evidence.wilson import wilson_interval


# Newcombe (1998), Statistics in Medicine 17:857-872, table I, method 3 (score without continuity correction).
@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_published_values(successes, n, low, high):
    assert wilson_interval(successes, n) == pytest.approx((low, high), abs=1e-4)


def test_all_successes_mirrors_no_success():
    low, high = wilson_interval(10, 10)
    assert high == pytest.approx(1.0)
    assert low == pytest.approx(1 - wilson_interval(0, 10)[1])


def test_coverage_by_simulation():
    """The 90 % interval holds the true rate in about 90 % of experiments."""
    rate, n = 0.8, 50
    draws = np.random.default_rng(0).binomial(n, rate, size=2000)
    bounds = {k: wilson_interval(int(k), n, confidence=0.9) for k in np.unique(draws)}
    covered = np.mean([bounds[k][0] <= rate <= bounds[k][1] for k in draws])
    assert 0.87 < covered < 0.93


@pytest.mark.parametrize(
    ("arguments", "name"), [((3, 2), "successes=3"), ((0, 0), "n=0"), ((-1, 5), "successes=-1"), ((1, 2, 95), "95")]
)
def test_refuses_nonsense(arguments, name):
    with pytest.raises(ValueError, match=name):
        wilson_interval(*arguments)
