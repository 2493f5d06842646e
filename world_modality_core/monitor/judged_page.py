"""The page of `wm-monitor eval`: who told failures when, and filmed episodes with their level and alarm."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pandas as pd

from world_modality_core.io.files import reading
from world_modality_core.monitor.judgement import COMBINED, MOMENTS
from world_modality_core.monitor.strips import Picture, Strip, level_chart, write_page

# Frames of a filmstrip, evenly over the episode, beside that of the alarm.
N_PICTURES = 6
# Alarms of failures, alarms of successes, failures without: in turn, so that each kind is seen.
_KINDS = ("failure, alarm", "success, false alarm", "failure, no alarm", "success, no alarm")


def write_judged_page(path: Path, found: dict[str, Any], rows: pd.DataFrame, n_films: int) -> None:
    """Write the page.

    Args:
        path: Where to.
        found: What `judge` found, by model.
        rows: The judged rows; those whose episode was filmed can be shown.
        n_films: Episodes to show at most.
    """
    intro = (
        "How well failures were told from successes while episodes ran: area under the ROC curve at parts of the "
        "task's usual length. Below, filmed episodes: the frame at which an alarm began is marked; the grey line is "
        "where alarms begin."
    )
    write_page(path, "A monitor, judged", intro, film_strips(rows, n_films), area_charts(found))


def area_charts(found: dict[str, Any]) -> list[Any]:
    """Who told failures when, a chart for each model of what `judge` found."""
    return [chart for model, of in found.items() if (chart := _areas(model, of["failures"])) is not None]


def film_strips(rows: pd.DataFrame, n_films: int) -> list[Strip]:
    """Filmed episodes, `n_films` at most, with their level below."""
    shown = [row for row in _in_turn(rows.to_dict("records")) if _film_of(row).is_file()]
    return [_strip(row) for row in shown[:n_films]]


def _areas(model: str, separations: list) -> Any:
    from world_modality_core.studies.report.charts import N_COLORS, Line, line_chart

    by: dict[str, dict[str, float]] = {}
    for each in separations:
        by.setdefault(each.score, {})[each.moment] = each.auc
    names = sorted(by, key=lambda name: (name != COMBINED, -np.mean(list(by[name].values()))))[:N_COLORS]
    lines = [
        Line(
            "combination" if name == COMBINED else name,
            [100 * m for m in MOMENTS],
            [by[name][f"{m:.0%}"] for m in MOMENTS],
        )
        for name in names
    ]
    return line_chart(f"{model}: failures", lines, "% of the usual length", "AUC", reference=0.5) if lines else None


def _in_turn(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds: dict[str, list[dict[str, Any]]] = {kind: [] for kind in _KINDS}
    for row in rows:
        kinds[_kind(row)].append(row)
    longest = max(map(len, kinds.values()))
    return [of[i] for i in range(longest) for of in kinds.values() if i < len(of)]


def _kind(row: dict[str, Any]) -> str:
    is_alarm = not pd.isna(row["alarm_step"])
    return _KINDS[(0 if is_alarm else 2) + bool(row["success"])]


def _film_of(row: dict[str, Any]) -> Path:
    return Path(row["folder"], "videos", row["arm"], row["task"].replace("/", "_"), f"{row['seed']}.mp4")


def _strip(row: dict[str, Any]) -> Strip:
    film = _frames(_film_of(row))
    alarm = None if pd.isna(row["alarm_step"]) else int(row["alarm_step"])
    last = min(int(row["steps"]), len(film) - 1)
    steps = sorted(
        {*np.linspace(0, last, N_PICTURES).round().astype(int).tolist(), *([alarm] if alarm is not None else [])}
    )
    pictures = [Picture(film[min(step, last)], f"step {step}", step == alarm) for step in steps]
    scene = f"{row['task']}, scene {row['seed']}"
    when = f"alarm at step {alarm}" if alarm is not None else "no alarm"
    places = {"disturbance": "disturbed_at", "setback": "setback_at"}
    known = [f"{row[what]} at step {row[at]}" for what, at in places.items() if not pd.isna(row[at])]
    told = [f"{row['steps']} steps", when, *known]
    line = None if pd.isna(row["line"]) else float(row["line"])
    return Strip(
        f"{row['model']}, {scene}: {_kind(row)}",
        f"{'; '.join(told)}.",
        pictures,
        level_chart(scene, "steps", np.arange(len(row["level"])) * row["every"], np.array(row["level"]), line),
    )


def _frames(path: Path) -> list[np.ndarray]:
    with reading(path, "video", "run its evaluation again"), av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
