"""A study as it is written: the YAML's keys, its variables and loops, checked before anything is expanded into jobs.

Flags are those of the commands, without the dashes (`policy.d_model: 192`); `null` takes away a flag that all models
have, `"policy.prophet.*": null` all of a kind.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import at_home

Flag = bool | int | float | str | list[bool | int | float | str] | None
Flags = dict[str, Flag]
Seed = Annotated[int, Field(strict=True, ge=0, lt=2**32)]  # what numpy's older generator, LeRobot's, can be given

KINDS = ("prophet", "train", "eval", "intervene")
"""What a job runs: wm-prophet, lerobot-train, wm-eval, wm-intervene."""

JOB_PLACEHOLDERS = ("seed", "prophet", "labelled", "unlabelled", "all", "job")
"""Filled in for each job; no loop may have their names."""

_MAX_NODES = 100_000
_NAME = re.compile(r"[A-Za-z0-9][\w.+]*")
_VARIABLE = re.compile(r"\$\{(\w+)\}")
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Draw(_Strict):
    """Labelled episodes, drawn anew for each training seed: the same for all models of a seed."""

    # The dataset that is drawn from: its folder, or without one its repository id.
    root: str | None = None
    repo_id: str = ""
    # Draw from these tasks' episodes only (their instructions); without it from all.
    tasks: list[str] | None = None
    # Labelled episodes of each task.
    per_task: int = Field(ge=1)
    # Further episodes of each task, `{unlabelled}`; without it all the others. `{all}` is both.
    unlabelled_per_task: int | None = Field(default=None, ge=0)


class Episodes(_Strict):
    """Subsets of the episodes."""

    draw: Draw


class ProphetEntry(_Strict):
    """A Prophet that models may start from; all other keys are flags of wm-prophet."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: Flags

    # One for each training seed, instead of one for the study.
    per_seed: bool = False

    @property
    def flags(self) -> Flags:
        return dict(self.__pydantic_extra__)


class ModelEntry(_Strict):
    """One recipe."""

    # The Prophet whose folder is `{prophet}`.
    prophet: str | None = None
    train: Flags = {}
    eval: Flags = {}
    # What is done to its checkpoint in the evaluation; the study's by default.
    arms: list[str] | None = None
    # Run wm-intervene on its checkpoint, with these flags if any.
    intervene: bool | Flags = False
    # Training seeds; the study's by default.
    seeds: list[Seed] | None = None


class Study(_Strict):
    """A study, after `load_study` has filled in its `vars` and written out each `for`."""

    # Its name, and where its jobs' folders go.
    study: str
    root: str
    # Training seeds.
    seeds: list[Seed] = Field(min_length=1)
    # Flags that all jobs of a kind have.
    prophet: Flags = {}
    train: Flags = {}
    eval: Flags = {}
    intervene: Flags = {}
    # Several evaluations of each checkpoint, each with flags of its own; without them there is one.
    evals: dict[str, Flags] = {}
    # What is done to each checkpoint in the evaluation.
    arms: list[str] = ["intact"]
    episodes: Episodes | None = None
    prophets: dict[str, ProphetEntry] = {}
    models: dict[str, ModelEntry] = Field(min_length=1)
    # Model that the others are compared with, and the one with as many parameters, trained without memory; "" for none.
    baseline: str = ""
    matched: str = ""
    # Checkpoints of a training that are kept.
    keep_checkpoints: Literal["last", "all"] = "last"


def load_study(path: Path, overrides: Mapping[str, str] | None = None, root: str | None = None) -> Study:
    """Read a study, fill in its variables and loops, and check it.

    Args:
        path: The YAML file.
        overrides: Values of `vars`, in place of the file's.
        root: Folder of the jobs, in place of the file's.

    Returns:
        The study.

    Raises:
        ConfigError: naming the key that is wrong and why.
    """
    try:
        text = path.read_text()
        _check_unique(yaml.compose(text, yaml.SafeLoader))
        raw = yaml.safe_load(text)
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: name the YAML file of a study") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a folder: name the YAML file of a study") from None
    # ValueError, ...: of dates and numbers that YAML reads but Python has not
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping with the keys {', '.join(Study.model_fields)}")
    raw.setdefault("study", path.stem)
    if root is not None:
        raw["root"] = root
    raw = _fill_variables(raw, overrides or {}, path)
    for key in ("prophets", "models"):
        if isinstance(raw.get(key), dict):
            raw[key] = _unroll(raw[key], f"{path}: {key}")
    try:
        study = Study.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_first_error(error, path)) from None
    _check(study, path)
    return study


def _check_unique(root: yaml.Node | None) -> None:
    """Refuse a key that is written twice, since the second would silently replace the first, and aliases of aliases
    that would fill the memory."""
    left, n = [root], 0
    while left:
        node, n = left.pop(), n + 1
        if n > _MAX_NODES:
            raise yaml.YAMLError(f"more than {_MAX_NODES} values, with all aliases written out")
        if isinstance(node, yaml.SequenceNode):
            left += node.value
        if isinstance(node, yaml.MappingNode):
            seen = set()
            for key, value in node.value:
                if isinstance(key.value, str) and key.value in seen:
                    raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value!r} is written twice")
                seen.add(key.value if isinstance(key.value, str) else id(key))
                left.append(value)


