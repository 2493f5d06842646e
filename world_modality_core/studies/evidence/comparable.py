"""What may be compared: the same scenes, seen the same way, acted in the same way. Everything else is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import pandas as pd

from world_modality_core.io.errors import UserError

SAME = ("env", "env_hash", "renderer", "image_height", "image_width", "episode_length", "n_action_steps")
"""Columns that must have one and the same value in all episodes of a task."""

SAME_IF_KNOWN = ("mujoco",)
"""As `SAME`, but older records don't have them."""

TRAINED_ALIKE = ("dataset", "dataset_hash", "episodes", "samples")
"""What a parameter-matched control must share with its model, for each training seed."""

MATCHED_WITHIN = 0.1
"""A parameter-matched control may have so many more or fewer trainable parameters than its model, as a share."""

OUTCOMES = {
    "success": ["success"],
    "time": ["success", "speed"],
    "reward": ["sum_reward"],
    "smoothness": ["success", "smoothness"],
}
"""What may be compared -> the columns that decide who did better in a pair, the first that differs; `speed` is minus
the steps of an episode that succeeded, `smoothness` minus its `action_jerk`."""

_SCENE = ["task", "seed"]
_KEY = ["train_seed", *_SCENE]
_COLUMNS = ["model", "arm", *_KEY, "init_hash", "instruction", "checkpoint", "tier", *SAME, *SAME_IF_KNOWN]
_COLUMNS += ["success", "sum_reward", "weights"]

_DONE = ["success", "speed", "sum_reward"]
_TELLING = 5
"""Rows of `_DONE` that differ, from which on two policies that agree in all of them are one."""


class NotComparableError(UserError):
    """Episodes that must not be compared; the message names what differs, its values and the remedy."""


@dataclass(frozen=True)
class ModelArm:
    """One side of a comparison: what was trained, and what was done to it at test time."""

    model: str
    arm: str

    def __str__(self) -> str:
        return f"{self.model}/{self.arm}"


@dataclass(frozen=True)
class TaskPairs:
    """The paired episodes of one task."""

    task: str
    tier: str
    # (n_scenes,) seeds of the scenes, ascending.
    seeds: np.ndarray
    # (n_runs, n_scenes) bool: who succeeded; where another outcome is compared, who did better than the other.
    first: np.ndarray
    second: np.ndarray

    @property
    def difference(self) -> np.ndarray:
        """(n_runs, n_scenes) int8: 1 where only the first succeeded, -1 where only the second, else 0."""
        return self.first.astype(np.int8) - self.second.astype(np.int8)


@dataclass(frozen=True)
class Pairs:
    """Two sides on the very same scenes, for each training seed."""

    first: ModelArm
    second: ModelArm
    train_seeds: tuple[int, ...]
    tasks: tuple[TaskPairs, ...]
    # Episodes of the two sides that were left out to keep the scenes that all have; 0 unless asked for.
    n_left_out: int = 0
    # Per task the rates, over the training seeds, of the scenes that the first alone has, (n,), and the second, (m,).
    alone: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    def in_order(self, n_planned: int = 0) -> np.ndarray:
        """(n, n_runs) differences of the scenes: the first of every task, then the second, ...

        An order that is fixed before any outcome is known and in which every task has its share at all times. While
        there are fewer pairs than planned, it ends with the last scene that all tasks have: others that come later
        would change what stands before them.
        """
        lengths = [len(task.seeds) for task in self.tasks]
        n_scenes = min(lengths) if sum(lengths) * len(self.train_seeds) < n_planned else max(lengths)
        return np.stack([task.difference[:, i] for i in range(n_scenes) for task in self.tasks if i < len(task.seeds)])


def rows_of(episodes: pd.DataFrame, side: ModelArm) -> pd.DataFrame:
    """The episodes of one side."""
    is_its = (episodes["model"] == side.model).to_numpy() & (episodes["arm"] == side.arm).to_numpy()
    return episodes.take(np.flatnonzero(is_its))


