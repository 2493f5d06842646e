"""Offline corruption tests, as tables and charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from world_modality_core.studies.report.charts import Chart, Line, Scale, line_chart, scale_around, strip, strip_axis
from world_modality_core.studies.report.curves import Skill


@dataclass(frozen=True)
class SourceRow:
    """What a memory source does to the actions, as text."""

    source: str
    error: str
    ratio: str
    interval: str
    chunk_change: str
    reading: str
    strip: Markup


@dataclass(frozen=True)
class CorruptionTest:
    """The test of one checkpoint.

    Attributes:
        model: Its label.
        title: Its label and training seed.
        note: On what, and what the gate says.
        axis: Of the ratios.
        rows: One per source.
        charts: Of what depends on the horizon.
    """

    model: str
    title: str
    note: str
    axis: Markup
    rows: list[SourceRow]
    charts: list[Chart]


def corruption_tests(records: Sequence[dict[str, Any]]) -> list[CorruptionTest]:
    """Every record of wm-intervene, as the page shows it."""
    ratios = [
        row[key]
        for record in records
        for row in record["sources"].values()
        for key in ("ratio", "ratio_low", "ratio_high")
        if row.get(key) is not None
    ]
    scale = scale_around(ratios, center=1.0)
    return [_test(record, scale) for record in records]


def _test(record: dict[str, Any], scale: Scale) -> CorruptionTest:
    title = _title(record)
    note = f"{record.get('dataset', '')}: {record['frames']} frames of {record['episodes']} episodes"
    if record.get("gate_note"):
        note += f"; {record['gate_note']}"
    rows = [_row(source, row, scale, title) for source, row in record["sources"].items()]
    return CorruptionTest(record["model"], title, note, strip_axis(scale), rows, _charts(record, title))


def _title(record: dict[str, Any]) -> str:
    seed = record.get("train_seed")
    return record["model"] if seed is None else f"{record['model']}, training seed {seed}"


def _row(source: str, row: dict[str, Any], scale: Scale, title: str) -> SourceRow:
    ratio, low, high = (row.get(key) for key in ("ratio", "ratio_low", "ratio_high"))
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    drawn = Markup("")
    if ratio is not None:
        low, high = (ratio, ratio) if not interval else (low, high)
        kind = "s2" if low > 1 else "s3" if high < 1 else "s8"
        drawn = strip(scale, ratio, low, high, f"{title}, {source}: {ratio:.3f}, 95 % interval {interval}", kind, 1.0)
    return SourceRow(
        source, _number(row.get("error")), _number(ratio), interval, _number(row.get("chunk_change")),
        row.get("reading", ""), drawn,
    )  # fmt: skip


def _charts(record: dict[str, Any], title: str) -> list[Chart]:
    charts = []
    if accuracy := record.get("token_accuracy"):
        steps = [float(step) for step in range(1, len(accuracy) + 1)]
        lines = [Line("", steps, _floats(accuracy))]
        charts.append(
            line_chart(f"{title}: world tokens", lines, "future step", "share right", zero=True, whole_x=True)
        )
    if rollout := record.get("rollout_error"):
        steps = [float(row["step"]) for row in rollout]
        lines = [
            Line("Prophet, open loop", steps, _floats(row["prophet"] for row in rollout)),
            Line("copy of the present", steps, _floats(row["copy"] for row in rollout)),
        ]
        charts.append(
            line_chart(f"{title}: error of the open loop", lines, "future step", "1 − cosine", zero=True, whole_x=True)
        )
    return [chart for chart in charts if chart is not None]


def intervention_skills(records: Sequence[dict[str, Any]]) -> list[Skill]:
    """The Prophet's skill per future step in the records that have one."""
    return [
        Skill(_title(record), "on recorded episodes (wm-intervene)", _floats(record["skill"]))
        for record in records
        if record.get("skill")
    ]


def _floats(values) -> list[float]:
    return [math.nan if value is None else float(value) for value in values]


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
