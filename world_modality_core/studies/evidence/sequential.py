"""A paired test that may be looked at after every episode: a beta-binomial e-process on the discordant pairs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import betaln, xlog1py, xlogy

PRIOR = 2.0
"""Both parameters of the beta distribution of the share of wins, centred on 1/2 with standard deviation 0.22: a gain of
10 points at a discordance of 20 to 30 % is a share of 0.67 to 0.75."""


@dataclass(frozen=True)
class SequentialResult:
    """What the e-process says after the pairs seen so far, in their order."""

    n_pairs: int
    wins: int
    losses: int
    e_value: float
    # Valid whenever one looks, and however often: 1 / the largest e-value so far.
    p: float
    # Pairs after which the e-value first reached 1 / alpha; None if it did not.
    stopped_at: int | None
    # Wins and losses at that point; those of all pairs if it was not reached.
    wins_at_stop: int
    losses_at_stop: int
    # Confidence sequence of the share of wins among discordant pairs, at the stop; 1/2 means no difference.
    share_low: float
    share_high: float


def log_e_values(signs: np.ndarray, prior: float = PRIOR) -> np.ndarray:
    """Logarithm of the e-process after each pair.

    Under the hypothesis of no effect a discordant pair is a win with probability 1/2 whatever came before. The e-value
    is the likelihood of the wins and losses under a share of wins drawn from Beta(prior, prior), over that under 1/2:
    2^m B(prior + wins, prior + losses) / B(prior, prior) for m discordant pairs. It is a martingale that starts at 1,
    so it ever reaches 1/alpha with probability at most alpha (Ville 1939). Mixture: Robbins (1970), "Statistical
    methods related to the law of the iterated logarithm", Annals of Mathematical Statistics 41:1397-1409; as an
    e-process: Ramdas, Grünwald, Vovk and Shafer (2023), "Game-theoretic statistics and safe anytime-valid inference",
    Statistical Science 38:576-601.

    Args:
        signs: (..., n) 1 for a win, -1 for a loss, 0 for a concordant pair, in the order in which they are looked at.
        prior: Parameter of the beta distribution.

    Returns:
        (..., n) float64.
    """
    wins, losses = np.cumsum(signs > 0, axis=-1), np.cumsum(signs < 0, axis=-1)
    return (wins + losses) * np.log(2) + betaln(prior + wins, prior + losses) - betaln(prior, prior)


def sequential_test(signs: np.ndarray, alpha: float = 0.05) -> SequentialResult:
    """Test pairs in their order, and say when one could have stopped.

    Args:
        signs: (n,) 1 for a win, -1 for a loss, 0 for a concordant pair. The order must not depend on the outcomes.
        alpha: Level, over all looks together.
    """
    log_e = log_e_values(signs)
    reached = np.flatnonzero(log_e >= -np.log(alpha))
    stop = int(reached[0]) + 1 if len(reached) else len(signs)
    wins, losses = int((signs[:stop] > 0).sum()), int((signs[:stop] < 0).sum())
    low, high = share_interval(wins, losses, alpha)
    return SequentialResult(
        n_pairs=len(signs),
        wins=int((signs > 0).sum()),
        losses=int((signs < 0).sum()),
        e_value=float(np.exp(log_e[-1])),
        p=float(min(1.0, np.exp(-log_e.max()))),
        stopped_at=stop if len(reached) else None,
        wins_at_stop=wins,
        losses_at_stop=losses,
        share_low=low,
        share_high=high,
    )


def share_interval(wins: int, losses: int, alpha: float, prior: float = PRIOR) -> tuple[float, float]:
    """Confidence sequence of the share of wins: all shares against which the mixture has not gathered 1/alpha.

    Args:
        wins: Discordant pairs that the first won.
        losses: Those that the second won.
        alpha: Level, over all looks together.
        prior: Parameter of the beta distribution.

    Returns:
        Lower and upper bound, each in [0, 1].
    """
    if wins + losses == 0:
        return 0.0, 1.0
    threshold = betaln(prior + wins, prior + losses) - betaln(prior, prior) + np.log(alpha)

    def excess(share: float) -> float:
        return float(xlogy(wins, share) + xlog1py(losses, -share) - threshold)

    best = wins / (wins + losses)
    low = brentq(excess, 1e-300, best) if wins else 0.0
    high = brentq(excess, best, 1 - 1e-15) if losses else 1.0
    return float(low), float(high)
