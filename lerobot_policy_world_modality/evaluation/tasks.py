"""What LeRobot's nested environments {group: {task_id: environment}} are called, without building them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lerobot.envs.configs import EnvConfig

from world_modality_core.io.errors import ConfigError

METAWORLD = ("metaworld", "metaworld_light")
LIBERO = ("libero", "libero_plus")


@dataclass(frozen=True)
class Task:
    """One task of an evaluation.

    Attributes:
        name: The environment's name for it (`push-v3`; LIBERO's file name).
        group: LeRobot's group: what `--env.task` named, a suite or a difficulty tier.
        task_id: Its number in the group.
        tier: Meta-World's difficulty, "" elsewhere.
    """

    name: str
    group: str
    task_id: int
    tier: str


def tasks_of(env: EnvConfig, envs: dict[str, dict[int, Any]]) -> list[Task]:
    """Name the tasks of `make_env`'s result, in its order.

    Raises:
        ConfigError: if a task is there twice.
    """
    tasks = [_task(env.type, group, i, len(members)) for group, members in envs.items() for i in members]
    names = [task.name for task in tasks]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"env.task={env.task!r} names {', '.join(twice)} more than once")
    return tasks


def _task(env_type: str, group: str, task_id: int, n_in_group: int) -> Task:
    if env_type in METAWORLD:
        from lerobot_policy_world_modality.envs.metaworld_light import SUITES

        name = SUITES.get(group, [group])[task_id].removeprefix("metaworld-")
        tier = next((tier for tier, members in SUITES.items() if name in members), "")
        return Task(name, group, task_id, tier)
    if env_type in LIBERO:
        from libero.libero import benchmark

        return Task(benchmark.get_benchmark_dict()[group]().get_task(task_id).name, group, task_id, "")
    return Task(group if n_in_group == 1 else f"{group}_{task_id}", group, task_id, "")
