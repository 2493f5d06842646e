"""`--export`: the small records of a study, which are committed. No path of the machine is in them.

study.yaml             the study as it was written
jobs.json              {"schema", "study", "overrides", "jobs": job.json of each job that is done; of evaluations with
                       their eval.json as "eval"}
episodes.parquet       all rows of all evaluations
training.parquet       what trainings logged, thinned out: model, train_seed, step, metric, value
prophets.parquet       the same of the Prophets' curves; train_seed is 0 for a Prophet that serves all seeds
interventions.json     a list of the records of wm-intervene
README.md              commands; written once, then left to its readers
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_json, read_json_lines, write_text, writing
from world_modality_core.studies.evidence.episode_records import (
    EPISODES_FILE,
    read_episodes,
    read_eval_info,
    write_episodes,
)
from world_modality_core.studies.matrix.expand import Job
from world_modality_core.studies.matrix.job_record import read_record
from world_modality_core.studies.matrix.study import KINDS, Study

SCHEMA_VERSION = 1
MAX_LINES = 200
"""Lines that are kept of each curve."""

CURVE_COLUMNS = ["model", "train_seed", "step", "metric", "value"]
_ABSOLUTE = re.compile(r"(?<![\w.$}/~<>:-])/(?:[\w.+@~-]+/)*([\w.+@~-]+)")


def export(study: Study, jobs: list[Job], source: Path, folder: Path, overrides: Mapping[str, str]) -> str:
    """Write the records of the jobs that are done.

    Args:
        study: The study.
        jobs: Its jobs.
        source: The YAML file that it was read from.
        folder: Where the records go.
        overrides: Values of `vars` that were given in place of the file's.

    Returns:
        What was written, in a few lines.

    Raises:
        ConfigError: if nothing is done yet.
        EpisodesError: if the episodes can't be read together.
    """
    done = [job for job in jobs if read_record(job.folder).get("state") == "done"]
    if not done:
        raise ConfigError(f"nothing to export: no job of {study.study} is done in {study.root}")
    clean = path_cleaner(study, overrides)
    folder.mkdir(parents=True, exist_ok=True)
    of_kind = {kind: [job for job in done if job.kind == kind] for kind in KINDS}
    records = [_job_record(job) for job in done]
    interventions = [read_json(job.output / "interventions.json", dict) for job in of_kind["intervene"]]
    header = {"schema": SCHEMA_VERSION, "study": study.study, "overrides": dict(overrides)}
    write_text(folder / "study.yaml", clean(source.read_text()))
    write_text(folder / "jobs.json", clean(json.dumps(header | {"jobs": records}, indent=1)) + "\n")
    written = [f"{len(records)} jobs"]
    if of_kind["eval"]:
        episodes = read_episodes([job.output for job in of_kind["eval"]])
        write_episodes(episodes, folder / EPISODES_FILE)
        written.append(f"{len(episodes)} episodes")
    _put_curves([(job, job.metrics) for job in of_kind["train"]], folder / "training.parquet")
    _put_curves([(job, job.output / "curve.jsonl") for job in of_kind["prophet"]], folder / "prophets.parquet")
    if interventions:
        write_text(folder / "interventions.json", clean(json.dumps(interventions, indent=1)) + "\n")
        written.append(f"{len(interventions)} interventions")
    missing = [job for job in jobs if job not in done]
    if not (folder / "README.md").exists():
        write_text(folder / "README.md", clean(_readme(study, source, folder, records, missing, overrides)))
    return "\n".join([f"{folder}: {', '.join(written)}", *_left_out(missing)])


def _left_out(missing: list[Job]) -> list[str]:
    """Lines that name jobs: one for each kind and model, with its training seeds."""
    seeds: dict[str, list[str]] = {}
    for job in missing:
        seeds.setdefault(f"{job.kind}-{job.model}", []).append("" if job.seed is None else f"s{job.seed}")
    lines = [f"  {name} {', '.join(of)}".rstrip() for name, of in seeds.items()]
    return [f"Not done, and left out: {len(missing)} jobs", *lines] if missing else []


def path_cleaner(study: Study, overrides: Mapping[str, str]) -> Callable[[str], str]:
    """A function that takes the machine's paths out of a text.

    The study's folder becomes $STUDY, a variable's folder ${name}, what is below the current folder relative, the home
    folder $HOME; of any other absolute path the last part is left.
    """
    here, home, root = str(Path.cwd()), str(Path.home()), study.root.rstrip("/")
    known = {root: "$STUDY", str(Path(root).resolve()): "$STUDY"}
    known |= {value.rstrip("/"): f"${{{name}}}" for name, value in overrides.items() if os.path.isabs(value)}
    folders = sorted(known, key=len, reverse=True)

    def clean(text: str) -> str:
        for folder in folders:
            text = re.sub(rf"(?<![\w./-]){re.escape(folder)}(?![\w.-])", lambda _, f=folder: known[f], text)
        text = text.replace(f"{here}/", "").replace(here, ".").replace(home, "$HOME")
        return _ABSOLUTE.sub(r"<path>/\1", text)

    return clean


def _job_record(job: Job) -> dict[str, Any]:
    record = read_record(job.folder)
    if job.kind == "eval":
        record["eval"] = read_eval_info(job.output / "eval.json")
    return record


def _put_curves(files: list[tuple[Job, Path]], path: Path) -> None:
    """Write curves in long form; nothing where there are none."""
    rows = [
        (job.model, job.seed or 0, line["step"], metric, float(value))
        for job, file in files
        if file.exists()
        for line in thinned(read_json_lines(file, ["step"]))
        for metric, value in line.items()
        if metric != "step" and isinstance(value, int | float) and not abs(value) > 1e300
    ]
    if rows:
        with writing(path) as aside:
            pd.DataFrame(rows, columns=CURVE_COLUMNS).to_parquet(aside, index=False, compression="zstd")


def thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `MAX_LINES` of the lines, evenly spread, first and last included."""
    if len(lines) <= MAX_LINES:
        return lines
    return [lines[i] for i in np.linspace(0, len(lines) - 1, MAX_LINES).round().astype(int)]