def pair(
    episodes: pd.DataFrame, first: ModelArm, second: ModelArm, common_scenes: bool = False, outcome: str = "success"
) -> Pairs:
    """Pair the episodes of two sides.

    Args:
        episodes: Rows with the columns of `EPISODE_SCHEMA`.
        first: One side.
        second: The other.
        common_scenes: Leave out scenes and training seeds that not both sides have for all training seeds, rather than
            refuse.
        outcome: One of `OUTCOMES`.

    Returns:
        The pairs: per task the same scenes for all training seeds.

    Raises:
        NotComparableError: naming everything that differs.
    """
    sides = {}
    for side in (first, second):
        rows = rows_of(episodes, side)
        if rows.empty:
            raise NotComparableError(f"{side} has no episodes; those of {_list(_names(episodes))} were read")
        if rows["success"].dtype != bool:
            raise NotComparableError(
                f"{side}: success is {rows['success'].dtype}, expected True or False and nothing else"
            )
        if outcome == "reward" and (n := int(rows["sum_reward"].isna().sum())):
            raise NotComparableError(f"{side}: sum_reward is no number in {n} of {len(rows)} episodes")
        sides[side] = rows = rows[_COLUMNS].assign(
            speed=-rows["steps"].astype(float).where(rows["success"], np.inf),
            smoothness=-rows["action_jerk"].astype(float).where(rows["success"], np.inf),
        )
        if outcome == "smoothness" and (n := int(rows["smoothness"].isna().sum())):
            raise NotComparableError(
                f"{side}: how smooth the motion was isn't recorded in {n} of {len(rows)} episodes (action_jerk is "
                "empty): they are older than that column; evaluate again, or choose another outcome"
            )
        if outcome == "time" and (n := int((rows["speed"] == 0).sum())):
            raise NotComparableError(
                f"{side}: steps is 0 in {n} of {len(rows)} episodes: nobody counted them; choose another outcome"
            )
    a, b = sides[first], sides[second]
    problems = [*_duplicates(sides), *_differing_fields(sides), *_differing_checkpoints(first, a, second, b)]
    problems += [*_relabelled(first, a, second, b), *_repeated_scenes(sides, common_scenes)]
    problems += _same_runs(sides)
    if common_scenes:
        one_of_each = ["train_seed", "task", "init_hash"]
        a, b = (rows.sort_values("seed").drop_duplicates(one_of_each) for rows in (a, b))
    both = a.merge(b, on=_KEY, suffixes=("", "_second"))
    done = both[_DONE].to_numpy(dtype=float), both[[f"{name}_second" for name in _DONE]].to_numpy(dtype=float)
    if first.model != second.model and not problems and _is_one_policy(*done):
        problems.append(f"both did the very same in all {len(both)} episodes: two labels make no two policies")
    moved = both[both["init_hash"] != both["init_hash_second"]]
    if len(moved):
        row = moved.iloc[0]
        problems.append(
            f"the initial states of {len(moved)} of {len(both)} scenes differ, the first task={row['task']} "
            f"seed={row['seed']}: init_hash={row['init_hash']} and {row['init_hash_second']}"
        )
    told = both.dropna(subset=["instruction", "instruction_second"])  # older records don't say
    told = told[told["instruction"] != told["instruction_second"]]
    if len(told):
        row = told.iloc[0]
        problems.append(
            f"the instructions of {len(told)} of {len(both)} scenes differ, the first task={row['task']} "
            f"seed={row['seed']}: {row['instruction']!r} and {row['instruction_second']!r}"
        )
    problems += _moving_scenes(sides)
    if not problems:
        problems = (_holes if common_scenes else _differing_sets)(first, a, second, b)
    if problems:
        raise NotComparableError(f"{first} and {second} can't be compared: {'; '.join(problems)}")
    kept, alone = both, ()
    if common_scenes:
        # A scene stays if both sides have it for every training seed that they share.
        train_seeds = both["train_seed"].nunique()
        kept = both[both.groupby(_SCENE)["train_seed"].transform("nunique") == train_seeds]
        if kept.empty:
            raise NotComparableError(
                f"{first} and {second} can't be compared: the two have no scene in common for all training seeds "
                f"({_list(sorted(set(a['train_seed'])))} and {_list(sorted(set(b['train_seed'])))})"
            )
        alone = _alone(a, b, kept) if outcome == "success" else ()
    pairs = _to_pairs(first, second, _decided(kept, outcome), len(a) + len(b) - 2 * len(kept))
    return replace(pairs, alone=alone)


