"""Success of models and arms, as `world_modality_core.studies.evidence` finds it, in the page's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from world_modality_core.studies.evidence.comparable import ModelArm
from world_modality_core.studies.evidence.compare import INTACT, ModelArmRates, SuccessRate, rates_of


@dataclass(frozen=True)
class ModelSuccess:
    """What a model's episodes show.

    Attributes:
        model: Its label.
        arms: Success of each arm, `intact` first.
        per_seed: Arm -> rate of each training seed, seeds ascending.
    """

    model: str
    arms: list[ModelArmRates]
    per_seed: dict[str, list[float]]

    @property
    def intact(self) -> SuccessRate | None:
        """The model as it was trained; None if only other arms were run."""
        return next((arm.rates[0] for arm in self.arms if arm.side.arm == INTACT), None)

    def parts(self, level: str) -> list[tuple[str, SuccessRate]]:
        """Arm and rate of each "tier" or "task"; empty where the tasks have no tiers."""
        rows = [(arm.side.arm, rate) for arm in self.arms for rate in arm.rates if rate.level == level]
        return sorted(rows, key=lambda row: row[1].name)


def success_of(episodes: pd.DataFrame, rates: Mapping[ModelArm, ModelArmRates]) -> list[ModelSuccess]:
    """Success of every model.

    Args:
        episodes: What `read_episodes` returned.
        rates: Of those arms that were compared, whose means have intervals.

    Returns:
        One per model, sorted by label.
    """
    result = []
    for model, rows in episodes.groupby("model"):
        arms = sorted(rows["arm"].unique(), key=lambda arm: (arm != INTACT, arm))
        sides = [ModelArm(str(model), arm) for arm in arms]
        per_seed = rows.groupby(["arm", "train_seed"])["success"].mean()
        result.append(
            ModelSuccess(
                str(model),
                [rates[side] if side in rates else rates_of(rows, side) for side in sides],
                {arm: per_seed[arm].tolist() for arm in arms},
            )
        )
    return result
