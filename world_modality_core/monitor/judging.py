"""`wm-monitor eval`: read the rows of evaluations, judge them, and say and write what was found."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import write_text
from world_modality_core.monitor.judged_page import write_judged_page
from world_modality_core.monitor.judgement import Separation, judge, judgement_text
from world_modality_core.monitor.monitor_rows import read_monitor_rows, scores_of_rows
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.monitor.strips import check_report_extra


def eval_rows(given: argparse.Namespace) -> dict[str, Any]:
    """Judge the rows in folders, model by model, print what was found, and write it as JSON if asked to.

    Raises:
        ConfigError: naming option and remedy.
    """
    if given.page:
        check_report_extra()
    rows = read_monitor_rows(given.folders)
    rows = rows[rows["arm"] == "intact"]
    if given.monitor:
        rows = judged_by(Monitor.load(given.monitor), rows, ", ".join(given.folders))
    found = {}
    for model, of in rows.groupby("model"):
        rates = of["false_alarm_rate"].unique()
        if len(rates) > 1:
            raise ConfigError(
                f"{', '.join(given.folders)}: {model} was watched with several promises "
                f"({', '.join(map(str, rates))}); give the folders of one monitor, or --monitor to judge all of them by"
            )
        found[str(model)] = judge(of, float(rates[0]))
    print("\n\n".join(judgement_text(model, of) for model, of in found.items()))
    if given.output:
        write_text(Path(given.output).resolve(), json.dumps(found, indent=1, default=plain_values) + "\n")
    if given.page:
        write_judged_page(Path(given.page), found, rows, given.n_films)
        print(f"Page: {given.page}")
    return found


def judged_by(monitor: Monitor, rows: pd.DataFrame, where: str) -> pd.DataFrame:
    """Rows with the levels and alarms of another calibration of the same scores."""
    names, tasks = monitor.score_names, monitor.description.tasks
    levels, alarms = [], []
    for episode in scores_of_rows(rows, names, tasks, where):
        level = monitor.calibration.level(episode.task, episode.steps, episode.values)
        above = np.flatnonzero(level > monitor.calibration.quantile[episode.task])
        levels.append(level)
        alarms.append(int(episode.steps[above[0]]) if len(above) else pd.NA)
    lines = [float(monitor.calibration.quantile[tasks.index(told)]) for told in rows["instruction"]]
    new = {"level": levels, "line": lines, "alarm_step": pd.array(alarms, dtype="Int64")}
    return rows.reset_index(drop=True).assign(**new, false_alarm_rate=monitor.description.false_alarm_rate)


def plain_values(value: Any) -> Any:
    """What `judge` found, for JSON."""
    return asdict(value) if isinstance(value, Separation) else value.item()
