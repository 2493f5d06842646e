"""Chain-of-causality labels as LeRobot language rows of style `coc`, and the lookup "which text is active at frame i?".

Importing this module registers the style with LeRobot, by LeRobot's own extension point: its resolvers
(`active_at(t, style="coc")`) and recipes then know it. A dataset that holds such rows is read by plain LeRobot without
this package.

Each step of a label is one row of `language_persistent`, dated at the step's first frame: LeRobot keeps it active until
the next step's row. A label without steps is one row at the episode's first frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.language import EXTENDED_STYLES, LANGUAGE_PERSISTENT, PERSISTENT_STYLES
from torch import Tensor

from coc_tools.label_lines import iter_lines
from coc_tools.schema import EpisodeLabel, label_starts
from coc_tools.store import StoreError
from world_modality_core.io.dataset_files import data_files
from world_modality_core.io.files import open_parquet

COC_STYLE = "coc"
COC_ROLE = "assistant"
EXTENDED_STYLES.add(COC_STYLE)
PERSISTENT_STYLES.add(COC_STYLE)

# Rows read at once when a dataset is searched for labels: bounds the memory whatever the size of its row groups.
_BATCH_ROWS = 1024


def rows_of_label(label: EpisodeLabel, timestamps: np.ndarray) -> list[dict]:
    """The persistent language rows of a label.

    Args:
        label: The label.
        timestamps: (t,) seconds of the episode's frames.

    Returns:
        Rows in LeRobot's form, each dated at a frame: the first one at or after the step's start. Of several steps that
        start at the same frame the last one counts, since LeRobot takes two rows at one time for an ambiguity.
    """
    timestamps = np.asarray(timestamps)
    found: dict[int, dict] = {}
    for start_s, text in label_starts(label):
        frame = first_frame(timestamps, start_s)
        found[frame] = {
            "role": COC_ROLE,
            "content": text,
            "style": COC_STYLE,
            "timestamp": float(timestamps[frame]),
            "camera": None,
            "tool_calls": None,
        }
    return [found[frame] for frame in sorted(found)]


def first_frame(timestamps: np.ndarray, start_s: float) -> int:
    """The first frame at or after a time; the last frame if there is none."""
    # Labels hold rounded seconds, frames float32 ones: a start that is a frame's own time must find that frame.
    return int(min(np.searchsorted(timestamps, start_s - 1e-3), len(timestamps) - 1))


class LabelLookup:
    """Which chain-of-causality text is active at a frame. Holds one entry per row, not per frame.

    Attributes:
        texts: The different texts.
        n_rows: Rows of style `coc` in the dataset.
    """

    def __init__(self, changes: Iterable[tuple[int, str | None]]) -> None:
        """Build the lookup.

        Args:
            changes: (frame `index`, text that is active from there on, or None), increasing.
        """
        ids: dict[str, int] = {}
        starts, values = [], []
        for start, text in changes:
            starts.append(start)
            values.append(-1 if text is None else ids.setdefault(text, len(ids)))
        self._starts = np.array(starts, dtype=np.int64)
        self._values = np.array(values, dtype=np.int32)
        self.texts = list(ids)
        self.n_rows = int((self._values >= 0).sum())
        if (np.diff(self._starts) <= 0).any():
            raise ValueError("the changes of a label lookup must come in the order of `index`")

    def ids(self, index: Tensor | np.ndarray) -> np.ndarray:
        """(b,) int64 position in `texts` for frames (b,) of `index`, -1 where no text is active."""
        index = np.asarray(index, dtype=np.int64).reshape(-1)
        if not len(self._starts):
            return np.full(len(index), -1, dtype=np.int64)
        position = np.searchsorted(self._starts, index, side="right") - 1
        return np.where(position >= 0, self._values[position.clip(0)], -1).astype(np.int64)

    def __call__(self, index: Tensor | np.ndarray) -> list[str | None]:
        """The active text, or None, for each frame of `index` (b,), as in `batch["index"]`."""
        return [None if i < 0 else self.texts[i] for i in self.ids(index)]


def labels_by_index(dataset: LeRobotDatasetMetadata | str | Path) -> LabelLookup:
    """The lookup of the labels that are in a dataset's `language_persistent` column.

    Args:
        dataset: Its metadata, or its folder. May be a source, a copy or a companion.

    Returns:
        lookup, where `lookup(batch["index"])` gives a text or None per frame, as LeRobot's
        `active_at(t, style="coc")` would: from the row's frame until the next row or the end of the episode.

    Raises:
        FileNotFoundError: if the folder holds no data files.
    """
    root = Path(dataset.root) if isinstance(dataset, LeRobotDatasetMetadata) else Path(dataset)
    files = data_files(root)
    if not files:
        raise FileNotFoundError(f"{root}/data holds no parquet files: give the folder of a complete LeRobotDataset")
    return LabelLookup(_changes_in(files))


def _changes_in(files: list[Path]) -> Iterator[tuple[int, str | None]]:
    for path in files:
        file = open_parquet(path)
        if LANGUAGE_PERSISTENT not in file.schema_arrow.names:
            continue
        for start, rows, timestamps in _episodes_in(file):
            changes = {0: None}  # nothing of the episode before is active here
            for row in sorted(rows, key=lambda row: row["timestamp"]):
                if row["style"] == COC_STYLE:
                    changes[first_frame(timestamps, row["timestamp"])] = row["content"]
            for frame, text in sorted(changes.items()):
                yield start + frame, text


def _episodes_in(file: pq.ParquetFile) -> Iterator[tuple[int, list[dict], np.ndarray]]:
    """(`index` of the first frame, its persistent rows, all timestamps) of each episode of a data file."""
    columns = ["index", "episode_index", "timestamp", LANGUAGE_PERSISTENT]
    episode, start, rows, pieces = None, 0, [], []
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=columns):
        numbers = batch["episode_index"].to_numpy(zero_copy_only=False)
        timestamps = batch["timestamp"].to_numpy(zero_copy_only=False)
        bounds = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
        for low, high in zip(bounds[:-1], bounds[1:], strict=True):
            if numbers[low] != episode:
                if episode is not None:
                    yield start, rows, np.concatenate(pieces)
                episode, start, pieces = numbers[low], batch["index"][low].as_py(), []
                rows = batch[LANGUAGE_PERSISTENT][low].as_py() or []
            pieces.append(timestamps[low:high])
    if episode is not None:
        yield start, rows, np.concatenate(pieces)


def labels_from_jsonl(path: str | Path, dataset_meta: LeRobotDatasetMetadata) -> LabelLookup:
    """The lookup of the labels in a JSONL file: one of `coc-label`, or plain lines of `episode_index` and `coc_text`.

    Args:
        path: The file.
        dataset_meta: The dataset that the file labels.

    Returns:
        As `labels_by_index`; frames of episodes without a label have no text.

    Raises:
        StoreError: if the file is damaged, or labels episodes that the dataset does not have.
    """
    episodes = dataset_meta.episodes.with_format("numpy", columns=["dataset_from_index", "dataset_to_index"])[:]
    bounds = np.stack([episodes["dataset_from_index"], episodes["dataset_to_index"]], axis=1)
    starts: dict[int, list[tuple[float, str]]] = {}
    for _, episode, content in iter_lines(path):
        if not 0 <= episode < len(bounds):
            raise StoreError(
                f"{path}: labels episode {episode}, and {dataset_meta.repo_id!r} has {len(bounds)} episodes: it is the "
                "file of another dataset"
            )
        starts[episode] = [(0.0, content)] if isinstance(content, str) else label_starts(content)

    def changes() -> Iterator[tuple[int, str | None]]:
        for episode, (start, stop) in enumerate(bounds):
            timestamps = np.arange(stop - start) / dataset_meta.fps
            found: dict[int, str | None] = {0: None}
            for start_s, text in starts.get(episode, ()):
                found[first_frame(timestamps, start_s)] = text
            for frame, text in sorted(found.items()):
                yield int(start) + frame, text

    return LabelLookup(changes())
