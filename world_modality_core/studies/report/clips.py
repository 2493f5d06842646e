"""Which rollouts to show: the same scene with two outcomes, side by side."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from world_modality_core.studies.evidence.comparable import ModelArm

SCENE = ["train_seed", "task", "seed"]


@dataclass(frozen=True)
class Clip:
    """One rollout.

    Attributes:
        side: Its model and arm, in words.
        outcome: "success" or "failure".
        steps: How long it took.
        path: Its video.
        label: All of this in words.
    """

    side: str
    outcome: str
    steps: int
    path: Path
    label: str


@dataclass(frozen=True)
class ClipPair:
    """Two rollouts of one scene, of which one succeeded."""

    task: str
    seed: int
    train_seed: int
    models: str
    clips: tuple[Clip, Clip]


def choose_clips(
    episodes: pd.DataFrame,
    sides: Sequence[tuple[ModelArm, ModelArm]],
    video_folders: Mapping[tuple[str, int, str], Path],
    max_videos: int,
    max_bytes: int,
) -> list[ClipPair]:
    """Choose scenes in which two sides disagree and both were filmed.

    Comparisons take turns; within one, scenes that only the first and only the second did take turns, so that the
    choice favours neither. No rollout is shown twice.

    Args:
        episodes: What `read_episodes` returned.
        sides: Comparisons, first to last.
        video_folders: Folder of the evaluation of (model, train_seed, arm).
        max_videos: At most so many videos.
        max_bytes: At most so many bytes of files.

    Returns:
        At most `max_videos` // 2 pairs.
    """
    filmed = episodes[episodes["video"].notna()] if len(episodes) else episodes
    if filmed.empty:
        return []
    queues = [_disagreements(filmed, *pair, video_folders) for pair in sides]
    chosen: list[ClipPair] = []
    n_bytes, taken = 0, set[Path]()
    while queues and 2 * len(chosen) + 2 <= max_videos:
        queue = queues.pop(0)
        for pair in queue:
            paths = {clip.path for clip in pair.clips}
            size = sum(path.stat().st_size for path in paths)
            if not paths & taken and n_bytes + size <= max_bytes:
                chosen.append(pair)
                taken |= paths
                n_bytes += size
                queues.append(queue)
                break
    return chosen


def _disagreements(
    filmed: pd.DataFrame, first: ModelArm, second: ModelArm, video_folders: Mapping[tuple[str, int, str], Path]
) -> Iterator[ClipPair]:
    sides = [filmed[(filmed["model"] == side.model) & (filmed["arm"] == side.arm)] for side in (first, second)]
    both = sides[0].merge(sides[1], on=[*SCENE, "init_hash"], suffixes=("", "_second"))
    only_first = both[both["success"] & ~both["success_second"]].sort_values(SCENE[::-1])
    only_second = both[~both["success"] & both["success_second"]].sort_values(SCENE[::-1])
    for i in range(max(len(only_first), len(only_second))):
        for rows in (only_first, only_second):
            if i < len(rows):
                row = rows.iloc[i]
                clips = [_clip(row, side, end, video_folders) for side, end in ((first, ""), (second, "_second"))]
                if None not in clips:
                    models = " ".join(sorted({first.model, second.model}))
                    yield ClipPair(row["task"], int(row["seed"]), int(row["train_seed"]), models, tuple(clips))


def _clip(row: pd.Series, side: ModelArm, end: str, video_folders: Mapping[tuple[str, int, str], Path]) -> Clip | None:
    folder = video_folders.get((side.model, int(row["train_seed"]), side.arm))
    if folder is None:
        return None
    path = (folder / row[f"video{end}"]).resolve()
    # A record names files of its own folder only.
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    outcome = "success" if row[f"success{end}"] else "failure"
    name, steps = f"{side.model}, {side.arm}", int(row[f"steps{end}"])
    label = f"{name}, task {row['task']}, scene {row['seed']}: {outcome} after {steps} steps"
    return Clip(name, outcome, steps, path, label)
