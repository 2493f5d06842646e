"""How many pairs of episodes a difference needs, and the smallest difference that n pairs can see: exact McNemar."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from world_modality_core.studies.evidence.paired import RunsResult

MAX_PAIRS = 1_000_000


def mcnemar_power(n: int, difference: float, discordance: float, alpha: float = 0.05) -> float:
    """Probability that the exact two-sided McNemar test finds the difference, in its direction.

    Exact: the discordant pairs are binomial with n and `discordance`, the losses among them binomial with
    (discordance - difference) / (2 discordance) (Duffy 1984, "Asymptotic and exact power for the McNemar test",
    Biometrics 40:1005-1015).

    Args:
        n: Pairs.
        difference: Success rate of the first minus that of the second, in (0, discordance].
        discordance: Share of pairs in which only one of the two succeeds, in (0, 1].
        alpha: Level of the two-sided test.

    Raises:
        ValueError: if the difference is larger than the discordance, or one of them is outside its range.
    """
    if not 0 < difference <= discordance <= 1:
        raise ValueError(
            f"difference={difference:g} and discordance={discordance:g}: expected 0 < difference <= discordance <= 1"
        )
    spread = 9 * np.sqrt(n * discordance * (1 - discordance)) + 1
    m = np.arange(max(0, int(n * discordance - spread)), min(n, int(n * discordance + spread)) + 1)
    most = stats.binom.ppf(alpha / 2, m, 0.5)
    most = np.where(2 * stats.binom.cdf(most, m, 0.5) <= alpha, most, most - 1)
    found = stats.binom.cdf(most, m, (discordance - difference) / (2 * discordance))
    return float((stats.binom.pmf(m, n, discordance) * found).sum())


def episodes_needed(difference: float, discordance: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """Pairs with which the exact McNemar test finds the difference with the power asked for.

    Raises:
        ValueError: as `mcnemar_power`, or if a million pairs are too few.
    """
    high = 8
    while mcnemar_power(high, difference, discordance, alpha) < power:
        high *= 2
        if high > MAX_PAIRS:
            raise ValueError(f"difference={difference:g}: more than {MAX_PAIRS} pairs are needed; ask for a larger one")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if mcnemar_power(middle, difference, discordance, alpha) >= power else (middle, high)
    return high


@lru_cache(maxsize=1024)
def smallest_effect(n: int, discordance: float, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest difference that n pairs find with the power asked for.

    A difference can't be larger than the discordance: where one beyond `discordance` is needed, the discordance is
    taken to grow with it (all discordant pairs are wins).

    Returns:
        The difference in (0, 1]; None where n pairs can't find any (fewer than 6 at alpha = 0.05).
    """

    def missing(difference: float) -> float:
        return mcnemar_power(n, difference, max(difference, discordance), alpha) - power

    if missing(1.0) < 0:
        return None
    return float(brentq(missing, 1e-9, 1.0, xtol=1e-6))


def smallest_effect_over_runs(
    standard_error: float, n_runs: int, power: float = 0.8, alpha: float = 0.05
) -> float | None:
    """Smallest difference that the t interval over training runs finds with the power asked for.

    Args:
        standard_error: Of the mean difference, as `compare_runs` found it: never below that of chance alone.
        n_runs: Training runs.
        power: Power asked for.
        alpha: Level of the two-sided test.

    Returns:
        The difference; None where it is beyond 1, all that a difference of success rates can be.
    """
    effect = _shift(n_runs, power, alpha) * standard_error
    return float(effect) if effect <= 1 else None


@lru_cache(maxsize=256)
def _shift(n_runs: int, power: float, alpha: float) -> float:
    """What a difference must be, in standard errors."""
    critical = stats.t.ppf(1 - alpha / 2, n_runs - 1)
    return float(brentq(lambda ncp: stats.nct.sf(critical, n_runs - 1, ncp) - power, 0.0, 4 * critical + 10))


def worst_standard_error(runs: RunsResult, confidence: float = 0.8) -> float:
    """Upper end of the interval of a standard error that so few runs tell little about (chi-squared)."""
    freedom = runs.n_runs - 1
    return runs.standard_error * float(np.sqrt(freedom / stats.chi2.ppf((1 - confidence) / 2, freedom)))


def independent_discordance(rate: float, difference: float) -> float:
    """Discordance if the two succeeded independently of each other: scenes that tell nothing about success.

    An upper bound in practice, since scenes that are hard for one are hard for the other.

    Args:
        rate: Success rate of the baseline.
        difference: What the other has more.
    """
    other = rate + difference
    return rate * (1 - other) + (1 - rate) * other


def runs_needed(difference: float, pilot: RunsResult, power: float = 0.8, alpha: float = 0.05) -> int:
    """Training runs with which the t interval finds the difference, if the runs spread as in a pilot.

    Args:
        difference: Of the success rates, above 0.
        pilot: A comparison over training runs, of as many scenes.
        power: Power asked for.
        alpha: Level of the two-sided test.

    Raises:
        ValueError: if a thousand runs are too few.
    """
    for n_runs in range(2, 1001):
        error = pilot.standard_error * np.sqrt(pilot.n_runs / n_runs)
        effect = smallest_effect_over_runs(float(error), n_runs, power, alpha)
        if effect is not None and effect <= difference:
            return n_runs
    raise ValueError(f"difference={difference:g}: more than 1000 training runs are needed; ask for a larger one")
