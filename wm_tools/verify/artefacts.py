"""The kinds of artefacts that `wm-verify` knows: how each is told, and what is held against what.

A kind's checks are functions that raise where something is wrong; each is one line of the table at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import check_own, checked, inside, read_json, read_tensors, reading

# Files that no artefact is made of, and that run when they are opened or imported.
_CODE = {".py", ".pyc", ".so", ".pkl", ".pickle", ".pt", ".pth", ".ckpt", ".bin", ".sh"}

Check = Callable[[Path, Path | None], Iterable[str] | None]
"""Called with the artefact and its source dataset, if that is known. Raises a UserError or an OSError for a fault that
ends the check, or gives the texts of several."""


@dataclass(frozen=True)
class Kind:
    """A kind of artefacts.

    Attributes:
        name: For people.
        is_one: Whether a path is of this kind, by what is there and by its JSON.
        checks: Each is made, whatever the others find.
    """

    name: str
    is_one: Callable[[Path], bool]
    checks: tuple[Check, ...]

    def faults(self, path: Path, source: Path | None = None) -> list[str]:
        """What is wrong with an artefact, each in one line.

        Args:
            path: The artefact.
            source: The dataset that it was made from, if it is at hand.
        """
        found: list[str] = []
        for check in (_holds_no_links, *self.checks):
            try:
                found += check(path, source) or ()
            except (UserError, OSError) as error:
                found.append(" ".join(str(error).split()))
        return list(dict.fromkeys(found))


def kind_of(path: Path) -> Kind:
    """The kind of an artefact.

    Raises:
        ConfigError: if it is of none.
    """
    for kind in KINDS:
        if kind.is_one(path):
            return kind
    if not path.exists():
        raise ConfigError(f"path={str(path)!r} does not exist")
    raise ConfigError(
        f"path={str(path)!r} is none of {', '.join(kind.name for kind in KINDS)}; of a checkpoint name the folder "
        "`pretrained_model`"
    )


def _holds_no_links(path: Path, source: Path | None) -> Iterator[str]:
    """Links that lead out of the artefact, and files that hold code."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_symlink():
            try:
                check_own(file, path if path.is_dir() else path.parent)
            except ConfigError as error:
                yield str(error)
        if file.suffix in _CODE and not _is_of_trainer(file):
            yield f"{file} may hold code: no file of this kind is part of it; remove it"


def _is_of_trainer(file: Path) -> bool:
    return "training_state" in file.parts or "state" in file.parts


# Datasets.


def _named_files_are_there(path: Path, source: Path | None) -> Iterator[str]:
    from lerobot.datasets import LeRobotDatasetMetadata

    from world_modality_core.io.dataset_files import named_files

    meta = LeRobotDatasetMetadata(path.name, root=path)
    missing = sorted(name for name in named_files(meta) if not (path / name).is_file())
    if missing:
        yield f"{len(missing)} files that its metadata names are not there, the first is {missing[0]}"


def _fits_its_metadata(path: Path, source: Path | None) -> None:
    from world_modality_core.precompute.source import SourceDataset

    SourceDataset(path.name, str(path)).check_ends()


def _latents_are_those_written(path: Path, source: Path | None) -> None:
    from world_modality_core.latents.companion import open_companion

    open_companion(root=path).check_content()


def _is_of_its_source(path: Path, source: Path | None) -> None:
    """A companion, or a copy that keeps some of the source's features, is of the source as it is now."""
    if source is None:
        return
    from lerobot.datasets import LeRobotDatasetMetadata

    from world_modality_core.latents.companion import INFO_FILE, open_companion
    from world_modality_core.latents.fingerprint import SourceFingerprint
    from world_modality_core.precompute.copied_parts import stale_parts

    there, keep = LeRobotDatasetMetadata(source.name, root=source), set()
    if (path / INFO_FILE).is_file() and SourceFingerprint.read(path) is None:
        open_companion(root=path).check_source(there)
    else:
        here = LeRobotDatasetMetadata(path.name, root=path)
        if found := SourceFingerprint.of(there).differences(SourceFingerprint.of(here)):
            raise ConfigError(f"it is no copy of {source}: {'; '.join(found)}")
        keep = here.features
    if stale := stale_parts(there, path, keep):
        raise ConfigError(f"its {', '.join(stale)} are not what {source} has: write it again")


