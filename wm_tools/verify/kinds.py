"""Which artefacts `wm-verify` knows: how each is recognised by the names of its files, and what checks it.

To add one, add a line to `KINDS` and write its check: `check(path, source, faults) -> str`, which adds what is wrong to
the `Faults` and says in a few words what it looked at. A check is imported when one of its kind is met.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from wm_tools.verify.faults import Faults, check_files
from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.io.files import read_json


@dataclass(frozen=True)
class Kind:
    """A kind of artefact.

    Attributes:
        name: What it is called.
        is_at: Whether a path is one, by the names of files.
        check: Module and function that check one.
        source: What it was made from and is held against, if that is given; "" if there is no such thing.
    """

    name: str
    is_at: Callable[[Path], bool]
    check: str
    source: str = ""


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: any((path / name).is_file() for name in names)


def _is_evaluation(path: Path) -> bool:
    return _has("eval.json")(path) or (path / "episodes").is_dir()


def _is_intervention(path: Path) -> bool:
    return _has("interventions.json")(path) and not _has("jobs.json")(path)


def _is_study(path: Path) -> bool:
    return _has("jobs.json", "episodes.parquet")(path) or any(path.glob("*/job.json"))


def _is_prophet(path: Path) -> bool:
    if not _has("config.json")(path):
        return False
    try:
        return read_json(path / "config.json", dict).get("type") == "prophet"
    except DamagedFileError:
        return False


KINDS = (
    Kind("labels", lambda path: path.suffix == ".jsonl" and path.is_file(), "check_records:check_labels", "dataset"),
    Kind("evaluation", _is_evaluation, "check_records:check_evaluation", "checkpoint"),
    Kind("intervention", _is_intervention, "check_records:check_intervention"),
    Kind("study", _is_study, "check_records:check_study"),
    Kind("monitor", _has("monitor.json"), "check_weights:check_monitor"),
    Kind("Prophet", _is_prophet, "check_weights:check_prophet"),
    Kind("checkpoint", _has("config.json"), "check_weights:check_checkpoint"),
    Kind("companion", _has("meta/world_modality.json"), "check_datasets:check_companion", "dataset"),
    Kind("dataset", _has("meta/info.json"), "check_datasets:check_dataset", "dataset"),
)


def kind_of(path: Path) -> Kind | None:
    """What a path is; None if nothing that is known."""
    return next((kind for kind in KINDS if kind.is_at(path)), None)


def verify(path: str | Path, source: str | Path | None = None) -> tuple[str, list[str]]:
    """Check an artefact.

    Args:
        path: Its folder; of labels the file.
        source: What it was made from.

    Returns:
        What was looked at, in a few words; what is wrong, a line each.

    Raises:
        ConfigError: if there is nothing of a known kind, or the kind has no source to be held against.
    """
    path, source = Path(path).resolve(), source and Path(source).resolve()
    if not path.exists():
        raise ConfigError(f"{path} does not exist")
    kind = kind_of(path)
    if kind is None:
        raise ConfigError(
            f"{path} is nothing that is known here ({', '.join(kind.name for kind in KINDS)}); name the folder that "
            "the command wrote, of a checkpoint its `pretrained_model`, or the .jsonl of labels"
        )
    if source is not None and not kind.source:
        raise ConfigError(f"--source={str(source)!r}: a {kind.name} is not held against anything; leave it out")
    if source is not None and not source.exists():
        raise ConfigError(f"--source={str(source)!r} does not exist: name the {kind.source} that it was made from")
    faults = Faults()
    if path.is_dir():
        check_files(path, faults)
    elif path.is_symlink() or not path.is_file():
        faults.add(f"{path} is no file")
    module, name = kind.check.split(":")
    with faults.noted():
        facts = getattr(importlib.import_module(f"wm_tools.verify.{module}"), name)(path, source, faults)
        return f"{kind.name}, {facts}", faults.lines
    return kind.name, faults.lines
