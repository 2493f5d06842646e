"""Lists of episodes as they are typed: "0,5,7-12"."""

from __future__ import annotations

import re

from world_modality_core.io.errors import ConfigError


def parse_episodes(text: str, sizes: list[int], field: str) -> list[set[int] | None]:
    """Read lists of episodes such as "0,5,7-12;3".

    Args:
        text: One list for each companion, separated by ";". An empty one means that nothing was said.
        sizes: Episodes of each companion.
        field: The option's name, for messages.

    Returns:
        The episodes of each companion; None where the list is empty.

    Raises:
        ConfigError: if the text can't be read or names an episode that isn't there.
    """
    lists = text.split(";") if text.strip() else [""] * len(sizes)
    if len(lists) != len(sizes):
        raise ConfigError(
            f"{field}={text!r} has {len(lists)} lists for {len(sizes)} companions; give one for each, separated by ';' "
            "(an empty one for a companion without)"
        )
    found: list[set[int] | None] = []
    for part, size in zip(lists, sizes, strict=True):
        numbers: set[int] = set()
        for term in filter(None, (term.strip() for term in part.split(","))):
            match = re.fullmatch(r"(\d+)(?:-(\d+))?", term)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if last < first:
                raise ConfigError(f"{field}={text!r}: cannot read {term!r}; expected numbers and ranges: 0,5,7-12")
            if last >= size:
                raise ConfigError(f"{field}={text!r}: there is no episode {last}; the companion has {size} episodes")
            numbers |= set(range(first, last + 1))
        found.append(numbers or None)
    return found