# Labels.


def _labels_can_be_read(path: Path, source: Path | None) -> Iterator[str]:
    from coc_tools.label_lines import iter_lines

    lines = list(iter_lines(path))
    if not lines:
        yield "there is no label in it"
    if source is not None:
        from coc_tools.episodes import EpisodeReader
        from coc_tools.import_export import check_belongs

        reader = EpisodeReader(source.name, str(source))
        for number, episode, content in lines:
            check_belongs(episode, content, reader, f"line {number}")


# Evaluations, interventions, studies.


def _episodes_are_all_there(path: Path, source: Path | None) -> Iterator[str]:
    from world_modality_core.studies.evidence.episode_records import (
        EPISODES_FILE,
        INFO_FILE,
        PARTS_FOLDER,
        read_episodes,
        read_eval_info,
    )

    info, rows = read_eval_info(path / INFO_FILE), read_episodes(path)
    for name in ("model", "train_seed"):
        if set(rows[name]) != {info[name]}:
            yield f"{name} is {sorted(map(str, set(rows[name])))} in the episodes, and {info[name]!r} in {INFO_FILE}"
    if set(rows["checkpoint"]) != {info.get("checkpoint_hash")}:
        yield f"episodes of another checkpoint than {INFO_FILE} names"
    n_scenes, first = (checked(int, info.get(name), f"{INFO_FILE}: {name}") for name in ("n_episodes", "seed"))
    for (arm, task), group in rows.groupby(["arm", "task"]):
        missing = sorted({*range(first, first + n_scenes)} - {*group["seed"]})
        if missing:
            yield f"{arm}, {task}: {len(missing)} of {n_scenes} scenes are missing, the first is seed {missing[0]}"
    if absent := sorted({*info["arms"]} - {*rows["arm"]}):
        yield f"no episode of the arms {', '.join(absent)}"
    if not (path / EPISODES_FILE).is_file():
        yield f"{EPISODES_FILE} is missing: the evaluation did not end"
    elif any((path / PARTS_FOLDER).glob("*.parquet")) and len(read_episodes(path / EPISODES_FILE)) != len(rows):
        yield f"{EPISODES_FILE} has not the episodes of {PARTS_FOLDER}/"
    for name in rows["video"].dropna():
        if not inside(path, name, "video").is_file():
            yield f"{name} is missing"


def _intervention_is_whole(path: Path, source: Path | None) -> Iterator[str]:
    import pandas as pd

    record = read_json(path / "interventions.json", dict)
    sources = checked(dict[str, Any], record.get("sources"), path / "interventions.json")
    file = path / "episodes.parquet"
    with reading(file, "parquet"):
        rows = pd.read_parquet(file, columns=["source", "checkpoint"])
    if {*rows["source"]} != {*sources}:
        yield f"episodes.parquet is of {sorted({*rows['source']})}, interventions.json of {sorted(sources)}"
    if {*rows["checkpoint"]} != {record.get("checkpoint_hash")}:
        yield "episodes.parquet is of another checkpoint than interventions.json"


