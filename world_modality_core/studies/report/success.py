"""Success of models and arms, as `world_modality_core.studies.evidence` finds it, in the page's order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from world_modality_core.studies.evidence.comparable import ModelArm
from world_modality_core.studies.evidence.compare import (
    INTACT,
    LABEL_COLUMNS,
    ModelArmRates,
    SuccessRate,
    describe_labels,
    rates_of,
)


@dataclass(frozen=True)
class ModelSuccess:
    """What a model's episodes show.

    Attributes:
        model: Its label.
        stands_for: What the rows say of it; "" where they don't.
        arms: Success of each arm, `intact` first.
        per_seed: Arm -> rate of each training seed, seeds ascending.
    """

    model: str
    stands_for: str
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
    labels = describe_labels(episodes, episodes["model"])
    for model, rows in episodes.groupby("model"):
        arms = sorted(rows["arm"].unique(), key=lambda arm: (arm != INTACT, arm))
        told = zip(LABEL_COLUMNS, labels[model], strict=True)
        sides = [ModelArm(str(model), arm) for arm in arms]
        per_seed = rows.groupby(["arm", "train_seed"])["success"].mean()
        result.append(
            ModelSuccess(
                str(model),
                "; ".join(f"{name.replace('_', ' ')}: {said}" for name, said in told if said),
                [rates[side] if side in rates else rates_of(rows, side) for side in sides],
                {arm: per_seed[arm].tolist() for arm in arms},
            )
        )
    return result
