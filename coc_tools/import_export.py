"""Taking labels over from a JSONL file, and writing their texts into one (`coc_tools.label_lines`).

Imported texts become labels without steps: free text about the whole episode.
"""

from __future__ import annotations

import json
from pathlib import Path

from coc_tools import TOOL_VERSION
from coc_tools.episodes import EpisodeReader
from coc_tools.label_lines import iter_lines
from coc_tools.schema import EpisodeLabel, Provenance
from coc_tools.store import LabelFile, StoreError, utc_now
from world_modality_core.io.files import write_text


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
        check_belongs(episode, content, reader, f"{path}, line {number}")
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


def check_belongs(index: int, label: EpisodeLabel | str, reader: EpisodeReader, where: str) -> None:
    """Check that a label, or a text, is of this dataset: episode, and of a label task and length too.

    Raises:
        StoreError: naming what differs.
    """
    if index >= len(reader):
        raise StoreError(f"{where}: labels episode {index}, and the dataset has {len(reader)} episodes")
    episode = reader[index]
    if isinstance(label, str):
        return
    if label.task != episode.task or abs(label.length_s - episode.length_s) > 1 / episode.fps:
        raise StoreError(
            f"{where}: labels an episode {label.task!r} of {label.length_s} s; episode {index} of "
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