def _alone(a: pd.DataFrame, b: pd.DataFrame, kept: pd.DataFrame) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Per task, the success rates of the scenes that one side alone has, and has for every common training seed."""
    train_seeds, rates = kept["train_seed"].unique(), []
    for side, other in ((a, b), (b, a)):
        rows = side[side["train_seed"].isin(train_seeds)]
        rows = rows.merge(other[_SCENE].drop_duplicates(), how="left", indicator=True)
        of_scene = rows[rows["_merge"] == "left_only"].groupby(_SCENE)["success"].agg(["size", "mean"])
        rates.append(of_scene.loc[of_scene["size"] == len(train_seeds), "mean"])
    tasks = sorted(kept["task"].unique())
    return tuple(tuple(rate[rate.index.get_level_values("task") == t].to_numpy(float) for rate in rates) for t in tasks)


def _decided(rows: pd.DataFrame, outcome: str) -> pd.DataFrame:
    """Pairs with who succeeded, or for another outcome who did better, in `first_did` and `second_did`."""
    if outcome == "success":
        return rows.assign(first_did=rows["success"], second_did=rows["success_second"])
    sign = np.zeros(len(rows))
    for name in OUTCOMES[outcome]:
        mine, its = rows[name].to_numpy(dtype=float), rows[f"{name}_second"].to_numpy(dtype=float)
        sign = np.where(sign == 0, np.where(mine == its, 0, np.where(mine > its, 1, -1)), sign)
    return rows.assign(first_did=sign > 0, second_did=sign < 0)


def _to_pairs(first: ModelArm, second: ModelArm, rows: pd.DataFrame, n_left_out: int) -> Pairs:
    train_seeds = tuple(int(seed) for seed in sorted(rows["train_seed"].unique()))
    tasks = []
    for task, of_task in rows.sort_values(["train_seed", "seed"]).groupby("task", sort=True):
        shape = (len(train_seeds), len(of_task) // len(train_seeds))
        tasks.append(
            TaskPairs(
                task=str(task),
                tier=str(of_task["tier"].iloc[0]),
                seeds=of_task["seed"].to_numpy()[: shape[1]],
                first=of_task["first_did"].to_numpy(dtype=bool).reshape(shape),
                second=of_task["second_did"].to_numpy(dtype=bool).reshape(shape),
            )
        )
    return Pairs(first, second, train_seeds, tuple(tasks), n_left_out)


def _names(episodes: pd.DataFrame) -> list[str]:
    return sorted({f"{model}/{arm}" for model, arm in zip(episodes["model"], episodes["arm"], strict=True)})


def _duplicates(sides: dict[ModelArm, pd.DataFrame]) -> list[str]:
    problems = []
    for side, rows in sides.items():
        twice = rows[rows.duplicated(_KEY)]
        if len(twice):
            row = twice.iloc[0]
            problems.append(
                f"{side} has {len(twice)} episodes more than once, the first train_seed={row['train_seed']} "
                f"task={row['task']} seed={row['seed']}: keep one evaluation of them"
            )
    return problems


def _differing_fields(sides: dict[ModelArm, pd.DataFrame]) -> list[str]:
    problems = []
    together = pd.concat(sides.values())
    for name in (*SAME, *SAME_IF_KNOWN):
        if together[name].nunique() < 2:
            continue
        n_values = together.groupby("task")[name].nunique()
        if (n_values > 1).any():
            task = n_values.idxmax()
            seen = " and ".join(
                f"{_list(sorted(rows.loc[rows['task'] == task, name].dropna().unique()))} ({side})"
                for side, rows in sides.items()
            )
            problems.append(f"{name} is {seen}, in task={task}: evaluate both with the same")
    return problems


def _differing_checkpoints(first: ModelArm, a: pd.DataFrame, second: ModelArm, b: pd.DataFrame) -> list[str]:
    """Arms of one model must come from the same checkpoint; a model has one checkpoint per training seed."""
    problems = []
    groups = [a, b] if first.model != second.model else [pd.concat([a, b])]
    for rows in groups:
        for train_seed, hashes in _several(rows, ["train_seed"], "checkpoint"):
            problems.append(
                f"{rows['model'].iloc[0]} with train_seed={train_seed[0]} was evaluated from several checkpoints "
                f"({_list(hashes)}): evaluate one, or give them distinct --model labels"
            )
    return problems


def _relabelled(first: ModelArm, a: pd.DataFrame, second: ModelArm, b: pd.DataFrame) -> list[str]:
    """A checkpoint is one training run of one model, whatever it is called."""
    problems = []
    for side, rows in ((first, a), (second, b)):
        for name in ("checkpoint", "weights"):  # older records don't have the second
            for (value,), seeds in _several(rows[rows[name].notna()], [name], "train_seed"):
                problems.append(
                    f"{side} has the same {name} ({str(value)[:12]}) as train_seed={_list(seeds)}: one training run "
                    "counts once, keep one of them"
                )
    same = set(a["checkpoint"]) & set(b["checkpoint"])
    if first.model != second.model and same:
        problems.append(f"both are the same checkpoint ({min(same)[:12]}): two labels make no two models")
    return problems


def _same_runs(sides: dict[ModelArm, pd.DataFrame]) -> list[str]:
    """Training runs that do the very same in every scene are one, whatever their hashes: a copy with another config."""
    problems = []
    for side, rows in sides.items():
        wide = rows.drop_duplicates(_KEY).pivot(index=_SCENE, columns="train_seed", values=_DONE)
        runs = wide.to_numpy(dtype=float).reshape(len(wide), len(_DONE), -1)  # NaN where a run lacks a scene
        for i, j in combinations(range(runs.shape[2]), 2):
            one, other = (runs[~np.isnan(runs[:, 0, [i, j]]).any(axis=1), :, k] for k in (i, j))
            if _is_one_policy(one, other):
                seeds = wide.columns.levels[1]
                problems.append(
                    f"{side} did the very same as train_seed={seeds[i]} and {seeds[j]}, in all {len(one)} scenes: one "
                    "training run counts once, keep one of them"
                )
    return problems


def _is_one_policy(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether what was done (n episodes, `_DONE`) is all alike, and different enough from scene to scene to tell."""
    return bool((one == other).all()) and len(np.unique(one, axis=0)) >= _TELLING


