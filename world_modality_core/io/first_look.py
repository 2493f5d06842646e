"""What options name, looked at before anything heavy is imported: folders and files that must be there, and devices."""

from __future__ import annotations

import ctypes
import difflib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError


@dataclass(frozen=True)
class NamedFolder:
    """A kind of folder that options name.

    Attributes:
        what: What it is called.
        mark: The file that makes it one.
        remedy: What makes such a folder.
    """

    what: str
    mark: str
    remedy: str


CHECKPOINT = NamedFolder("checkpoint", "config.json", "lerobot-train writes checkpoints/last/pretrained_model")
DATASET = NamedFolder("LeRobotDataset", "meta/info.json", "name the folder that has meta/info.json in it")
COMPANION = NamedFolder("companion", "meta/world_modality.json", "wm-precompute writes it")
PROPHET = NamedFolder("Prophet", "config.json", "wm-prophet writes it")
MONITOR = NamedFolder("monitor", "monitor.json", "wm-monitor fit writes it")

# Several folders may be named, with commas between them. `sources` are wm-prophet's, which come with `companions`.
FOLDERS = {
    "policy.path": CHECKPOINT,
    "dataset.root": DATASET,
    "sources": DATASET,
    "companion": COMPANION,
    "companions": COMPANION,
    "companion.root": COMPANION,
    "reuse_from": COMPANION,
    "prophet": PROPHET,
    "monitor": MONITOR,
}
# Never a name on the Hub.
_NO_NAMES = ("dataset.root", "companion.root", "sources", "prophet")
# What commands write: folders, and files.
_OUTPUT_FOLDERS = ("output_dir", "output.root", "write.root", "root", "export")
_OUTPUT_FILES = ("output", "page", "json", "junit", "plot", "labels", "export_jsonl")
_DEVICES = ("device", "policy.device", "local.device")
_ON_HUB = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def look_first(arguments: Sequence[str]) -> None:
    """Refuse what isn't there, what can't be written, and devices that can't be, in a command's arguments.

    Args:
        arguments: What was typed after the command's name.

    Raises:
        ConfigError: naming option, value and remedy.
    """
    if "--help" in arguments or "-h" in arguments:
        return
    given = dict(typed_options(arguments))
    if "companions" not in given:
        given.pop("sources", None)  # wm-intervene's name what fills a memory, not folders
    for name, value in given.items():
        if name in _DEVICES:
            check_device(value, name, is_needed=False)
            if value.startswith("cuda") and not _may_have_cuda():
                raise ConfigError(
                    f"{name}={value!r}: torch sees 0 CUDA devices on this machine, which has no driver (libcuda.so.1); "
                    f"use {name}=cpu, or let `wm-doctor --device=cuda` say what is missing"
                )
        elif name in _OUTPUT_FOLDERS or name in _OUTPUT_FILES:
            _check_output(name, value)
        elif name == "config_path" and not Path(value).is_file():
            raise ConfigError(f"config_path={value!r}: there is no such file; name a YAML file of options")
        elif name in FOLDERS:
            # A dataset with a name on the Hub may be downloaded into its root.
            may_come = name.endswith(".root") and "/" in given.get(name.removesuffix("root") + "repo_id", "")
            for each in value.split(","):
                _look_for(name, each.strip(), FOLDERS[name], may_come)


