"""Memories that a policy predicted while it was left alone: what the arms that exchange memories draw from."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import read_tensors, writing
from world_modality_core.memory.sources import EXCHANGING_SOURCES, MemorySource, may_show

FOLDER = "memory_bank"


class MemoryBank:
    """The memories of the first scenes of each task, one file per scene: <folder>/<task>/<seed>.safetensors.

    Args:
        folder: The evaluation's folder.
        scenes: (task, seed) of all scenes that are to be kept.
    """

    def __init__(self, folder: Path, scenes: list[tuple[str, int]]):
        self._folder = folder / FOLDER
        self.scenes = scenes

    def save(self, task: str, seed: int, memories: Tensor) -> None:
        """Keep the memories of an episode, once and for all.

        Args:
            task, seed: The scene.
            memories: (n_plans, m, d) of all its plans; stored as fp16.

        Raises:
            FileExistsError: if the scene's memories exist: what other arms read never changes.
        """
        path = self._path(task, seed)
        if path.exists():
            raise FileExistsError(f"{path} exists: the memories of a scene are kept once")
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as aside:
            save_file({"memories": memories.half().contiguous().cpu()}, aside)

    def load(self, task: str, seed: int) -> Tensor:
        """(n_plans, m, d) fp16 memories of an episode."""
        return read_tensors(self._path(task, seed), ["memories"])["memories"]

    def drop_unfinished(self, done: Collection[tuple[str, int]]) -> None:
        """Drop the memories of a batch that was cut off before its rows were written: its episodes are run again.

        Args:
            done: (task, seed) that `intact` has run.
        """
        for scene in self.scenes:
            if scene not in done:
                self._path(*scene).unlink(missing_ok=True)

    def check_holds(self, done: Collection[tuple[str, int]]) -> None:
        """Refuse scenes whose memories were not kept, as when `intact` ran without the arms that exchange memories.

        Args:
            done: (task, seed) that `intact` has run.

        Raises:
            ConfigError: if the bank lacks one of them.
        """
        ran = [scene for scene in self.scenes if scene in done]
        missing = [f"{task} {seed}" for task, seed in ran if not self._path(task, seed).exists()]
        if missing:
            raise ConfigError(
                f"{self._folder} lacks the memories of {len(missing)} scenes ({missing[0]}, ...): arms that exchange "
                f"memories ({', '.join(EXCHANGING_SOURCES)}) need those that intact predicted, and intact was run here "
                "without such an arm; give another --output_dir, with intact among the arms"
            )

    def draw_scene(self, arm: str, task: str, seed: int, draw_seed: int) -> tuple[str, int]:
        """Draw the scene whose memories another scene is shown; the same at each call.

        Args:
            arm: One that exchanges memories.
            task, seed: The scene that is shown them.
            draw_seed: Seed of the draw.
        """
        partner = MemorySource(arm).traits.partner
        allowed = [scene for scene in self.scenes if may_show(partner, scene != (task, seed), scene[0] == task)]
        # The highest lot wins: a scene more or less in the bank moves only the draws that it wins or won.
        return max(allowed, key=lambda scene: pinned_number(draw_seed, arm, task, seed, *scene))

    def _path(self, task: str, seed: int) -> Path:
        return self._folder / task.replace("/", "_") / f"{seed}.safetensors"


def pinned_number(*parts: str | int) -> int:
    """A number in [0, 2^63) that depends on `parts` alone: on any machine, in any order of work."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def pinned_generator(*parts: str | int) -> torch.Generator:
    """A CPU source of draws that depends on `parts` alone."""
    return torch.Generator().manual_seed(pinned_number(*parts))
