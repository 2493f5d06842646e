"""The checkpoint that `--policy.path` names, at the revision that `--policy.pretrained_revision` names."""

from __future__ import annotations

from pathlib import Path

from lerobot.configs import PreTrainedConfig, parser

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.hub_transfer import hub_errors


def read_policy_option() -> PreTrainedConfig | None:
    """The config of the checkpoint that the command line names, with the command line's changes.

    LeRobot's own parsing reads the newest revision, whichever one is asked for.

    Returns:
        The config with its `pretrained_path`; None if there is no `--policy.path`.

    Raises:
        ConfigError: if it cannot be read, there or from the Hub.
    """
    path = parser.get_path_arg("policy")
    if not path:
        return None
    overrides = parser.get_yaml_overrides("policy") + (parser.get_cli_overrides("policy") or [])
    revision = parser.parse_arg("policy.pretrained_revision")
    try:
        with hub_errors(path, revision):
            config = PreTrainedConfig.from_pretrained(path, revision=revision, cli_overrides=overrides)
    except Exception as error:  # the parser would hide its text
        raise ConfigError(f"policy.path={path!r} cannot be read: {error}") from error
    # A checkpoint's config says which revision its own training started from.
    config.pretrained_path, config.pretrained_revision = Path(path), revision
    return config
