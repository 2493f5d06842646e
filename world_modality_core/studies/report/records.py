"""Find and read every record below the given folders: study folders, exported results, evaluations, all alike."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import yaml

from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.io.files import checked, parse_json, read_json, read_parquet, reading
from world_modality_core.monitor.monitor_rows import FOLDER as MONITOR_FOLDER
from world_modality_core.monitor.monitor_rows import read_monitor_rows
from world_modality_core.studies.evidence.episode_records import (
    EPISODE_SCHEMA,
    EPISODES_FILE,
    INFO_FILE,
    read_episodes,
    read_eval_infos,
)
from world_modality_core.studies.report.film import RECORD_FILE, Imagined, read_imagined
from world_modality_core.studies.report.runs import Run, run_of_eval, run_of_job
from world_modality_core.studies.report.schemas import EvalRecord, InterventionRecord, JobRecord, StepNumber

SCHEMA_VERSION = 1
JOB_FILE = "job.json"
JOBS_FILE = "jobs.json"
TRAINING_FILE = "training.parquet"
PROPHETS_FILE = "prophets.parquet"
STUDY_FILE = "study.yaml"
METRICS_FILE = "metrics.jsonl"
PROPHET_CURVE_FILE = "curve.jsonl"
INTERVENTIONS_FILE = "interventions.json"
_CURVES = pa.schema([
    ("model", pa.string()), ("train_seed", pa.int64()), ("step", pa.int64()), ("metric", pa.string()),
    ("value", pa.float64()),
])  # fmt: skip
CURVE_COLUMNS = _CURVES.names


@dataclass
class Records:
    """Everything that was found.

    Attributes:
        folders: Where it was looked for.
        episodes: What `read_episodes` returns; empty without any.
        video_folders: Folder of the evaluation of (model, train_seed, arm), which `video` is relative to.
        curves: Columns `CURVE_COLUMNS`.
        prophet_curves: Columns `CURVE_COLUMNS`, of Prophets' own training.
        interventions: The `interventions.json`, as they are.
        watched: What `read_monitor_rows` returns, of the arm intact; empty without any.
        imagined: Filmstrips.
        runs: Commands that were run.
        question: What the study asks: the comment that its YAML begins with.
        baseline, matched: Its controls, as its YAML names them; "" where it doesn't.
    """

    folders: list[str]
    episodes: pd.DataFrame
    video_folders: dict[tuple[str, int, str], Path] = field(default_factory=dict)
    curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CURVE_COLUMNS))
    prophet_curves: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=CURVE_COLUMNS))
    interventions: list[dict[str, Any]] = field(default_factory=list)
    watched: pd.DataFrame = field(default_factory=pd.DataFrame)
    imagined: list[Imagined] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    question: str = ""
    baseline: str = ""
    matched: str = ""


def read_records(folders: list[str]) -> Records:
    """Read all records.

    Args:
        folders: Searched through.

    Raises:
        ConfigError: if a folder does not exist, or holds no record.
        EpisodesError: if the episodes can't be read together.
    """
    paths = [Path(folder) for folder in folders]
    for path in paths:
        if not path.is_dir():
            raise ConfigError(f"{path} is no folder: expected one that wm-matrix, wm-eval or wm-intervene wrote")
    has_episodes = any(next(_find(paths, name), None) for name in (EPISODES_FILE, INFO_FILE))
    records = Records(folders, read_episodes(paths) if has_episodes else EPISODE_SCHEMA.empty_table().to_pandas())
    infos = read_eval_infos(paths)
    for info in infos:
        checked(EvalRecord, info, Path(info["folder"], INFO_FILE))
    for info in infos:
        for arm in info["arms"]:
            records.video_folders[info["model"], info["train_seed"], arm] = Path(info["folder"])
    jobs = {path.parent: _checked_job(read_json(path), path) for path in _find(paths, JOB_FILE)}
    info_of = {Path(info["folder"]).parent: info for info in infos}
    records.runs = [run_of_job({"eval": info_of.get(folder)} | job) for folder, job in jobs.items()]
    records.runs += [
        run_of_job(_checked_job(job, path))
        for path in _find(paths, JOBS_FILE)
        for job in checked(list, _of_schema(read_json(path), path).get("jobs"), path)
    ]
    records.runs += [run_of_eval(info) for folder, info in info_of.items() if folder not in jobs]
    records.curves = _curves(paths, METRICS_FILE, TRAINING_FILE, jobs)
    records.prophet_curves = _curves(paths, PROPHET_CURVE_FILE, PROPHETS_FILE, jobs)
    for path in _find(paths, INTERVENTIONS_FILE):
        found = read_json(path)  # an exported study has a list of them
        found = found if isinstance(found, list) else [found]
        records.interventions += [checked(InterventionRecord, _of_schema(record, path), path) for record in found]
    records.question = " ".join(_comment(path) for path in _find(paths, STUDY_FILE))
    for path in _find(paths, STUDY_FILE):
        # A model of the study that has no episodes yet is no control yet.
        named = [name if name in set(records.episodes["model"]) else "" for name in _controls(path)]
        records.baseline, records.matched = records.baseline or named[0], records.matched or named[1]
    if any(path.parent.name == MONITOR_FOLDER for path in _find(paths, "*.parquet")):
        rows = read_monitor_rows(paths)
        records.watched = rows[rows["arm"] == "intact"]
    records.imagined = [read_imagined(path) for path in _find(paths, RECORD_FILE)]
    found = (records.episodes, records.curves, records.prophet_curves, records.interventions, records.watched)
    found = (*found, records.imagined)
    if not any(map(len, found)):
        raise ConfigError(
            f"{', '.join(folders)}: there is nothing to report; expected records of wm-eval, wm-matrix, ..."
        )
    return records


def _curves(paths: list[Path], lines_file: str, table_file: str, jobs: Mapping[Path, dict[str, Any]]) -> pd.DataFrame:
    """What trainings logged: files of lines, labelled by their job if one wrote them, and exported tables."""
    frames = [_read_curves(path) for path in _find(paths, table_file)]
    for path in _find(paths, lines_file):
        job = next((jobs[folder] for folder in path.parents if folder in jobs), {})
        frames.append(_long(read_metrics(path), job.get("model") or path.parent.name, job.get("train_seed") or 0))
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=CURVE_COLUMNS)


def _checked_job(job: Any, path: Path) -> dict[str, Any]:
    checked(JobRecord, job, path)
    return job


def _read_curves(path: Path) -> pd.DataFrame:
    table = read_parquet(path, CURVE_COLUMNS)
    with reading(path, "curves"):
        return table.cast(_CURVES).to_pandas()


def _long(lines: list[dict[str, float]], model: str, train_seed: int) -> pd.DataFrame:
    rows = [
        (model, train_seed, line["step"], metric, value)
        for line in lines
        for metric, value in line.items()
        if metric != "step" and isinstance(value, int | float)
    ]
    return pd.DataFrame(rows, columns=CURVE_COLUMNS)


def _of_schema(record: Any, path: Path) -> dict[str, Any]:
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA_VERSION:
        raise ConfigError(
            f"{path} has schema {schema!r}, this version reads {SCHEMA_VERSION}: read it with the version of "
            "lerobot_policy_world_modality that wrote it, or leave it out"
        )
    return record


def _comment(path: Path) -> str:
    text = path.read_text(encoding="utf-8", errors="replace")
    lines = itertools.takewhile(lambda line: line.startswith("#"), text.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in lines)


def _controls(path: Path) -> tuple[str, str]:
    """`baseline` and `matched` of a study's file."""
    try:
        study = yaml.safe_load(path.read_text(encoding="utf-8", errors="replace"))
    # ValueError, ...: of dates and numbers that YAML reads but Python has not
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError, AttributeError) as error:
        raise DamagedFileError(f"{path} can't be read as YAML: {' '.join(str(error).split())[:100]}") from error
    study = study if isinstance(study, dict) else {}
    return str(study.get("baseline") or ""), str(study.get("matched") or "")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Lines of a metrics file; of a step that was trained twice (after an interruption) the last.

    Lines that a kill cut off, and that a run which went on continued in the middle, are passed over.
    """
    by_step = {}
    for line in path.read_bytes().splitlines():
        try:
            values = checked(dict[str, Any], parse_json(line), path)
            step = checked(StepNumber, values.get("step"), path)
        except ValueError:
            continue
        by_step[step] = {name: value for name, value in values.items() if name == "step" or _is_drawable(value)}
    return [by_step[step] for step in sorted(by_step)]


def _is_drawable(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and (value != value or abs(value) <= 1e30)  # NaN or not too large


def _find(paths: list[Path], name: str) -> Iterator[Path]:
    """Files of that name, each once, in order."""
    yield from dict.fromkeys(file.resolve() for path in paths for file in sorted(path.rglob(name)))
