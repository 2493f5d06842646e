"""Reading JSONL of labels, or in the form of the project's seed: `episode_index` (or `episode_id`) and `coc_text`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from coc_tools.schema import EpisodeLabel
from coc_tools.store import StoreError, problem_of, refuse_second
from world_modality_core.io.files import parse_json


def iter_lines(path: str | Path) -> Iterator[tuple[int, int, EpisodeLabel | str]]:
    """Read a JSONL file of labels, or of plain texts.

    Args:
        path: The file, or one on the Hub: hf://datasets/USER/NAME[@REVISION]/PATH.

    Yields:
        (line number, episode index, label or text).

    Raises:
        StoreError: naming the line, if one is neither, or an episode comes twice.
        HubError: if it can't be had from the Hub.
    """
    seen: dict[int, int] = {}
    local = path
    if str(path).startswith("hf://"):  # else the Hub's client and LeRobot need not be imported
        from world_modality_core.io.hub_transfer import local_file

        local = local_file(path)
    with open(local, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            episode, content = _parse(line, f"{path}, line {number}")
            refuse_second(seen, episode, number, path)
            yield number, episode, content


def _parse(line: bytes, where: str) -> tuple[int, EpisodeLabel | str]:
    try:
        value = parse_json(line)
    except ValueError as error:
        raise StoreError(f"{where}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise StoreError(f"{where}: expected a JSON object")
    if "steps" in value:
        try:
            label = EpisodeLabel.model_validate(value)
        except ValidationError as error:
            raise StoreError(f"{where}: not a label ({problem_of(error)})") from error
        return label.episode_index, label
    index = value.get("episode_index", value.get("episode_id"))
    # Ids come as strings of digits too.
    index = int(index) if isinstance(index, str) and index.isdecimal() and len(index) < 19 else index
    text = value.get("coc_text")
    if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**63:
        raise StoreError(f"{where}: episode_index (or episode_id) is {index!r:.60}; expected a number of 0 or more")
    if not isinstance(text, str) or not text.strip():
        raise StoreError(f"{where}: coc_text is {text!r:.60}; expected a text")
    return index, " ".join(text.split())
