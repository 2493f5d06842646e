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
    checkpoint = ProphetCheckpoint.read(start, "prophet.init_from")
    required = [
        (config, "", config.history_field, checkpoint.n_obs_steps),
        *(
            (config, "", name, getattr(checkpoint, name))
            for name in ("history_stride", "n_future_steps", "future_stride")
        ),
        *((config.prophet, "prophet.", name, getattr(checkpoint.prophet, name)) for name in _OF_THE_WEIGHTS),
    ]
    if checkpoint.prophet.use_language:
        names = ("model_id", "revision", "dim")
        required += [(config.language, "language.", name, getattr(checkpoint.language, name)) for name in names]
    if "dropout" not in config.prophet._given:
        config.prophet.dropout = checkpoint.prophet.dropout
    wrong = []
    for owner, path, name, value in required:
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
    checkpoint = ProphetCheckpoint.read(start, "trunk_init_from")
    required = {
        "d_model": checkpoint.prophet.d_model,
        "n_layers": checkpoint.prophet.n_layers,
        "n_heads": checkpoint.prophet.n_heads,
        "per_cell": checkpoint.prophet.per_cell,
        "n_obs_steps": checkpoint.n_obs_steps,
        "history_stride": checkpoint.history_stride,
        "use_vision": True,
    }
    required |= {f"use_{part}": True for part in ("state", "language") if getattr(checkpoint.prophet, f"use_{part}")}
    if config.d_feedforward != 4 * config.d_model:
        required["d_feedforward"] = 0
    flags = [
        f"--policy.{name}={str(value).lower()}" for name, value in required.items() if getattr(config, name) != value
    ]
    if checkpoint.prophet.use_language and (checkpoint.language.model_id, checkpoint.language.revision) != (
        config.language.model_id, config.language.revision,
    ):  # fmt: skip
        flags.append(f"--policy.language.model_id={checkpoint.language.model_id}")
        flags += [f"--policy.language.revision={checkpoint.language.revision}"] if checkpoint.language.revision else []
    if flags:
        raise ConfigError(
            f"trunk_init_from={start!r} holds layers of other sizes or inputs than the trunk's; set {' '.join(flags)}"
        )