def typed_options(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """(name without dashes, value) of --name=value and --name value."""
    for argument, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        if argument.startswith("--"):
            name, equals, value = argument[2:].partition("=")
            if equals or (after and not after.startswith("-")):
                yield name, value if equals else after


def _may_have_cuda() -> bool:
    """False where torch could not find a CUDA (or ROCm) device either: there is no driver."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return Path("/dev/kfd").exists()
    return True


def _check_output(option: str, value: str) -> None:
    """Refuse an output that would be both a file and a folder; a disk that is full or not ours is told later."""
    path = Path(value).expanduser().absolute()
    if option in _OUTPUT_FOLDERS and path.is_file():
        raise ConfigError(f"{option}={value!r} is a file: name a folder, which is made if it isn't there")
    if option in _OUTPUT_FILES and path.is_dir():
        raise ConfigError(f"{option}={value!r} is a folder: name a file in it")
    if parent := next((each for each in path.parents if each.is_file()), None):
        raise ConfigError(f"{option}={value!r}: {parent} is a file, and nothing can be below it; name another place")


def _look_for(option: str, value: str, kind: NamedFolder, may_come: bool) -> None:
    if not value or value.startswith("hf://"):
        return
    path = Path(value).expanduser()
    if path.is_dir():
        found = None if (path / kind.mark).exists() else _below(path, kind)
        if found:
            raise ConfigError(f"{option}={value!r} is no {kind.what}, and there is one below it: --{option}={found}")
        if kind is CHECKPOINT and not (path / kind.mark).exists():
            raise ConfigError(f"{option}={value!r} is no {kind.what} (no {kind.mark}): {kind.remedy}")
    elif path.exists():
        if kind is CHECKPOINT:
            raise ConfigError(f"{option}={value!r} is a file: name the folder of the {kind.what} that it is in")
    elif not path.with_name(path.name + ".partial").exists():  # else whoever opens it says more
        is_path = option in _NO_NAMES or not _ON_HUB.fullmatch(value)
        if (is_path and not may_come) or _near(path):
            raise ConfigError(f"{option}={value!r}: {missing(path)}; {kind.remedy}")


def check_there(option: str, value: str) -> None:
    """Refuse a path to what isn't there; a name on the Hub passes.

    Raises:
        ConfigError: naming option, value and where it was looked for.
    """
    path = Path(value).expanduser()
    if not path.exists() and (not _ON_HUB.fullmatch(value) or _near(path)):
        raise ConfigError(f"{option}={value!r}: {missing(path)}")


def check_weights(option: str, name: str, revision: str | None = None) -> None:
    """Refuse weights that are in no folder and can't come from the Hub either.

    Raises:
        ConfigError: naming option, value, where it was looked for, and how to get them.
    """
    from huggingface_hub import is_offline_mode, try_to_load_from_cache

    check_there(option, name)
    if Path(name).expanduser().exists() or not is_offline_mode():
        return
    if try_to_load_from_cache(name, "config.json", revision=revision) is None:
        of_revision = f" --revision {revision}" if revision else ""
        raise ConfigError(
            f"{option}={name!r}: {missing(name)}, and HF_HUB_OFFLINE forbids to ask the Hub. Name the folder, or "
            f"fetch the weights once with `hf download {name}{of_revision}` on a machine with a network and the same "
            "HF_HOME"
        )


def missing(path: str | Path) -> str:
    """That a folder isn't there, where it was looked for, and what is there by a similar name."""
    path = Path(path)
    counted = "" if path.is_absolute() else f" (counted from {os.getcwd()})"
    near = f"; did you mean {near}?" if (near := _near(path)) else ""
    return f"there is no such folder{counted}{near}"


def _near(path: Path) -> str | None:
    """The folder beside that is spelled most like it."""
    try:
        names = [each.name for each in path.parent.iterdir() if each.is_dir()]
    except OSError:
        return None
    close = difflib.get_close_matches(path.name, names, n=1, cutoff=0.75)
    return str(path.parent / close[0]) if close else None


def _below(folder: Path, kind: NamedFolder) -> Path | None:
    """The one that is most likely meant, in a folder of LeRobot's layout or of ours."""
    patterns = ["*"]
    if kind is CHECKPOINT:
        last = "checkpoints/last/pretrained_model"
        patterns = ["pretrained_model", "last/pretrained_model", last, f"train/{last}", f"*/{last}"]
    for pattern in patterns:
        for found in sorted(folder.glob(pattern)):
            is_other = kind is DATASET and (found / COMPANION.mark).exists()
            if (found / kind.mark).exists() and not is_other:
                return found
    return None
