"""JSONL in the form of the project's seed: one line per episode with `episode_index` (or `episode_id`) and `coc_text`.

Imported texts become labels without steps: free text about the whole episode.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import ValidationError

from coc_tools import TOOL_VERSION
from coc_tools.episodes import EpisodeReader
from coc_tools.language_rows import label_starts
from coc_tools.schema import EpisodeLabel, Provenance
from coc_tools.store import LabelFile, StoreError, utc_now
from world_modality_core.io.files import parse_json, write_text
from world_modality_core.io.hub import local_file


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
    with open(local_file(path), "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            episode, content = _parse(line, f"{path}, line {number}")
            first = seen.setdefault(episode, number)
            if first != number:
                raise StoreError(f"{path}, lines {first} and {number}: both are of episode {episode}. Delete one")
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
            raise StoreError(
                f"{where}: not a label ({error.errors(include_url=False, include_input=False)[0]['msg']})"
            ) from error
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


def iter_any(path: str | Path) -> Iterator[tuple[int, list[tuple[float, str]]]]:
    """(episode, [(start in seconds, text), ...]) of each line of a file of labels or of plain texts.

    Raises:
        StoreError: as `iter_lines`.
    """
    for _, episode, content in iter_lines(path):
        yield episode, [(0.0, content)] if isinstance(content, str) else label_starts(content)


def import_labels(path: str | Path, reader: EpisodeReader, labels: LabelFile) -> tuple[int, int]:
    """Add the labels of a JSONL file to a label file.

    Args:
        path: JSONL of labels or of plain texts.
        reader: The dataset that they are of.
        labels: The label file.

    Returns:
        (labels added, lines passed over because their episode is labelled already).

    Raises:
        StoreError: before anything is added, if a line is damaged or not of this dataset.
    """
    for number, episode, content in iter_lines(path):
        if episode >= len(reader):
            raise StoreError(f"{path}, line {number}: episode {episode}; the dataset has {len(reader)} episodes")
        if isinstance(content, EpisodeLabel):
            check_belongs(content, reader, f"{path}, line {number}")
    added = passed = 0
    for _, episode, content in iter_lines(path):
        if episode in labels:
            passed += 1
            continue
        if isinstance(content, str):
            known = reader[episode]
            content = EpisodeLabel(
                episode_index=episode,
                task=known.task,
                length_s=known.length_s,
                steps=[],
                text=content,
                provenance=Provenance(
                    backend="import", model=Path(path).name, date=utc_now(), tool_version=TOOL_VERSION
                ),
            )
        labels.append(content)
        added += 1
    return added, passed


def check_belongs(label: EpisodeLabel, reader: EpisodeReader, where: str) -> None:
    """Check that a label is of this dataset: episode, task and length.

    Raises:
        StoreError: naming what differs.
    """
    if label.episode_index >= len(reader):
        raise StoreError(f"{where}: labels episode {label.episode_index}, and the dataset has {len(reader)} episodes")
    episode = reader[label.episode_index]
    if label.task != episode.task or abs(label.length_s - episode.length_s) > 1 / episode.fps:
        raise StoreError(
            f"{where}: labels an episode {label.task!r} of {label.length_s} s; episode {label.episode_index} of "
            f"{reader.meta.repo_id!r} is {episode.task!r} of {episode.length_s} s. These are labels of another dataset"
        )


def export_labels(labels: LabelFile, path: str | Path) -> int:
    """Write lines of `episode_index`, `task` and `coc_text`, in the order of the episodes.

    Returns:
        How many.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for episode, label in labels.items():
        line = {"episode_index": episode, "task": label.task, "coc_text": label.text}
        lines.append(json.dumps(line, ensure_ascii=False, sort_keys=True))
    write_text(path, "".join(f"{line}\n" for line in lines))
    return len(lines)