def substitute(
    value: Any, values: Mapping[str, Any], where: str, pattern: re.Pattern[str] = _PLACEHOLDER, later: bool = False
) -> Any:
    """Fill placeholders in all strings of a value; a string that is one placeholder takes the value's own type.

    Args:
        value: A string, or lists and dictionaries of them; anything else is returned as it is.
        values: Name -> what its placeholder stands for.
        where: What the value is, for the message.
        pattern: How placeholders are written.
        later: Leave unknown placeholders alone: they are filled in later.

    Raises:
        ConfigError: if a placeholder is unknown.
    """
    if isinstance(value, dict):
        return {
            substitute(key, values, where, pattern, later): substitute(each, values, f"{where}.{key}", pattern, later)
            for key, each in value.items()
        }
    if isinstance(value, list):
        return [substitute(each, values, f"{where}[{i}]", pattern, later) for i, each in enumerate(value)]
    if not isinstance(value, str):
        return value

    def fill(match: re.Match[str]) -> Any:
        if match[1] in values:
            return values[match[1]]
        if later:
            return match[0]
        known = ", ".join(match[0].replace(match[1], str(name)) for name in values) or "none"
        raise ConfigError(f"{where}: {match[0]} is unknown here; known: {known}")

    def fill_as_text(match: re.Match[str]) -> str:
        filled = fill(match)
        return ",".join(map(str, filled)) if isinstance(filled, list) else str(filled)

    whole = pattern.fullmatch(value)
    return fill(whole) if whole else pattern.sub(fill_as_text, value)


def _fill_variables(raw: dict, overrides: Mapping[str, str], path: Path) -> dict:
    variables = raw.pop("vars", None) or {}
    if not isinstance(variables, dict):
        raise ConfigError(f"{path}: vars: expected a mapping of names to values")
    unknown = sorted(set(overrides) - set(variables))
    if unknown:
        raise ConfigError(f"--set {unknown[0]}=...: {path} has the vars {', '.join(variables) or '(none)'}")
    return _at_home(substitute(raw, variables | dict(overrides), str(path), _VARIABLE))


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _at_home(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_at_home(each) for each in value]
    return at_home(value) if isinstance(value, str) else value


def _unroll(entries: dict[str, Any], where: str) -> dict[str, Any]:
    """Write out the entries that have a `for`."""
    unrolled: dict[str, Any] = {}
    for name, entry in entries.items():
        entry = {} if entry is None else entry
        if not isinstance(entry, dict):
            raise ConfigError(f"{where}.{name}: expected a mapping")
        loops = entry.get("for", {})
        if not isinstance(loops, dict) or not all(isinstance(values, list) and values for values in loops.values()):
            raise ConfigError(f"{where}.{name}.for: expected a list of values for each name, as {{k: [4, 8]}}")
        for reserved in set(loops) & set(JOB_PLACEHOLDERS):
            raise ConfigError(
                f"{where}.{name}.for.{reserved}: choose another name, since {{{reserved}}} is filled in for each job"
            )
        body = {key: value for key, value in entry.items() if key != "for"}
        for values in itertools.product(*loops.values()):
            filled = dict(zip(loops, values, strict=True))
            new_name = substitute(name, filled, f"{where}.{name}")
            if new_name in unrolled:
                raise ConfigError(
                    f"{where}.{name}: several entries get the name {new_name!r}; its own name must tell them apart"
                )
            unrolled[new_name] = substitute(body, filled, f"{where}.{name}", later=True)
    return unrolled


def _first_error(error: ValidationError, path: Path) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        parent = first["loc"][:-1]
        model = {(): Study, ("episodes",): Episodes, ("episodes", "draw"): Draw}.get(parent, ModelEntry)
        known = ", ".join([*model.model_fields, *(["vars"] if model is Study else ["for"] * (model is ModelEntry))])
        return f"{path}: {where}: unknown key; expected one of {known}"
    # A union's error carries the alternatives' names behind the flag's.
    where = re.sub(r"\.(bool|int|float|str|list\[.*|constrained.*)(\.\d+.*)?$", "", where)
    value = f" ({first['input']!r})" if not isinstance(first.get("input"), dict) else ""
    hint = "; flags are written with dots, as `policy.type: world_A`" if isinstance(first.get("input"), dict) else ""
    return f"{path}: {where}{value}: {first['msg']}{hint}"


def _check(study: Study, path: Path) -> None:
    """What the types of the keys can't tell."""
    for key, names in (("models", study.models), ("prophets", study.prophets), ("evals", study.evals)):
        for name in names:
            if not _NAME.fullmatch(name):
                raise ConfigError(f"{path}: {key}.{name}: a name is made of letters, digits, '_', '.', '+'")
    for key, name in (("baseline", study.baseline), ("matched", study.matched)):
        if name and name not in study.models:
            raise ConfigError(f"{path}: {key}: {name!r} is no model of the study ({', '.join(study.models)})")
    for name, model in study.models.items():
        if model.prophet is not None and model.prophet not in study.prophets:
            known = ", ".join(study.prophets) or "none"
            raise ConfigError(f"{path}: models.{name}.prophet: {model.prophet!r} is no Prophet of the study ({known})")
        for key, seeds in ((f"models.{name}.seeds", model.seeds), ("seeds", study.seeds)):
            if seeds is not None and (not seeds or len(set(seeds)) < len(seeds)):
                raise ConfigError(f"{path}: {key}: {seeds}: expected at least one seed, each once")
        for key, arms in ((f"models.{name}.arms", model.arms), ("arms", study.arms)):
            if arms is not None and (not arms or len(set(arms)) < len(arms)):
                raise ConfigError(f"{path}: {key}: {arms}: expected at least one arm, each once")
