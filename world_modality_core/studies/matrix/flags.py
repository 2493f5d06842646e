"""Whether the commands will know their flags: asked of LeRobot's own config classes before anything runs."""

from __future__ import annotations

import types
import typing
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix.expand import Job


@cache
def _choices() -> dict[str, dict[str, type]]:
    """Policy and environment types, those of installed plugins included."""
    from lerobot.configs import PreTrainedConfig
    from lerobot.envs.configs import EnvConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    return {"policy": dict(PreTrainedConfig.get_known_choices()), "env": dict(EnvConfig.get_known_choices())}


def _choice(kind: str, name: str) -> type:
    known = _choices()[kind]
    if name not in known:
        raise ConfigError(f"{kind}.type={name!r} is unknown; there are {', '.join(sorted(known))}")
    return known[name]


def has_metrics_file(policy_type: str) -> bool:
    """Whether a policy type has the flag `policy.metrics_file`, as those of this project have.

    Raises:
        ConfigError: if there is no such type.
    """
    return any(field.name == "metrics_file" for field in fields(_choice("policy", policy_type)))


def check_flags(jobs: list[Job]) -> None:
    """Look up the flags of all commands, as far as their classes can be reached from here.

    Of wm-eval and wm-intervene, whose own options belong to the plugin, those are checked that LeRobot defines.

    Raises:
        ConfigError: naming the model and the first flag that doesn't exist.
    """
    seen = set()
    for job in jobs:
        flags = dict(word.removeprefix("--").split("=", 1) for word in job.command[1:])
        for name in flags:
            root = _root(job, name, flags)
            if root is None or (key := (root, name)) in seen:
                continue
            seen.add(key)
            config, parts = root, name.split(".")
            if parts[0] in ("policy", "env") and config is not _top(job.kind):
                parts = parts[1:]
            _walk(config, parts, f"{job.kind} of {job.model}: --{name}")


def _root(job: Job, name: str, flags: dict[str, str]) -> type | None:
    """The class that a flag is a field of, or None where that isn't known here."""
    first, _, rest = name.partition(".")
    if first == "policy":
        known = job.policy_type and rest not in ("path", "type")
        return _choice("policy", job.policy_type) if known else None
    if first == "env":
        return _choice("env", flags["env.type"]) if "env.type" in flags and rest != "type" else None
    if job.kind == "eval" and first != "eval" or job.kind == "intervene":
        return None
    return _top(job.kind)


@cache
def _top(kind: str) -> type | None:
    from lerobot.configs.eval import EvalPipelineConfig
    from lerobot.configs.train import TrainPipelineConfig

    from world_modality_core.prophet.options import ProphetTrainingConfig

    return {"train": TrainPipelineConfig, "eval": EvalPipelineConfig, "prophet": ProphetTrainingConfig}.get(kind)


def _walk(config: type, parts: list[str], where: str) -> None:
    for i, part in enumerate(parts):
        if part == "config_path" and i == 0:
            return
        hints = _hints(config)
        known = [field.name for field in fields(config)]
        if part not in known:
            close = get_close_matches(part, known, n=3) or known
            raise ConfigError(f"{where}: {config.__name__} has no {part!r}; it has {', '.join(close)}")
        config = _dataclass_in(hints[part])
        if config is None:
            return


@cache
def _hints(config: type) -> dict[str, Any]:
    return typing.get_type_hints(config)


def _dataclass_in(hint: Any) -> type | None:
    """The dataclass that an annotation allows; None for a value of any other kind."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    found = [option for option in options if isinstance(option, type) and is_dataclass(option)]
    return found[0] if found else None
