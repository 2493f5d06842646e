"""A paired test that may be looked at after every scene, up to a planned number of pairs.

Scene by scene, what the first won more than the second is a walk whose steps are as likely up as down if there is no
effect. The level is spent as pairs come in: after the share t of the planned pairs at most alpha * t**SPENDING of it
(Lan and DeMets 1983, "Discrete sequential boundaries for clinical trials", Biometrika 70:659-663; this family: Kim and
DeMets 1987, Biometrika 74:149-154). The bounds are exact: the distribution of the walk that has not yet crossed one is
carried along, scene by scene, given how large its steps were. Spending late costs little power and still stops early
where the effect is large; that is the aim, not the means, of Snyder et al., "Is your imitation learning policy better
than mine?" (STEP, arXiv 2503.10966).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq

SPENDING = 2.0
"""Power of the spending function: of 1, 2 and 3 the least whose power at the planned number of pairs is at least 95 %
of the exact test's that looks once, for 10 points at a discordance of 20 to 50 % (benchmarks/bench_verdicts.py)."""


@dataclass(frozen=True)
class SequentialResult:
    """What the test says after the scenes seen so far, in their order."""

    # Pairs seen, of those planned; what comes after the plan is not looked at.
    n_pairs: int
    n_planned: int
    # Two-sided, in the order in which the bounds could have been crossed; 1 while the test is open.
    p: float
    # Pairs after which a bound was crossed; None if none was.
    stopped_at: int | None
    # Pairs that each side won by then (all, if no bound was crossed).
    wins_at_stop: int
    losses_at_stop: int
    # Interval of the share of scenes that the first won among those that one of the two did; 1/2 means no difference.
    # None while the test is open.
    share: tuple[float, float] | None

    @property
    def is_open(self) -> bool:
        """Whether more pairs are planned and nothing is decided."""
        return self.stopped_at is None and self.n_pairs < self.n_planned


def sequential_test(
    differences: np.ndarray, n_planned: int, alpha: float = 0.05, with_share: bool = True
) -> SequentialResult:
    """Test scenes in their order, and say when one could have stopped.

    Args:
        differences: (n, n_runs) of each scene: 1 where only the first succeeded, -1 where only the second, else 0. The
            order must not depend on the outcomes.
        n_planned: Pairs (scenes x training runs) after which the test ends.
        alpha: Level, over all looks together.
        with_share: Whether to work out the interval of the share, which takes longer than the test.
    """
    n_runs = differences.shape[1]
    differences = differences[: -(-n_planned // n_runs)]
    times = np.minimum(np.arange(1, len(differences) + 1) * n_runs / n_planned, 1.0)
    sums = differences.sum(axis=1)
    bounds, p = _bounds(sums, alpha * times**SPENDING)
    has_ended = len(bounds) and abs(int(sums[: len(bounds)].sum())) >= bounds[-1]
    seen = differences[: len(bounds)] if has_ended else differences
    is_final = len(differences) * n_runs >= n_planned
    return SequentialResult(
        n_pairs=differences.size,
        n_planned=n_planned,
        p=p if has_ended or is_final else 1.0,
        stopped_at=seen.size if has_ended else None,
        wins_at_stop=int((seen > 0).sum()),
        losses_at_stop=int((seen < 0).sum()),
        share=_share_interval(sums[: len(bounds)], bounds, alpha) if with_share and (has_ended or is_final) else None,
    )


def _bounds(sums: np.ndarray, spendable: np.ndarray) -> tuple[list[int], float]:
    """Follow a walk until it has crossed a bound, or to its end.

    Args:
        sums: (n,) its steps, integers; how large they are is taken as given.
        spendable: (n,) what may have been spent of the level after each.

    Returns:
        The bounds after each step so far, on both sides of 0, and the two-sided p-value of where the walk is now: the
        probability to have crossed an earlier bound, or to be as far out as this.
    """
    reach = int(np.abs(sums).sum())
    pmf = np.zeros(2 * reach + 1)  # of the walk at -reach ... reach that has crossed no bound
    pmf[reach] = 1.0
    bounds, spent, at, p = [], 0.0, 0, 1.0
    for step, allowed in zip(sums.tolist(), spendable.tolist(), strict=True):
        pmf, at = _moved(pmf, abs(step), 0.5), at + step
        beyond = 2 * np.cumsum(pmf[:reach:-1])  # at least reach, reach - 1, ..., 1 away from 0
        p = min(1.0, spent + float(beyond[reach - abs(at)])) if at else 1.0
        bounds.append(reach - int(np.searchsorted(beyond, allowed - spent + 1e-15, side="right")) + 1)
        if abs(at) >= bounds[-1]:
            break
        if bounds[-1] <= reach:
            spent += float(beyond[reach - bounds[-1]])
            pmf[: reach - bounds[-1] + 1] = pmf[reach + bounds[-1] :] = 0.0
    return bounds, p


def _moved(pmf: np.ndarray, size: int, up: float) -> np.ndarray:
    """The distribution after a step of a size that goes up with a probability."""
    if not size:
        return pmf
    moved = np.zeros_like(pmf)
    moved[size:] = up * pmf[:-size]
    moved[:-size] += (1 - up) * pmf[size:]
    return moved


def _share_interval(sums: np.ndarray, bounds: list[int], alpha: float) -> tuple[float, float]:
    """Shares of steps up with which a walk may well have ended as this one did.

    Ends are ordered by stages: out at the top first, ..., out at the bottom first (Tsiatis, Rosner and Mehta 1984,
    "Exact confidence intervals following a group sequential test", Biometrics 40:797-803).
    """
    reach, end = int(np.abs(sums).sum()), int(sums.sum())

    def beyond(share: float, is_above: bool) -> float:
        """Probability to end at least as high as this walk, or at least as low."""
        pmf, above, below = np.zeros(2 * reach + 1), 0.0, 0.0
        pmf[reach] = 1.0
        for step, bound in zip(sums.tolist()[:-1], bounds, strict=False):
            pmf = _moved(pmf, abs(step), share)
            if bound <= reach:
                above, below = above + pmf[reach + bound :].sum(), below + pmf[: reach - bound + 1].sum()
                pmf[: reach - bound + 1] = pmf[reach + bound :] = 0.0
        pmf = _moved(pmf, abs(int(sums[-1])), share)
        return above + pmf[reach + end :].sum() if is_above else below + pmf[: reach + end + 1].sum()

    if not reach:
        return 0.0, 1.0
    low = brentq(lambda x: beyond(x, True) - alpha / 2, 0.0, 1.0, xtol=1e-4) if beyond(0.0, True) < alpha / 2 else 0.0
    high = (
        brentq(lambda x: beyond(x, False) - alpha / 2, 0.0, 1.0, xtol=1e-4) if beyond(1.0, False) < alpha / 2 else 1.0
    )
    return float(low), float(high)
