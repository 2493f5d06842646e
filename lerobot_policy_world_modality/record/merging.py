"""The recorded episodes become one dataset, which appears complete or not at all."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

from lerobot_policy_world_modality.record.attempts import Attempts, episode_folder
from world_modality_core.io.files import move_durably, read_json, write_text

RECORD_FILE = Path("meta/wm_record.json")
MERGED = "merged"
"""Folder of the staging folder in which episodes are merged."""
MERGE_AT_ONCE = 16
"""LeRobot's merge rewrites its output for every source: 16 at a time, then the results, instead of n^2/2 episodes."""


def merge_recording(attempts: list[Attempts], staging: Path, root: Path, repo_id: str, request: dict) -> None:
    """Merge the kept episodes, in the order of tasks and seeds, and put the dataset in its place.

    Args:
        attempts, staging: What was recorded, and where.
        root: Where the dataset is to appear; nothing is there, or an empty folder.
        repo_id: What it is called.
        request: What was asked for; written beside the data, with what came of it.
    """
    sources = [episode_folder(staging, a.task, seed) for a in attempts for seed in a.kept()]
    merged = merge_episodes(sources, repo_id, staging / MERGED)
    n_merged = read_json(merged / "meta/info.json", dict)["total_episodes"]
    if n_merged != len(sources):
        raise RuntimeError(f"{merged} has {n_merged} episodes of the {len(sources)} that were recorded")
    instructions = request.pop("instructions")
    report = {a.task: _task_report(a, instructions[a.task]) for a in attempts}
    write_text(merged / RECORD_FILE, json.dumps(request | {"tasks": report}, indent=1))
    root.parent.mkdir(parents=True, exist_ok=True)
    if root.exists():
        root.rmdir()
    move_durably(merged, root)
    _print_report(report, root)


def merge_episodes(sources: list[Path], repo_id: str, folder: Path) -> Path:
    """Merge datasets of one episode each into one, in their order.

    Args:
        sources: Their roots.
        repo_id: What the result is called.
        folder: Where to work; what is there is removed.

    Returns:
        The result's root, in `folder`.
    """
    import av
    from lerobot.datasets.aggregate import aggregate_datasets

    shutil.rmtree(folder, ignore_errors=True)
    print(f"Merging {len(sources)} episodes ...")
    level = 0
    av.logging.set_libav_level(av.logging.ERROR)
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar per merge
        while level == 0 or len(sources) > 1:
            groups = [sources[i : i + MERGE_AT_ONCE] for i in range(0, len(sources), MERGE_AT_ONCE)]
            sources = [folder / f"{level}" / f"{i}" for i in range(len(groups))]
            for group, target in zip(groups, sources, strict=True):
                aggregate_datasets([repo_id] * len(group), repo_id, group, target)
            level += 1
    stats = sources[0] / "meta/stats.json"
    # LeRobot's merge goes through the features in the order of a set, another one in each process.
    write_text(stats, json.dumps(read_json(stats, dict), indent=4, sort_keys=True))
    return sources[0]


def _task_report(attempts: Attempts, instruction: str) -> dict:
    kept, failed = attempts.kept(), attempts.failed()
    n_frames = sum(attempts.outcomes[seed]["n_frames"] for seed in kept)
    return {
        "instruction": instruction,
        "n_kept": len(kept),
        "n_failed": len(failed),
        "mean_frames": n_frames / len(kept),
        "kept_seeds": kept,
        "failed_seeds": failed,
    }


def _print_report(report: dict[str, dict], root: Path) -> None:
    print(f"{'task':<30} {'kept':>5} {'failed':>7} {'expert succeeded':>17} {'mean frames':>12}")
    for task, row in report.items():
        rate = row["n_kept"] / (row["n_kept"] + row["n_failed"])
        print(f"{task:<30} {row['n_kept']:>5} {row['n_failed']:>7} {rate:>16.0%} {row['mean_frames']:>13.1f}")
    print(f"Recorded {sum(r['n_kept'] for r in report.values())} episodes into {root}")