def _repeated_scenes(sides: dict[ModelArm, pd.DataFrame], common_scenes: bool) -> list[str]:
    """Scenes of a task that begin alike are one scene, whatever their seeds."""
    problems = []
    for side, rows in sides.items():
        begins_alike = rows.duplicated(["train_seed", "task", "init_hash"])
        if common_scenes or not begins_alike.any():
            continue
        again = rows[begins_alike & ~rows.duplicated(_KEY)]
        if len(again):
            row = again.iloc[0]
            problems.append(
                f"{side} has {len(again)} scenes that begin as another one of their task does, the first "
                f"task={row['task']} seed={row['seed']}: give --common_scenes to keep one of each"
            )
    return problems


def _holes(first: ModelArm, a: pd.DataFrame, second: ModelArm, b: pd.DataFrame) -> list[str]:
    """What a side lacks must be a beginning, an end or a training seed: episodes in between may have been picked."""
    problems = []
    for side, rows, other in ((first, a, b), (second, b, a)):
        for (train_seed, task), of_task in rows.groupby(["train_seed", "task"]):
            known = other.loc[(other["task"] == task) & (other["train_seed"] == train_seed), "seed"]
            lacking = set(known[known.between(of_task["seed"].min(), of_task["seed"].max())]) - set(of_task["seed"])
            if lacking:
                problems.append(
                    f"{side} with train_seed={train_seed} lacks {len(lacking)} scenes in between, the first "
                    f"task={task} seed={min(lacking)}: --common_scenes forgives evaluations that "
                    "stopped early, not episodes that were taken out; evaluate them (wm-eval resumes)"
                )
                break
    return problems