def _jobs_are_whole(path: Path, source: Path | None) -> Iterator[str]:
    """Each job of a study that is done has what it is said to have."""
    from world_modality_core.studies.matrix.job_record import JOB_FILE, read_record

    for folder in sorted(file.parent for file in path.glob(f"*/{JOB_FILE}")):
        record = read_record(folder)
        if record["state"] != "done":
            yield f"{folder.name}: {record['state']}, not done"
            continue
        outputs = [each for each in sorted(folder.iterdir()) if each.is_dir()]
        for output in outputs:
            last = output / "checkpoints/last/pretrained_model"
            output = last if last.is_dir() else output
            for kind in KINDS:
                if kind.is_one(output):
                    yield from (f"{folder.name}: {fault}" for fault in kind.faults(output))
        if not outputs:
            yield f"{folder.name}: done, and there is nothing"


def _records_can_be_read(path: Path, source: Path | None) -> Iterator[str]:
    """Of a study's exported records: as many episodes as their evaluations have."""
    from world_modality_core.studies.evidence.episode_records import EPISODES_FILE, read_episodes

    jobs = checked(list[dict[str, Any]], read_json(path / "jobs.json", dict).get("jobs"), path / "jobs.json")
    models = {job.get("model") for job in jobs if job.get("kind") == "eval"}
    if models and (absent := sorted(map(str, models - {*read_episodes(path / EPISODES_FILE)["model"]}))):
        yield f"{EPISODES_FILE} has no episode of {', '.join(absent)}"


# Weights.


def _checkpoint_is_trusted(path: Path, source: Path | None) -> None:
    """Nothing that it names would run or lies elsewhere, and its weights are numbers."""
    from lerobot.utils.import_utils import register_third_party_plugins

    from lerobot_policy_world_modality.hub.trusted_files import checkpoint_files, open_checkpoint

    register_third_party_plugins()
    checkpoint_files(open_checkpoint(path))


def _weights_are_finite(path: Path, source: Path | None) -> Iterator[str]:
    import torch

    for file in sorted(path.glob("*.safetensors")):
        for name, value in read_tensors(file).items():
            # Statistics may hold an infinity: the least of no frame, say.
            if value.is_floating_point() and torch.isnan(value).any():
                yield f"{file}: {name} holds NaN"


def _prophet_can_be_read(path: Path, source: Path | None) -> None:
    from world_modality_core.prophet.saved_prophet import ProphetCheckpoint

    ProphetCheckpoint.read(path, "path").weights()


def _monitor_can_be_read(path: Path, source: Path | None) -> None:
    from world_modality_core.monitor.saved_monitor import Monitor

    Monitor.load(path, "path")


# The table. A folder is of the first kind whose mark it has.


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: all((path / name).is_file() for name in names)


def _is_prophet(path: Path) -> bool:
    return _has("config.json")(path) and read_json(path / "config.json", dict).get("type") == "prophet"


def _is_study(path: Path) -> bool:
    return any(path.glob("*/job.json"))


_OF_DATASETS = (_named_files_are_there, _fits_its_metadata)

KINDS = (
    Kind(
        "a copy of a dataset",
        _has("meta/info.json", "meta/world_modality_source.json"),
        (*_OF_DATASETS, _is_of_its_source),
    ),
    Kind(
        "a companion",
        _has("meta/info.json", "meta/world_modality.json"),
        (*_OF_DATASETS, _latents_are_those_written, _is_of_its_source),
    ),
    Kind("a dataset", _has("meta/info.json"), _OF_DATASETS),
    Kind("labels", lambda path: path.is_file() and path.suffix == ".jsonl", (_labels_can_be_read,)),
    Kind("an evaluation", _has("eval.json"), (_episodes_are_all_there,)),
    Kind("an intervention", _has("interventions.json", "episodes.parquet"), (_intervention_is_whole,)),
    Kind("a study", _is_study, (_jobs_are_whole,)),
    Kind("records of a study", _has("jobs.json"), (_records_can_be_read,)),
    Kind("a Prophet", _is_prophet, (_prophet_can_be_read, _weights_are_finite)),
    Kind("a checkpoint", _has("config.json"), (_checkpoint_is_trusted, _weights_are_finite)),
    Kind("a monitor", _has("monitor.json"), (_monitor_can_be_read,)),
)
