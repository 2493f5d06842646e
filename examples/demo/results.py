"""Success rates out of what `wm-eval` writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from world_modality_core.studies.evidence.episode_records import read_episodes
from world_modality_core.studies.evidence.wilson import wilson_interval


@dataclass
class Result:
    """Closed-loop episodes of one task, or of all.

    Attributes:
        task: Name of the task, or "all".
        successes: One truth value per episode, in the order of the seeds.
        videos: Films of the first episodes, in the same order.
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


def read_results(eval_dir: Path, arm: str = "intact") -> list[Result]:
    """Results per task, then over all episodes.

    Args:
        eval_dir: The `--output_dir` of a `wm-eval` that has finished.
        arm: What was done to the memory.
    """
    rows = read_episodes(eval_dir)
    rows = rows[rows["arm"] == arm].sort_values("seed")
    results = []
    for task, episodes in rows.groupby("task", sort=False):
        videos = [eval_dir / video for video in episodes["video"].dropna()]
        results.append(Result(str(task), [bool(success) for success in episodes["success"]], videos))
    return [*results, Result("all", [success for result in results for success in result.successes], [])]