def check_matched(episodes: pd.DataFrame, model: str, matched: str) -> tuple[list[str], list[str]]:
    """Whether a model can be the parameter-matched control of another.

    Args:
        episodes: Rows with the columns of `EPISODE_SCHEMA`.
        model: The model with memory.
        matched: Its control.

    Returns:
        Why it can't, and what isn't known or differs without ruling it out.
    """
    a, b = (episodes[episodes["model"] == name] for name in (model, matched))
    seeds = sorted(set(a["train_seed"]) & set(b["train_seed"]))
    problems, notes, unknown = [], [], set()
    for name in (*TRAINED_ALIKE, "train_steps"):
        of_a, of_b = (
            rows.drop_duplicates("train_seed").set_index("train_seed")[name].reindex(seeds) for rows in (a, b)
        )
        known = of_a.notna() & of_b.notna()
        if not known.all():
            unknown.add(name)
        differing = [seed for seed in seeds if known[seed] and of_a[seed] != of_b[seed]]
        if differing:
            seed = differing[0]
            text = f"{name} is {_short(of_a[seed])} ({model}) and {_short(of_b[seed])} ({matched}) at train_seed={seed}"
            (problems if name in TRAINED_ALIKE else notes).append(text)
    sees = [rows["sees"].dropna().unique() for rows in (a, b)]
    if all(map(len, sees)) and (sees[0][0] == "no images") != (sees[1][0] == "no images"):
        problems.append(f"{model} sees {sees[0][0]}, {matched} sees {sees[1][0]}")
    sizes = [rows["n_trainable"].dropna().unique() for rows in (a, b)]
    if not all(map(len, sizes)):
        unknown.add("n_trainable")
    elif abs(sizes[1][0] / sizes[0][0] - 1) > MATCHED_WITHIN:
        problems.append(f"{matched} has {sizes[1][0]:,.0f} trainable parameters, {model} {sizes[0][0]:,.0f}")
    if unknown:
        notes.append(f"not recorded, and so not checked: {', '.join(sorted(unknown))} of {model} or {matched}")
    return problems, notes


def _short(value) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _moving_scenes(sides: dict[ModelArm, pd.DataFrame]) -> list[str]:
    """A scene must be the same for all training seeds of a side."""
    problems = []
    for side, rows in sides.items():
        moved = _several(rows, _SCENE, "init_hash")
        if moved:
            (task, seed), hashes = moved[0]
            problems.append(
                f"{side} saw {len(moved)} scenes with another initial state in another training seed's evaluation, the "
                f"first task={task} seed={seed}: init_hash={_list(hashes)}"
            )
    return problems


def _several(rows: pd.DataFrame, keys: list[str], column: str) -> list[tuple[tuple, list]]:
    """(values of the keys, values of the column) where the column has several values for the same keys."""
    values = rows[[*keys, column]].drop_duplicates()
    values = values[values.duplicated(keys, keep=False)]
    return [(key, sorted(of_key[column])) for key, of_key in values.groupby(keys)]


def _differing_sets(first: ModelArm, a: pd.DataFrame, second: ModelArm, b: pd.DataFrame) -> list[str]:
    """Both sides must have all scenes, for all training seeds of both."""
    seeds_a, seeds_b = set(a["train_seed"]), set(b["train_seed"])
    if seeds_a != seeds_b:
        return [
            f"train_seed is {_list(sorted(seeds_a))} ({first}) and {_list(sorted(seeds_b))} ({second}): train and "
            "evaluate the missing ones, or give --common_scenes to compare what both have"
        ]
    scenes = set(zip(a["task"], a["seed"], strict=True)) | set(zip(b["task"], b["seed"], strict=True))
    problems = []
    for side, rows in ((first, a), (second, b)):
        for train_seed, of_run in rows.groupby("train_seed"):
            missing = scenes - set(zip(of_run["task"], of_run["seed"], strict=True))
            if missing:
                task, seed = min(missing)
                problems.append(
                    f"{side} with train_seed={train_seed} lacks {len(missing)} of {len(scenes)} scenes, the first "
                    f"task={task} seed={seed}"
                )
    if problems:
        problems[-1] += (
            ": evaluate them (wm-eval resumes), or give --common_scenes to compare on the scenes that all have"
        )
    return problems


def _list(values: Sequence) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:5]) + (f" and {len(values) - 5} more" if len(values) > 5 else "")
