"""Success rates of models and arms: overall, per training seed, per tier and per task."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from world_modality_core.studies.evidence.wilson import wilson_interval
from world_modality_core.studies.report.charts import RATE_SCALE, strip

INTACT = "intact"


@dataclass(frozen=True)
class Rate:
    """Episodes of one kind and how many of them succeeded.

    Attributes:
        name: What the episodes have in common: a model, an arm, a task ...
        arm: Their arm.
        successes: How many succeeded.
        n: How many there are.
        low, high: Wilson's 95 % interval of the rate.
        by_seed: Rate of each training seed, seeds ascending; empty where that isn't asked for.
    """

    name: str
    arm: str
    successes: int
    n: int
    low: float
    high: float
    by_seed: tuple[float, ...] = ()

    @property
    def rate(self) -> float:
        """Share that succeeded."""
        return self.successes / self.n

    @property
    def text(self) -> str:
        """Such as "9 of 12 (75 %, 95 % interval 47 to 91)"."""
        return f"{self.successes} of {self.n} ({100 * self.rate:.0f} %, 95 % interval {self.interval})"

    @property
    def interval(self) -> str:
        """Such as "47 to 91", in per cent."""
        return f"{100 * self.low:.0f} to {100 * self.high:.0f}"

    @property
    def seeds_text(self) -> str:
        """Per cent of each training seed, such as "70, 75, 82"."""
        return ", ".join(f"{100 * rate:.0f}" for rate in self.by_seed)

    @property
    def strip(self) -> Markup:
        """The dot with its interval."""
        kind = "s1" if self.arm == INTACT else "s2"
        return strip(RATE_SCALE, self.rate, self.low, self.high, f"{self.name}, {self.arm}: {self.text}", kind)


@dataclass(frozen=True)
class ModelSuccess:
    """What a model's episodes show.

    Attributes:
        model: Its label.
        arms: Over all tasks, one per arm, `intact` first.
        tiers: Per tier and arm; empty where the tasks have none.
        tasks: Per task and arm.
    """

    model: str
    arms: list[Rate]
    tiers: list[Rate]
    tasks: list[Rate]

    @property
    def intact(self) -> Rate | None:
        """The model as it was trained; None if only other arms were run."""
        return next((rate for rate in self.arms if rate.arm == INTACT), None)


def success_of(episodes: pd.DataFrame) -> list[ModelSuccess]:
    """Count successes.

    Args:
        episodes: What `read_episodes` returned.

    Returns:
        One per model, sorted by label.
    """
    result = []
    for model, rows in episodes.groupby("model", sort=True):
        by_seed = rows.groupby(["arm", "train_seed"])["success"].mean()
        arms = [_rate(str(model), arm, group, tuple(by_seed[arm])) for arm, group in _arms_in_order(rows)]
        tasks = [_rate(task, arm, g) for task, part in rows.groupby("task") for arm, g in _arms_in_order(part)]
        tiers = [_rate(tier, arm, g) for tier, part in rows.groupby("tier") if tier for arm, g in _arms_in_order(part)]
        result.append(ModelSuccess(str(model), arms, tiers, tasks))
    return result


def _arms_in_order(rows: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    return sorted(rows.groupby("arm"), key=lambda pair: (pair[0] != INTACT, pair[0]))


def _rate(name: str, arm: str, rows: pd.DataFrame, by_seed: tuple[float, ...] = ()) -> Rate:
    successes, n = int(rows["success"].sum()), len(rows)
    return Rate(name, arm, successes, n, *wilson_interval(successes, n), tuple(float(rate) for rate in by_seed))
