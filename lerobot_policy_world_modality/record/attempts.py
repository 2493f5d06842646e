"""Which scenes of a task were tried, and which are still to try."""

from __future__ import annotations

from pathlib import Path

from world_modality_core.io.errors import ConfigError


def episode_folder(staging: Path, task: str, seed: int) -> Path:
    """Where a kept episode is staged, as a dataset; beside it `<seed>.json` says what became of the attempt."""
    return staging / task / f"{seed:06d}"


class Attempts:
    """Which seeds of one task were tried, and which are still to try.

    Seeds count up from `start_seed`; every failure asks for one more. The kept episodes are the first `n_episodes`
    successes, in whatever order the attempts were made.
    """

    def __init__(self, task: str, start_seed: int, n_episodes: int):
        self.task, self.start_seed, self.n_episodes = task, start_seed, n_episodes
        self.outcomes: dict[int, dict] = {}

    def seeds(self) -> range:
        """The seeds to try, as far as is known now: as many as episodes wanted and failures among these seeds."""
        n = self.n_episodes
        while (wanted := self.n_episodes + len(self._failed(n))) > n:
            n = wanted
        return range(self.start_seed, self.start_seed + n)

    def missing(self) -> list[int]:
        return [seed for seed in self.seeds() if seed not in self.outcomes]

    def kept(self) -> list[int]:
        return [s for s in self.seeds() if s in self.outcomes and self.outcomes[s]["success"]]

    def failed(self) -> list[int]:
        return self._failed(len(self.seeds()))

    def add(self, outcome: dict) -> None:
        """Raises ConfigError when the expert hardly ever succeeds."""
        self.outcomes[outcome["seed"]] = outcome
        n_tried, n_kept = len(self.outcomes), len(self.kept())
        if n_tried >= 20 and n_kept < 0.1 * n_tried:
            raise ConfigError(
                f"task {self.task}: the expert succeeded in {n_kept} of {n_tried} scenes. "
                "Lower --action_noise, raise --env.episode_length, or leave this task out."
            )

    def _failed(self, n: int) -> list[int]:
        seeds = range(self.start_seed, self.start_seed + n)
        return [s for s in seeds if s in self.outcomes and not self.outcomes[s]["success"]]