def _readme(
    study: Study,
    source: Path,
    folder: Path,
    records: list[dict[str, Any]],
    missing: list[Job],
    overrides: Mapping[str, str],
) -> str:
    """What to type to run, compare and show the study."""
    comments = []
    for line in source.read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line.removeprefix("#").strip())
    commits = sorted({str(record["commit"]) for record in records})
    machines = sorted({record["eval"]["machine"] for record in records if "eval" in record})
    models = ", ".join(study.models)
    all_jobs = len(missing) + len(records)
    unfinished = f"\n- Not done yet: {len(missing)} of {all_jobs} jobs (once they are: delete this file, export again)"
    # Where the data are, and this folder, is each machine's own.
    given = [
        word for name, value in overrides.items() if not os.path.isabs(value) for word in ("--set", f"{name}={value}")
    ]
    here = folder.name if folder.is_absolute() else str(folder)
    compare = [f"--baseline={study.baseline or next(iter(study.models))}"]
    compare += [f"--matched={study.matched}"] * bool(study.matched)
    # Models that have come differently far share some of their scenes only.
    compare += ["--common_scenes"] * any(job.kind == "eval" for job in missing)
    again = ["wm-matrix", f"{here}/study.yaml", *given]
    commands = [
        [*again, "--plan"],
        again,
        [*again, f"--export={here}"],
        ["wm-compare", here, *compare],
        ["wm-report", here, f"--output={study.study}.html"],
    ]
    return f"""# {study.study}

{" ".join(comments)}

- Models: {models}
- Training seeds: {", ".join(map(str, study.seeds))}
- Commit: {", ".join(commits)}
- Machine: {"; ".join(machines) or "not recorded"}
- Time of all jobs: {sum(record["seconds"] for record in records) / 3600:.1f} h{unfinished if missing else ""}

```bash
{"\n".join(map(shlex.join, commands))}
```
"""
