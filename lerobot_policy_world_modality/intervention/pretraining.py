"""What the Prophet that a checkpoint was started from has seen of the episodes that are tested on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from world_modality_core.io.errors import DamagedFileError
from world_modality_core.io.files import checked, read_json
from world_modality_core.latents.companion import Companion
from world_modality_core.prophet.saved_prophet import CONFIG_FILE


class _LearnedFrom(TypedDict):
    """What a Prophet's config says of one of its companions."""

    content_sha256: str
    episodes: list[int]


def seen_beforehand(policy: Any, companion: Companion | None, episodes: Sequence[int]) -> str:
    """Say which episodes a pretrained Prophet learned from: its skill on these is not that on new ones.

    Args:
        policy: The checkpoint's config.
        companion: Latents of the episodes, by whose hash they are recognised.
        episodes: What is tested on.

    Returns:
        A clause for the Prophet and one for the trunk; "" for a checkpoint that was started from none.
    """
    clauses = ""
    if start := getattr(getattr(policy, "prophet", None), "initialised_from", None):
        n_seen, how = _learned(start, companion, episodes)
        clauses += f"; its Prophet ({start}) {how}" + (", so that its skill is not that on new ones" if n_seen else "")
    if start := getattr(policy, "trunk_initialised_from", None):
        clauses += f"; the Prophet that its trunk started from ({start}) {_learned(start, companion, episodes)[1]}"
    return clauses


def learned_by_prophet(policy: Any, companion: Companion) -> set[int]:
    """The episodes of a companion that a checkpoint's pretrained Prophet is known to have learned from."""
    start = getattr(getattr(policy, "prophet", None), "initialised_from", None)
    try:
        return _episodes(start, companion) if start else set()
    except (OSError, DamagedFileError, KeyError, TypeError):
        return set()


def _episodes(start: str, companion: Companion) -> set[int]:
    path = Path(start) / CONFIG_FILE
    sources = checked(list[_LearnedFrom], read_json(path, dict)["training"]["companions"], path)
    sha256 = companion.info.content_sha256
    return {episode for source in sources if source["content_sha256"] == sha256 for episode in source["episodes"]}


def _learned(start: str, companion: Companion | None, episodes: Sequence[int]) -> tuple[int, str]:
    """How many of the episodes a Prophet is known to have learned from, and what can be said."""
    if companion is None:
        return 0, "was trained beforehand; without a companion it is unknown whether on these"
    try:
        learned = _episodes(start, companion)
    except (OSError, DamagedFileError, KeyError, TypeError):
        return 0, "was trained beforehand, and its folder does not say on which episodes"
    if not learned:
        return 0, "was trained beforehand on other companions than this one, which may be of the same episodes"
    n_seen = len(learned & set(episodes))
    return n_seen, f"was trained beforehand on {n_seen or 'none'} of them"
