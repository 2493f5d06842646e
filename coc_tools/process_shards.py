"""Several processes that label one dataset, under `accelerate launch`.

The first process writes the label file, the others write parts beside it, which the first one takes over: when all are
done, or, after a kill, at the start of the next run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from coc_tools.store import LabelFile, failed_path, read_failures
from world_modality_core.io.processes import join_processes, wait_for_everyone


class ProcessShards:
    """This process's shard of the work; all of it when there is only one process.

    Attributes:
        is_first: Whether this process plans, prints and writes.
    """

    def __init__(self, is_needed: bool, device: str | None = None) -> None:
        """Look how many processes there are.

        Args:
            is_needed: Whether the backend can use more than one.
            device: Where it was asked to run.
        """
        self._state = join_processes(device)[0] if is_needed else None
        self.is_first = self._state is None or self._state.is_main_process

    def part_path(self, labels: Path) -> Path:
        """Where this process writes its labels if it is not the first one."""
        return labels.with_name(f"{labels.stem}.part{self._state.process_index}.jsonl")

    def shard(self, episodes: Sequence[int]) -> list[int]:
        """Every n-th episode, for n processes."""
        if self._state is None:
            return list(episodes)
        return list(episodes)[self._state.process_index :: self._state.num_processes]

    def collect_parts(self, labels: LabelFile) -> None:
        """Move the parts of other processes into the label file; none of them may be at work."""
        is_part = re.compile(rf"({re.escape(labels.path.stem)}\.part\d+)(\.failed)?\.jsonl").fullmatch
        stems = {match[1] for path in labels.path.parent.iterdir() if (match := is_part(path.name))}
        for part in sorted(labels.path.parent / f"{stem}.jsonl" for stem in stems):
            with LabelFile(part) as theirs:
                for episode, label in theirs.items():
                    if episode not in labels:
                        labels.append(label)
                for failure in read_failures(part).values():
                    labels.append_failure(failure)
            part.unlink(missing_ok=True)
            failed_path(part).unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until all processes have come to this place."""
        if self._state is not None:
            wait_for_everyone(self._state)

    def leave(self) -> None:
        """End what processes wait for one another by: left to the interpreter's end, it may hang there."""
        if self._state is not None:
            self._state.destroy_process_group()
