"""Success rates out of what `lerobot-eval` writes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from world_modality_core.studies.evidence.wilson import wilson_interval


@dataclass
class Result:
    """Closed-loop episodes of one task, or of all.

    Attributes:
        task: Name of the task, or "all".
        successes: One truth value per episode, in the order of the seeds.
        videos: Files of the first episodes, in the same order.
    """

    task: str
    successes: list[bool]
    videos: list[Path]

    @property
    def rate(self) -> float:
        """Share of episodes that succeeded."""
        return sum(self.successes) / len(self.successes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson 95 % interval of the rate."""
        return wilson_interval(sum(self.successes), len(self.successes))

    @property
    def text(self) -> str:
        """Such as "9/12  75 % [47, 91]"."""
        low, high = self.interval
        n = len(self.successes)
        return f"{f'{sum(self.successes)}/{n}':>6} {self.rate:>6.0%} [{100 * low:.0f}, {100 * high:.0f}]"


def read_results(eval_dir: Path) -> list[Result]:
    """Results per task, then over all episodes.

    Args:
        eval_dir: The `--output_dir` of `lerobot-eval`.

    Raises:
        FileNotFoundError: if the evaluation has not finished.
    """
    info = json.loads((eval_dir / "eval_info.json").read_text())
    results = []
    for entry in info["per_task"]:
        task = entry["task_group"] if entry["task_id"] == 0 else f"{entry['task_group']} {entry['task_id']}"
        metrics = entry["metrics"]
        successes = [bool(success) for success in metrics["successes"]]
        results.append(Result(task, successes, [Path(video) for video in metrics.get("video_paths", [])]))
    everything = [success for result in results for success in result.successes]
    return [*results, Result("all", everything, [])]
