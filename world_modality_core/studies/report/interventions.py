"""Offline corruption tests, as tables and charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from world_modality_core.studies.report.charts import Chart, Line, Scale, line_chart, scale_around
from world_modality_core.studies.report.curves import Skill


@dataclass(frozen=True)
class CorruptionTest:
    """The test of one checkpoint.

    Attributes:
        record: Of wm-intervene.
        scale: Of the ratios, the same for all tests of a page.
    """

    record: dict[str, Any]
    scale: Scale

    @property
    def title(self) -> str:
        """The model's label and training seed."""
        seed = self.record.get("train_seed")
        return self.record["model"] if seed is None else f"{self.record['model']}, training seed {seed}"

    @property
    def note(self) -> str:
        """On what it was made, and what the gate says."""
        record = self.record
        note = f"{record.get('dataset', '')}: {record['frames']} frames of {record['episodes']} episodes"
        return f"{note}; {record['gate_note']}" if record.get("gate_note") else note

    @property
    def charts(self) -> list[Chart]:
        """Of what depends on the horizon."""
        charts = []
        if accuracy := self.record.get("token_accuracy"):
            lines = [Line("", range(1, len(accuracy) + 1), _floats(accuracy))]
            charts.append((f"{self.title}: world tokens", lines, "future step", "share right"))
        if rollout := self.record.get("rollout_error"):
            steps = [float(row["step"]) for row in rollout]
            lines = [
                Line("Prophet, open loop", steps, _floats(row["prophet"] for row in rollout)),
                Line("copy of the present", steps, _floats(row["copy"] for row in rollout)),
            ]
            charts.append((f"{self.title}: error of the open loop", lines, "future step", "1 − cosine"))
        drawn = [line_chart(*chart, zero=True, whole_x=True) for chart in charts]
        return [chart for chart in drawn if chart is not None]


def corruption_tests(records: Sequence[dict[str, Any]]) -> list[CorruptionTest]:
    """Every record of wm-intervene, as the page shows it."""
    rows = [row for record in records for row in record["sources"].values()]
    ratios = [row.get(key) for row in rows for key in ("ratio", "ratio_low", "ratio_high")]
    scale = scale_around([ratio for ratio in ratios if ratio is not None], center=1.0)
    return [CorruptionTest(record, scale) for record in records]


def intervention_skills(tests: Sequence[CorruptionTest]) -> list[Skill]:
    """The Prophet's skill per future step in the records that have one."""
    return [
        Skill(test.title, "on recorded episodes (wm-intervene)", _floats(test.record["skill"]))
        for test in tests
        if test.record.get("skill")
    ]


def _floats(values) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]
