"""What `prophet.init_from` and `trunk_init_from` mean for a config, before any weight is read.

The policies' configurations import this, so it imports little.
"""

from __future__ import annotations

from lerobot.configs import PreTrainedConfig

from world_modality_core.io.errors import ConfigError
from world_modality_core.prophet.saved_prophet import ProphetCheckpoint

# Of a Prophet's options those that its weights belong to.
_OF_THE_WEIGHTS = (
    "d_model", "n_layers", "n_heads", "residual", "per_cell", "n_hypotheses", "use_state", "use_language",
    "tells_state",
)  # fmt: skip


def take_over_prophet(config: PreTrainedConfig) -> None:
    """Let `prophet.init_from` say what its Prophet is: sizes, conditioning, windows and sentence encoder.

    Args:
        config: A policy's config, changed in place. What was given must agree; what wasn't is taken over.

    Raises:
        ConfigError: if the folder holds no Prophet, or an option was given that differs.
    """
    start = config.prophet.init_from
    if not start:
        return
    made = ProphetCheckpoint.read(start, "prophet.init_from")
    wanted = [
        (config, "", config.history_field, made.n_obs_steps),
        *((config, "", name, getattr(made, name)) for name in ("history_stride", "n_future_steps", "future_stride")),
        *((config.prophet, "prophet.", name, getattr(made.prophet, name)) for name in _OF_THE_WEIGHTS),
    ]
    if made.prophet.use_language:
        names = ("model_id", "revision", "dim")
        wanted += [(config.language, "language.", name, getattr(made.language, name)) for name in names]
    if "dropout" not in config.prophet._given:
        config.prophet.dropout = made.prophet.dropout
    wrong = []
    for owner, path, name, value in wanted:
        if name in owner._given and getattr(owner, name) not in (value, 0 if name in ("d_model", "dim") else value):
            wrong.append(f"{path}{name}={getattr(owner, name)} was given, it has {value}")
        setattr(owner, name, value)
    if wrong:
        raise ConfigError(
            f"prophet.init_from={start!r} is another Prophet than was asked for: {'; '.join(wrong)}. Drop the options "
            "(they come with the folder), or train another Prophet with wm-prophet"
        )


def check_trunk_start(config: PreTrainedConfig) -> None:
    """Refuse a `trunk_init_from` whose layers don't fit the trunk that is asked for.

    Raises:
        ConfigError: naming the options to type.
    """
    start = config.trunk_init_from
    if not start:
        return
    made = ProphetCheckpoint.read(start, "trunk_init_from")
    wanted = {
        "d_model": made.prophet.d_model,
        "n_layers": made.prophet.n_layers,
        "n_heads": made.prophet.n_heads,
        "per_cell": made.prophet.per_cell,
        "n_obs_steps": made.n_obs_steps,
        "history_stride": made.history_stride,
        "use_vision": True,
    }
    wanted |= {f"use_{part}": True for part in ("state", "language") if getattr(made.prophet, f"use_{part}")}
    if config.d_feedforward != 4 * config.d_model:
        wanted["d_feedforward"] = 0
    flags = [
        f"--policy.{name}={str(value).lower()}" for name, value in wanted.items() if getattr(config, name) != value
    ]
    if made.prophet.use_language and (made.language.model_id, made.language.revision) != (
        config.language.model_id, config.language.revision,
    ):  # fmt: skip
        flags.append(f"--policy.language.model_id={made.language.model_id}")
        flags += [f"--policy.language.revision={made.language.revision}"] if made.language.revision else []
    if flags:
        raise ConfigError(
            f"trunk_init_from={start!r} holds layers of other sizes or inputs than the trunk's; set {' '.join(flags)}"
        )
