"""Which episodes are labelled: drawn per training seed, the same for all models of a seed."""

from __future__ import annotations

import numpy as np

from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix.study import Draw


def read_tasks(draw: Draw) -> list[str]:
    """The task of each episode of the dataset that is drawn from.

    Raises:
        ConfigError: if the dataset can't be read, or an episode has several tasks.
    """
    from lerobot.datasets import LeRobotDatasetMetadata

    name = draw.root or draw.repo_id
    try:
        episodes = LeRobotDatasetMetadata(draw.repo_id or "study/episodes", root=draw.root).episodes
    except Exception as error:
        raise ConfigError(
            f"episodes.draw: the dataset {name!r} can't be read ({type(error).__name__}: {error}); record it first, or "
            "name another root"
        ) from error
    tasks = [list(each) for each in episodes["tasks"]]
    several = [i for i, each in enumerate(tasks) if len(each) != 1]
    if several:
        raise ConfigError(f"episodes.draw: episode {several[0]} of {name!r} has several tasks: {tasks[several[0]]}")
    if unknown := sorted(set(draw.tasks or ()) - {each[0] for each in tasks}):
        known = ", ".join(sorted({repr(each[0]) for each in tasks}))
        raise ConfigError(f"episodes.draw.tasks: {unknown[0]!r} is no task of {name!r}; it has {known}")
    return [each[0] for each in tasks]


def draw_episodes(draw: Draw, tasks: list[str], seed: int) -> tuple[list[int], list[int]]:
    """Draw the episodes of a training seed.

    Args:
        draw: How many.
        tasks: The task of each episode.
        seed: The training seed.

    Returns:
        Indices of the labelled and of the unlabelled episodes, both sorted.

    Raises:
        ConfigError: if a task has too few.
    """
    rng = np.random.default_rng(seed)
    labelled, unlabelled = [], []
    further = draw.unlabelled_per_task
    for task in sorted(set(draw.tasks or tasks)):
        indices = rng.permutation([i for i, each in enumerate(tasks) if each == task])
        needed = draw.per_task + (further or 0)
        if len(indices) < needed:
            raise ConfigError(
                f"episodes.draw: {needed} episodes of {task!r} are asked for, the dataset has {len(indices)}"
            )
        labelled += indices[: draw.per_task].tolist()
        unlabelled += indices[draw.per_task : None if further is None else needed].tolist()
    return sorted(labelled), sorted(unlabelled)
