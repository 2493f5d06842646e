"""Where LeRobot's versions differ, in one place; beside each entry the versions that need it.

Supported are 0.6.1 and what follows it (LeRobot's main branch of August 2026 calls itself 0.6.2; docs/install.md says
what was run). What can be written so that both take it, is: a state-dict hook in place of an argument of
`_save_pretrained`, autocast of our own in place of the launcher's. What remains is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from huggingface_hub import ModelCard
from lerobot.common import train_utils
from lerobot.configs.default import DatasetConfig

WRITES_CARD_ITSELF = hasattr(train_utils, "generate_model_card")
"""0.6.2 and later: the trainer publishes by free functions, and no method of a policy is asked for its card."""


def write_card_by(is_ours: Callable[[Any], bool], card: Callable[[Any, Any], ModelCard]) -> None:
    """Have the trainer write a card of ours for policies of ours (0.6.2 and later; before, a policy's method does).

    There is no extension point: the function is replaced in the module that calls it.

    Args:
        is_ours: Whether a policy's config is of ours.
        card: (policy's config, training config) -> card.
    """
    if not WRITES_CARD_ITSELF:
        return
    upstream = train_utils.generate_model_card

    def generate_model_card(model_cfg: Any, cfg: Any = None, dataset_meta: Any = None) -> ModelCard:
        return card(model_cfg, cfg) if is_ours(model_cfg) else upstream(model_cfg, cfg, dataset_meta)

    train_utils.generate_model_card = generate_model_card


def excluded_episodes(dataset: DatasetConfig) -> list[int]:
    """Episodes that `--dataset.exclude_episodes` keeps out of training (0.6.2 and later; before, it isn't there)."""
    return list(getattr(dataset, "exclude_episodes", None) or ())


def leaving_out(episodes: list[int]) -> str:
    """How a training is told to leave episodes out: by their names from 0.6.2 on, before by those of all others."""
    if hasattr(DatasetConfig, "exclude_episodes"):
        return f"--dataset.exclude_episodes='{episodes}'"
    return "--dataset.episodes='[...]' (all others)"
