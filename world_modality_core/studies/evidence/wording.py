"""The words of a result. "Better", "worse" and "as good" come from here, and only where their test rejected."""

from __future__ import annotations

from dataclasses import dataclass

BETTER, WORSE, AS_GOOD, NOT_WORSE = "better", "worse", "as good", "not worse"
NO_DIFFERENCE, OPEN = "no difference shown", "open"


@dataclass(frozen=True)
class TwoSides:
    """What was tested of two sides, and what came out."""

    first: str
    second: str
    # Success rate of the first minus that of the second, with the interval of the population.
    difference: float
    low: float
    high: float
    is_ahead: bool
    # The primary test is Holm's.
    p: float
    p_holm: float
    population: str
    detectable: str
    # Pairs so far and planned, while a sequential test is open.
    open_after: tuple[int, int] | None = None
    # Of a sequential test that has ended: the interval of the share of scenes won. That of the difference, `low` to
    # `high`, holds only for those who never looked before the end.
    share: tuple[float, float] | None = None
    # Difference below which the two count as equally good, and the p-values of "not worse" and "not better" by that.
    margin: float | None = None
    margin_p: tuple[float, float] | None = None
    # Of tasks that differ.
    heterogeneity_p: float | None = None
    # What was compared: "success", or by what an episode is better than another.
    outcome: str = "success"


@dataclass(frozen=True)
class DifferenceAnswer:
    """What may be said of two sides, and the whole sentence."""

    answer: str
    text: str


def answer_of(tested: TwoSides, alpha: float) -> DifferenceAnswer:
    """Put a comparison into words.

    "Better" and "worse" need Holm's p-value to be at most alpha. "As good" and "not worse" need the margin's own test,
    and are asked only where no difference was shown.
    """
    because, tail = f"p {p_text(tested.p, alpha)}, Holm's p {p_text(tested.p_holm, alpha)}", ""
    if tested.open_after is not None:
        answer, because = OPEN, "{} of {} pairs are there".format(*tested.open_after)
    elif tested.p_holm <= alpha:
        answer = BETTER if tested.is_ahead else WORSE
    elif tested.margin_p is not None and max(tested.margin_p) <= alpha:
        answer, because = AS_GOOD, f"within {100 * tested.margin:g} points, p {p_text(max(tested.margin_p), alpha)}"
    elif tested.margin_p is not None and tested.margin_p[0] <= alpha:
        because = f"by {100 * tested.margin:g} points or more, p {p_text(tested.margin_p[0], alpha)}"
        answer = NOT_WORSE
    else:
        answer, tail = NO_DIFFERENCE, f"; {tested.detectable}"
    if tested.heterogeneity_p is not None and tested.heterogeneity_p <= alpha:
        p = p_text(tested.heterogeneity_p, alpha)
        tail += f"; for these checkpoints, tasks differ in it (p {p}): read them one by one"
    if tested.open_after is not None:
        points = ""
    elif tested.share is not None:
        points = ", share of scenes won {:.2f} to {:.2f} (0.5 is no difference)".format(*tested.share)
    else:
        points = f", {100 * tested.difference:+.1f} points [{100 * tested.low:+.1f}, {100 * tested.high:+.1f}]"
    by = "" if tested.outcome == "success" else f" by {tested.outcome}"
    head = f"{tested.first} against {tested.second}: {answer}{by} ({because}){points}"
    return DifferenceAnswer(answer, f"{head}; for {tested.population}{tail}")


def population(n_checkpoints: int, n_runs: int | None, n_tasks: int) -> str:
    """Whom a result speaks of: the narrower population where the wider one was not tested.

    Args:
        n_checkpoints: That were compared.
        n_runs: Training runs, if the result is over training runs.
        n_tasks: Tasks.
    """
    whose = f"recipes like these ({n_runs} training runs)" if n_runs else _these(n_checkpoints, "checkpoint")
    return f"{whose}, {_these(n_tasks, 'task')}"


def detectable(n_pairs: int, effect: float | None, n_runs: int = 1, at_worst: float | None = None) -> str:
    """What a comparison could have found.

    Args:
        n_pairs: Pairs.
        effect: Smallest difference that they would have found; None if there is none.
        n_runs: Training runs; several if the effect is over training runs.
        at_worst: The same if the training runs spread as much as so few may hide; None if that is unknown.
    """
    pairs = f"{_count(n_pairs, 'pair')}{f' across {n_runs} training seeds' if n_runs > 1 else ''}"
    if effect is None:
        return f"{pairs} can't detect any effect"
    needed = f"a difference needs about {100 * effect:.1f} points or more to be detected by {pairs}"
    if n_runs > 1 and (at_worst is None or at_worst > 1.2 * effect):
        most = "any number of" if at_worst is None else f"{100 * at_worst:.0f}"
        needed += f" (up to {most} points: so few runs hardly tell how much runs differ)"
    return needed


def p_text(p: float, alpha: float = 0.05) -> str:
    """A p-value with two digits, rounded once; with more where two would put it on the other side of alpha."""
    if p < 1e-4 <= alpha:
        return "< 0.0001"
    texts = (f"{p:.{digits}g}" for digits in range(2, 18))
    return next(text for text in texts if (float(text) <= alpha) == (p <= alpha))


def _these(n: int, noun: str) -> str:
    return f"this {noun}" if n == 1 else f"these {n} {noun}s"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
