"""`wm-compare --plan`: how many episodes a difference needs, from a guess or from a pilot."""

from __future__ import annotations

from dataclasses import dataclass

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.compare import Comparison, ComparisonReport
from world_modality_core.studies.evidence.plan import (
    episodes_needed,
    independent_discordance,
    runs_needed,
    smallest_effect,
    smallest_effect_over_runs,
)


@dataclass(frozen=True)
class PlanOptions:
    """What is to be found, and what is guessed about it; the options of the same names."""

    difference: float
    rate: float
    discordance: float | None
    power: float
    alpha: float
    n: int | None

    def validate(self) -> None:
        """Raises ConfigError naming the option."""
        for name in ("difference", "rate", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: expected a number between 0 and 1")
        if self.rate + self.difference > 1:
            raise ConfigError(
                f"rate={self.rate} and difference={self.difference} add up to more than 1: a baseline this good leaves "
                "no room for the difference; ask for a smaller one, or name the baseline's --rate"
            )
        if self.discordance is not None and not self.difference <= self.discordance <= 1:
            raise ConfigError(
                f"discordance={self.discordance}: expected at least the difference of {self.difference} (every pair "
                "that makes a difference is discordant) and at most 1"
            )
        if self.n is not None and self.n < 1:
            raise ConfigError(f"n={self.n}: expected at least 1")


def make_plan(wanted: PlanOptions, pilot: ComparisonReport | None = None) -> str:
    """Pairs needed for a difference, and the smallest difference that a number of pairs sees.

    Args:
        wanted: What is to be found.
        pilot: Comparisons whose discordance and spread over training runs to use.

    Raises:
        ConfigError: if an option can't be used, or the difference is too small to be found.
    """
    wanted.validate()
    lines = [
        f"Exact McNemar test, two-sided, alpha {wanted.alpha:g}; to find {_points(wanted.difference)} with "
        f"{100 * wanted.power:g} % power. A pair is one scene with one training seed: two episodes."
    ]
    try:
        if wanted.discordance is not None:
            lines += _needed("as given", wanted.discordance, wanted)
        elif pilot is None:
            rates = f"{100 * wanted.rate:g} % and {100 * (wanted.rate + wanted.difference):g} %"
            discordance = independent_discordance(wanted.rate, wanted.difference)
            lines += _needed(f"if {rates} succeed independently; a pilot will show less", discordance, wanted)
        for comparison in pilot.comparisons if pilot else ():
            lines += _of_pilot(comparison, wanted)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    lines.append(
        "A verdict joins several comparisons, and misses at most what they miss together: two planned with 90 % power "
        "give at least 80 %."
    )
    return "\n".join(lines)


def _needed(source: str, discordance: float, wanted: PlanOptions) -> list[str]:
    # A difference can't be larger than the discordance: a pilot with less had more of it if the effect were real.
    used = max(discordance, wanted.difference)
    n = episodes_needed(wanted.difference, used, wanted.power, wanted.alpha)
    lines = [f"{n} pairs at a discordance of {100 * used:.1f} % ({source})"]
    if wanted.n is not None:
        lines.append(f"  {wanted.n} pairs see {_effect(wanted.n, discordance, wanted)}")
    return lines


def _of_pilot(comparison: Comparison, wanted: PlanOptions) -> list[str]:
    counts, runs = comparison.parts[0].counts, comparison.runs
    name = f"{comparison.first} - {comparison.second}"
    lines = _needed(f"pilot {name}, {100 * counts.difference:+.1f} points", counts.discordance, wanted)
    lines.append(f"  the pilot's {counts.n} pairs see {_effect(counts.n, counts.discordance, wanted)}")
    if runs is not None:
        effect = smallest_effect_over_runs(runs.standard_error, runs.n_runs, wanted.power, wanted.alpha)
        n_runs = runs_needed(wanted.difference, runs, wanted.power, wanted.alpha)
        lines.append(
            f"  across training seeds, if they spread as in the pilot: {n_runs} runs of as many scenes; the pilot's "
            f"{runs.n_runs} see {'nothing' if effect is None else _points(effect)}"
        )
    return lines


def _effect(n: int, discordance: float, wanted: PlanOptions) -> str:
    effect = smallest_effect(n, discordance, wanted.power, wanted.alpha)
    return "nothing" if effect is None else f"{_points(effect)} or more"


def _points(difference: float) -> str:
    return f"{100 * difference:.1f} points"
