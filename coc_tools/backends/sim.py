"""The `sim` backend: the true causal trace of Meta-World episodes that `wm-record` recorded. No model, no pictures.

An episode is played again from its seed and actions (with the recorder's own noise), which takes about 0.1 s. Only if
the states, rewards and successes are those that were recorded is it labelled; otherwise it is set aside with the first
frame that differs.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from importlib import metadata
from typing import Any, TypedDict

import numpy as np

from coc_tools.backends import BackendError, BackendUnusable, LabelRequest, Reply
from coc_tools.episodes import Episode, EpisodeReader
from coc_tools.schema import StepList
from world_modality_core.io.files import checked, read_json
from world_modality_core.io.home import how_to_install

RECORD_FILE = "meta/wm_record.json"
SEED, REWARD, SUCCESS = "episode_seed", "next.reward", "next.success"
STATE_TOLERANCE_M = 1e-5
"""States are stored as float32 and were equal bit for bit on one machine; another one may round differently."""
REWARD_TOLERANCE = 1e-3
"""Rewards run from 0 to 10 and depend on the objects, which the states do not show."""


class _Recording(TypedDict):
    """What is taken for granted of wm-record's file."""

    action_noise: float
    versions: dict[str, str]
    tasks: dict[str, dict]


class SimLabeller:
    """Labels recorded Meta-World episodes from the simulator's own state.

    Args:
        reader: a dataset of `wm-record`.

    Raises:
        BackendUnusable: Meta-World is not installed, or the dataset is no such recording.
    """

    name = "sim"
    model = "metaworld"
    needs_images = False
    n_workers = 1  # the physics is one process's; a scene is not shared between threads
    batch_size = 1  # so that an episode which cannot be played again fails alone

    def __init__(self, reader: EpisodeReader):
        try:
            from coc_tools.sim_scene import Scene
        except ModuleNotFoundError as error:
            raise BackendUnusable(
                f"backend=sim needs the package {error.name}: {how_to_install('metaworld')}"
            ) from error
        self._scene_class = Scene
        path = reader.root / RECORD_FILE
        if not path.is_file():
            raise BackendUnusable(
                f"backend=sim: {path} does not exist. Only recordings of wm-record can be played "
                "again; label other datasets with backend=endpoint or backend=local"
            )
        self._record = read_json(path, dict)
        missing = {SEED, REWARD, SUCCESS, "action", "observation.state"} - set(reader.small_columns)
        if missing:
            raise BackendUnusable(f"backend=sim: {reader.root} lacks {', '.join(sorted(missing))}; record it again")
        checked(_Recording, self._record, path)
        self.revision = ", ".join(f"{name} {metadata.version(name)}" for name in ("metaworld", "mujoco"))
        self.sampling: dict[str, Any] = {}
        self._scenes: dict[str, Any] = {}

    def label_many(self, requests: Sequence[LabelRequest]) -> list[Reply]:
        """Label episodes one after another.

        Raises:
            BackendError: an episode could not be played again as it was recorded.
        """
        return [Reply(self._label(request.episode).model_dump_json()) for request in requests]

    def close(self) -> None:
        """Free the physics."""
        for scene in self._scenes.values():
            scene.env.close()
        self._scenes.clear()

    def _label(self, episode: Episode) -> StepList:
        from coc_tools.sim_trace import trace_steps
        from coc_tools.sim_words import words_of

        seed = int(episode.table[SEED][0].as_py())
        differences = []
        for task in self._tasks(episode, seed):
            if task not in self._scenes:
                self._scenes[task] = self._scene_class(task)
            actions = executed_actions(episode.action, task, seed, self._record["action_noise"])
            states, rewards, trace = self._scenes[task].play(seed, actions)
            difference = _difference(episode, states, rewards, trace.is_success)
            if difference is None:
                return StepList(steps=trace_steps(trace, words_of(task), episode.fps))
            differences.append(f"{task}: {difference}")
        recorded = ", ".join(f"{name} {version}" for name, version in self._record["versions"].items())
        raise BackendError(
            f"episode {episode.index} (seed {seed}) played again is not what was recorded; {'; '.join(differences)}. "
            f"Recorded with {recorded}; here {self.revision}. Install the versions of the recording"
        )

    def _tasks(self, episode: Episode, seed: int) -> list[str]:
        """Which tasks it may be: several have one instruction, and only one of them ends in the recorded states."""
        tasks = [
            task
            for task, recorded in self._record["tasks"].items()
            if recorded["instruction"] == episode.task and seed in recorded["kept_seeds"]
        ]
        if not tasks:
            raise BackendError(
                f"episode {episode.index}: {RECORD_FILE} knows no recording of {episode.task!r} with seed {seed}"
            )
        return tasks


def executed_actions(labels: np.ndarray, task: str, seed: int, noise: float) -> np.ndarray:
    """What `wm-record` executed: the recorded action, plus the noise that it drew from the task and the seed.

    Args:
        labels: (n, 4) float32 recorded actions.
        task: Meta-World's name.
        seed: of the episode.
        noise: its `--action_noise`.

    Returns:
        (n, 4) float32.
    """
    if noise == 0:
        return labels
    rng = np.random.default_rng([seed, zlib.crc32(task.encode())])
    return np.stack([np.clip(row + rng.normal(0.0, noise, row.shape), -1.0, 1.0) for row in labels]).astype(np.float32)


def _difference(episode: Episode, states: np.ndarray, rewards: np.ndarray, is_success: np.ndarray) -> str | None:
    """Where an episode that was played again first differs from the recorded one; None if it does not.

    Args:
        episode: the recorded one, of n frames.
        states: (n + 1, 4).
        rewards: (n,).
        is_success: (n + 1,), the first for the start.
    """
    success = episode.column(SUCCESS)[:, 0] > 0.5
    checks = {
        "observation.state": np.abs(states[:-1] - episode.state).max(axis=1) > STATE_TOLERANCE_M,
        REWARD: np.abs(rewards - episode.column(REWARD)[:, 0]) > REWARD_TOLERANCE,
        SUCCESS: is_success[1:] != success,
    }
    first = {name: int(np.flatnonzero(wrong)[0]) for name, wrong in checks.items() if wrong.any()}
    if not first:
        return None
    name = min(first, key=first.get)
    return f"{name} differs from frame {first[name]} on"
