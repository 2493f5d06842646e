"""Curves of training, attention over future steps, and the Prophet's skill per step."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from world_modality_core.studies.report.charts import N_COLORS, Chart, Line, line_chart

# Metrics that are drawn (docs/metrics.md), in this order, with what their vertical axis is called.
METRICS = {
    r"loss_action": "action loss",
    r"loss_world": "world loss",
    r"loss_text": "text loss",
    r"loss_align": "alignment loss",
    r"world_gate(_\w+)?": "tanh(gate)",
    r"state_gate": "tanh(gate)",
    r"prophet_skill": "skill",
    r"memory_entropy(_\w+)?": "entropy, share of uniform",
    r"token_top1_1": "share right",
}
TITLES = {
    "loss_action": "Loss of the action",
    "loss_world": "Loss of the world",
    "world_gate": "Gate of the memory",
    "prophet_skill": "Prophet's skill over copying the present, in training",
    "memory_entropy": "Entropy of the attention over the memory",
    "token_top1_1": "World tokens of the first future step",
}


@dataclass(frozen=True)
class AttentionRow:
    """Attention over future steps of a model's arm.

    Attributes:
        model, arm: Whose.
        n: Episodes with a record of it.
        mass: Mean share of each future step.
        entropy: Mean entropy, as a share of uniform attention's; None where it was not recorded.
        gate: Mean gate; None where it was not recorded.
    """

    model: str
    arm: str
    n: int
    mass: list[float]
    entropy: float | None
    gate: float | None


@dataclass(frozen=True)
class Skill:
    """A Prophet's skill per future step.

    Attributes:
        label: Whose.
        source: How it was measured.
        values: One per future step.
    """

    label: str
    source: str
    values: list[float]


def training_charts(curves: pd.DataFrame) -> list[tuple[str, list[Chart]]]:
    """Charts of logged metrics: a line per model, the mean over its training seeds, with their range as a band.

    Args:
        curves: Columns model, train_seed, step, metric, value.

    Returns:
        (metric, charts): one chart per `N_COLORS` models.
    """
    logged = sorted(set(curves["metric"]))
    charts = [
        (metric, _metric_charts(curves, metric, TITLES.get(metric, metric), y_label))
        for pattern, y_label in METRICS.items()
        for metric in logged
        if re.fullmatch(pattern, metric)
    ]
    return [(metric, of_metric) for metric, of_metric in charts if of_metric]


def prophet_charts(curves: pd.DataFrame) -> list[tuple[str, list[Chart]]]:
    """The loss and the held-out skill of Prophets while wm-prophet trained them; as `training_charts`."""
    loss = ("Prophets: loss", _metric_charts(curves, "loss", "Prophets: loss", "loss"))
    title = "Prophets: skill on held-out episodes"
    skill = (title, _metric_charts(curves, "prophet_skill", title, "skill"))
    return [(name, charts) for name, charts in (loss, skill) if charts]


def _metric_charts(curves: pd.DataFrame, metric: str, title: str, y_label: str) -> list[Chart]:
    groups = curves[curves["metric"] == metric].groupby("model")
    lines = [line for line in (_mean_line(str(model), rows) for model, rows in groups) if line is not None]
    reference = 0.0 if "gate" in metric or "skill" in metric else None
    return _charts(title, lines, "training step", y_label, reference)


def _mean_line(model: str, rows: pd.DataFrame) -> Line | None:
    wide = rows.pivot_table(index="step", columns="train_seed", values="value", aggfunc="last").dropna()
    if wide.empty:
        return None
    n = wide.shape[1]
    band = (wide.min(axis=1).tolist(), wide.max(axis=1).tolist()) if n > 1 else ((), ())
    label = f"{model} ({n} seeds)" if n > 1 else str(model)
    return Line(label, [float(step) for step in wide.index], wide.mean(axis=1).tolist(), *band)


def attention_rows(episodes: pd.DataFrame) -> list[AttentionRow]:
    """Mean attention and gate of every model and arm that has a record of one."""
    rows = []
    for (model, arm), group in episodes.groupby(["model", "arm"]):
        masses = [np.asarray(mass, dtype=float) for mass in group["attention_mass"] if mass is not None]
        gate = group["gate"].mean()
        if not masses and np.isnan(gate):
            continue
        widths = {len(mass) for mass in masses}
        mass = np.mean(masses, axis=0).tolist() if len(widths) == 1 else []
        entropy = group["attention_entropy"].mean()
        n = len(masses) or int(group["gate"].notna().sum())
        rows.append(AttentionRow(model, arm, n, mass, _or_none(entropy), _or_none(gate)))
    return rows


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def attention_charts(rows: Iterable[AttentionRow]) -> list[Chart]:
    """Attention over future steps of the intact arm, charts by the number of future steps."""
    by_width: dict[int, list[Line]] = {}
    for row in rows:
        if row.mass and row.arm == "intact":
            by_width.setdefault(len(row.mass), []).append(Line(row.model, range(1, len(row.mass) + 1), row.mass))
    return [
        chart
        for width, lines in sorted(by_width.items())
        for chart in _charts(
            f"Attention over {width} future steps", lines, "future step", "share", 1 / width, zero=True, whole_x=True
        )
    ]


def skill_charts(skills: Iterable[Skill]) -> list[Chart]:
    """The Prophet's skill over future steps, one group of charts per way of measuring it."""
    by_source: dict[str, list[Line]] = {}
    for skill in skills:
        steps = range(1, len(skill.values) + 1)
        by_source.setdefault(skill.source, []).append(Line(skill.label, steps, skill.values))
    return [
        chart
        for source, lines in by_source.items()
        for chart in _charts(f"Skill, {source}", lines, "future step", "skill", 0.0, whole_x=True)
    ]


def last_skills(curves: pd.DataFrame, source: str) -> list[Skill]:
    """Skill per future step in the last line of each curve, mean over training seeds.

    Args:
        curves: Columns model, train_seed, step, metric, value.
        source: How it was measured.
    """
    rows = curves[curves["metric"].astype(str).str.fullmatch(r"prophet_skill_\d+")]
    last = rows.sort_values("step").groupby(["model", "train_seed", "metric"])["value"].last()
    skills = []
    for model, values in last.groupby("model"):
        means = values.groupby("metric").mean()
        names = sorted(means.index, key=lambda name: int(name.rsplit("_", 1)[1]))
        skills.append(Skill(str(model), source, [float(means[name]) for name in names]))
    return skills


def _charts(title: str, lines: list[Line], x_label: str, y_label: str, reference=None, **options) -> list[Chart]:
    """As many charts as the lines need, at most `N_COLORS` lines in each."""
    n_charts = -(-len(lines) // N_COLORS)
    charts = []
    for i in range(n_charts):
        part = lines[i * N_COLORS : (i + 1) * N_COLORS]
        name = title if n_charts == 1 else f"{title} ({i + 1} of {n_charts})"
        charts.append(line_chart(name, part, x_label, y_label, reference=reference, **options))
    return [chart for chart in charts if chart is not None]
