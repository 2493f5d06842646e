"""Artefacts that say what happened: labels, evaluations, interventions, studies."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from wm_tools.verify.faults import Faults
from wm_tools.verify.kinds import kind_of, verify
from world_modality_core.io.files import checked, inside, read_json, read_parquet, reading
from world_modality_core.studies.evidence.checkpoint import checkpoint_folder, checkpoint_hash
from world_modality_core.studies.evidence.episode_records import (
    EPISODES_FILE,
    INFO_FILE,
    PARTS_FOLDER,
    read_episodes,
    read_eval_info,
)
from world_modality_core.studies.matrix.job_record import JOB_FILE, read_record
from world_modality_core.studies.report.records import INTERVENTIONS_FILE, JOBS_FILE, read_records

_BANK = "memory_bank"


def check_labels(path: Path, source: Path | None, faults: Faults) -> str:
    """A file of labels: every line, none torn; with the dataset, that episodes, tasks and lengths are its own."""
    from coc_tools.label_lines import iter_lines
    from coc_tools.store import read_failures

    if not path.read_bytes().endswith(b"\n"):
        faults.add(f"{path}: its last line is cut off; coc-label cuts it away and goes on, or copy the file again")
    with faults.noted():
        read_failures(path)
    reader = None
    if source is not None:
        from coc_tools.episodes import EpisodeReader
        from coc_tools.import_export import check_belongs

        reader = EpisodeReader(source.name, str(source))
    n_labels = 0
    for number, episode, content in iter_lines(path):
        n_labels += 1
        if reader is not None:
            with faults.noted():
                check_belongs(episode, content, reader, f"{path}, line {number}")
    return f"{n_labels} episodes"


def check_evaluation(folder: Path, source: Path | None, faults: Faults) -> str:
    """An evaluation: each scene of each arm once and of this checkpoint, what goes with it, and that it ended."""
    info = read_eval_info(folder / INFO_FILE)
    rows = read_episodes(sorted((folder / PARTS_FOLDER).glob("*.parquet")) or folder)
    _check_counts(folder, info, rows, faults)
    with faults.noted():
        if not (folder / EPISODES_FILE).is_file():
            faults.add(f"{folder / EPISODES_FILE} is missing: it did not end; the same wm-eval goes on with it")
        elif not read_episodes(folder / EPISODES_FILE).equals(rows):
            faults.add(f"{folder / EPISODES_FILE} does not hold the rows of episodes/; the same wm-eval writes it anew")
    same = {"checkpoint_hash": "checkpoint"} | {
        name: name for name in ("model", "train_seed", "policy_type", "n_action_steps", "renderer", "env_hash")
    }
    for name, column in same.items():
        others = set(rows[column]) - {info.get(name)}
        if name in info and others:
            faults.add(
                f"{folder}: rows of {column} {sorted(map(str, others))[0]:.80}, and {INFO_FILE} says {info[name]}"
            )
    for (task, seed), hashes in rows.groupby(["task", "seed"])["init_hash"]:
        if hashes.nunique() > 1:
            faults.add(f"{folder}: the scene {task} {seed} did not look the same to all arms")
    bad = rows[(rows["steps"] < 1) | (rows["steps"] > rows["episode_length"]) | ~rows["sum_reward"].map(math.isfinite)]
    if len(bad):
        faults.add(f"{folder}: {len(bad)} rows have impossible steps or rewards, the first {_scene(bad.iloc[0])}")
    for name in rows["video"].dropna():
        with faults.noted():
            if not inside(folder, name, "video").is_file():
                faults.add(f"{folder / name} is missing: a row names this film")
    if info.get("bank_size"):
        _check_bank(folder, info, rows, faults)
    if info.get("monitor"):
        _check_monitor_rows(folder, rows, faults)
    if source is not None and checkpoint_hash(checkpoint_folder(source)) != info.get("checkpoint_hash"):
        faults.add(f"{folder}: it is not an evaluation of {source}, whose weights and config have another hash")
    return f"{len(rows)} episodes of {len(info['arms'])} arms"


def _scene(row: Any) -> str:
    return f"{row['arm']} {row['task']} {row['seed']}"


def _check_counts(folder: Path, info: dict[str, Any], rows: pd.DataFrame, faults: Faults) -> None:
    asked, known = str((info.get("env") or {}).get("task") or ""), {*rows["task"], *rows["group"]}
    if missing := [
        name for name in filter(None, asked.split(",")) if name not in known and rows["tier"].ne(name).all()
    ]:
        faults.add(f"{folder}: no episode of the task {missing[0]!r}; the same wm-eval goes on with it")
    seeds = range(info.get("seed", 0), info.get("seed", 0) + info.get("n_episodes", 0))
    wanted = {(arm, task, seed) for arm in info["arms"] for task in set(rows["task"]) for seed in seeds}
    found = set(zip(rows["arm"], rows["task"], rows["seed"].tolist(), strict=True))
    if lacking := sorted(wanted - found):
        first = " ".join(map(str, lacking[0]))
        faults.add(
            f"{folder}: {len(lacking)} of {len(wanted)} episodes are missing, the first {first}; the same wm-eval goes "
            "on with it"
        )
    if others := sorted(found - wanted):
        faults.add(f"{folder}: {len(others)} episodes were not asked for, the first {' '.join(map(str, others[0]))}")


def _check_bank(folder: Path, info: dict[str, Any], rows: pd.DataFrame, faults: Faults) -> None:
    """The memories of the first scenes of each task: one for each plan."""
    from safetensors import safe_open

    kept = range(info["seed"], info["seed"] + info["bank_size"])
    for _, row in rows[(rows["arm"] == "intact") & rows["seed"].isin(kept)].iterrows():
        path = folder / _BANK / row["task"].replace("/", "_") / f"{row['seed']}.safetensors"
        with faults.noted(), reading(path, "memories of an episode", "run the evaluation again in a new folder"):
            with safe_open(path, "numpy") as file:
                n_plans = file.get_slice("memories").get_shape()[0]
            if n_plans != row["n_plans"]:
                faults.add(f"{path}: memories of {n_plans} plans, and the episode made {row['n_plans']}")


def _check_monitor_rows(folder: Path, rows: pd.DataFrame, faults: Faults) -> None:
    from world_modality_core.monitor.monitor_rows import ROW_KEY, read_monitor_rows

    with faults.noted():
        watched = read_monitor_rows([folder])
        lacking = set(rows[ROW_KEY].itertuples(index=False)) ^ set(watched[ROW_KEY].itertuples(index=False))
        if lacking:
            faults.add(f"{folder}: {len(lacking)} episodes are not both among the monitor's rows and among wm-eval's")


def check_intervention(folder: Path, source: None, faults: Faults) -> str:
    """What wm-intervene wrote: its table is of the sources and of the checkpoint that its record names."""
    record = read_json(folder / INTERVENTIONS_FILE, dict)
    sources = checked(dict[str, Any], record.get("sources"), folder / INTERVENTIONS_FILE)
    table = read_parquet(folder / EPISODES_FILE, ["source", "checkpoint"]).to_pandas()
    if set(table["source"]) != set(sources):
        faults.add(f"{folder}: rows of {sorted(set(table['source']))}, and a record of {sorted(sources)}")
    if set(table["checkpoint"]) != {record.get("checkpoint_hash")}:
        faults.add(f"{folder}: rows of another checkpoint than its record")
    return f"{len(sources)} sources"


def check_study(folder: Path, source: None, faults: Faults) -> str:
    """A study, or its exported records: every record can be read, every job is done, and its output is whole."""
    records = {path.parent: {} for path in sorted(folder.glob(f"*/{JOB_FILE}"))}
    for job in records:
        with faults.noted():
            records[job] = read_record(job)
    for job, record in records.items():
        if record and record["state"] != "done":
            faults.add(f"{job} is {record['state']}: the same wm-matrix goes on with it")
        for name, started_at in record.get("after", {}).items():
            if started_at != records.get(folder / name, {}).get("started_at"):
                faults.add(f"{job} was run after another run of {name} than the one that is here; run it again")
        outputs = _artefacts(job)
        if record.get("state") == "done" and not outputs:
            faults.add(f"{job} is done, and what it made is not there")
        for output in outputs:
            built_on = [path for name in record.get("after", {}) for path in _artefacts(folder / name)]
            checkpoint = next((path for path in built_on if kind_of(path).name == "checkpoint"), None)
            for line in verify(output, checkpoint if kind_of(output).name == "evaluation" else None)[1]:
                faults.add(line)
    found = read_records([str(folder)])
    for record in read_json(folder / JOBS_FILE)["jobs"] if (folder / JOBS_FILE).is_file() else []:
        if info := record.get("eval"):  # an exported evaluation: its rows are those of its label and seed
            rows = found.episodes
            own = rows[(rows["model"] == info["model"]) & (rows["train_seed"] == info["train_seed"])]
            _check_counts(folder, info, own, faults)
    return f"{len(records) or len(found.runs)} jobs, {len(found.episodes)} episodes"


def _artefacts(folder: Path) -> list[Path]:
    """The outermost artefacts below a folder; of checkpoints the last."""
    last = folder / "checkpoints/last/pretrained_model"
    if last.is_dir():
        return [last.resolve()]
    children = [path for path in sorted(folder.glob("*")) if path.is_dir() and not path.is_symlink()]
    return [path for child in children for path in ([child] if kind_of(child) else _artefacts(child))]
