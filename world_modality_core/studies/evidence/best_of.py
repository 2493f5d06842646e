"""Which of several checkpoints may be the best: those that no other one beats."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import pandas as pd

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.comparable import ModelArm, pair
from world_modality_core.studies.evidence.compare import INTACT, compare_pairs
from world_modality_core.studies.evidence.families import holm
from world_modality_core.studies.evidence.wording import p_text, population


def best_of(
    episodes: pd.DataFrame,
    candidates: Sequence[str] = (),
    alpha: float = 0.05,
    common_scenes: bool = False,
    outcome: str = "success",
) -> str:
    """Compare every model with every other, and leave out whoever is beaten.

    Holm's p-values over all pairs, so that the best one is left out with probability alpha at most, however many there
    are. Those that stay can't be told apart by so many episodes: run more of these alone.

    Args:
        episodes: Rows with the columns of `EPISODE_SCHEMA`.
        candidates: Models; all if not given.
        alpha: Level, over all comparisons together.
        common_scenes, outcome: As in `pair`.

    Returns:
        A line each, those that stay first.

    Raises:
        ConfigError: if there are fewer than two models, or a name is unknown.
        NotComparableError: if episodes must not be compared.
    """
    known = sorted(episodes.loc[episodes["arm"] == INTACT, "model"].unique())
    models = list(candidates) or known
    for model in models:
        if model not in known:
            raise ConfigError(f"candidates={model!r} is no model of these episodes; they are of {', '.join(known)}")
    if len(set(models)) < 2 or len(set(models)) < len(models):
        raise ConfigError(f"candidates={', '.join(models)}: the best of one is that one; name two or more, each once")
    found = []
    for names in combinations(models, 2):
        first, second = (ModelArm(name, INTACT) for name in names)
        found.append(compare_pairs("model", pair(episodes, first, second, common_scenes, outcome), alpha))
    beaten: dict[str, list[str]] = {model: [] for model in models}
    for comparison, p in zip(found, holm([c.evidence.p for c in found]), strict=True):
        if p <= alpha:
            sides = [comparison.first.model, comparison.second.model]
            better, worse = sides if comparison.evidence.is_ahead else sides[::-1]
            beaten[worse].append(f"{better} (Holm's p {p_text(p, alpha)})")
    rate = episodes[episodes["arm"] == INTACT].groupby("model")["success"].mean()
    order = sorted(models, key=lambda model: (bool(beaten[model]), -rate[model]))
    lines = [
        f"{model}: {100 * rate[model]:.1f} %: " + (f"out, beaten by {', '.join(by)}" if by else "may be the best")
        for model, by in ((model, beaten[model]) for model in order)
    ]
    n_tasks = sum(part.level == "task" for part in found[0].parts)
    runs = found[0].runs
    whom = population(len(models) * len(found[0].train_seeds), runs and runs.n_runs, n_tasks)
    return "\n".join([*lines, f"For {whom}; {len(found)} comparisons, adjusted together."])
