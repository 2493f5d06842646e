"""Simulated studies: episodes whose true effects are known, to hold the tests' levels and power against.

The logit of an episode's chance of success is a sum of normal effects: the task's, the scene's, the training run's, and
those that a model has with tasks and scenes; and of what an arm or a model gains. Given its chance, an episode is a
coin of its own: two arms without a difference still disagree on scenes that are neither easy nor hopeless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import expit

from world_modality_core.studies.evidence.comparable import ModelArm
from world_modality_core.studies.evidence.episode_records import EPISODE_SCHEMA, TRAINING_COLUMNS

_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(41)


@dataclass(frozen=True)
class StudyShape:
    """Sizes of a study, and the standard deviations of its random effects in logits."""

    n_tasks: int = 4
    n_scenes: int = 100
    n_runs: int = 1
    # Success rate of an arm whose gain is 0.
    rate: float = 0.6
    task_sd: float = 0.8
    scene_sd: float = 1.2
    # Of each training run of each model, and of each run in each task.
    run_sd: float = 0.3
    run_task_sd: float = 0.2
    # What makes a task or a scene easier for one model than for another, in all its training runs.
    model_task_sd: float = 0.3
    model_scene_sd: float = 0.5

    def shift(self, gain: float) -> float:
        """Logits at which the success rate, over all tasks, scenes and runs, is `rate + gain`."""
        sds = (self.task_sd, self.scene_sd, self.run_sd, self.run_task_sd, self.model_task_sd, self.model_scene_sd)
        sd = float(np.sqrt(np.square(sds).sum()))
        return float(brentq(lambda logit: _mean_rate(np.array(logit), sd) - self.rate - gain, -20, 20))


@dataclass(frozen=True)
class SimulatedStudy:
    """A simulated study."""

    # As `read_episodes` returns them.
    episodes: pd.DataFrame
    # True success rate of each side's checkpoints in these tasks, over all scenes.
    rates_of_checkpoints: dict[ModelArm, float]
    # True success rate of each side in these tasks, over all training runs and scenes.
    rates_of_models: dict[ModelArm, float]


def simulate_study(
    shape: StudyShape,
    gains: Mapping[str, Mapping[str, float]],
    rng: np.random.Generator,
    gate: float | None = 0.1,
) -> SimulatedStudy:
    """Draw a study.

    Args:
        shape: Sizes and random effects.
        gains: Model -> arm -> true success rate over all tasks, scenes and runs, minus `shape.rate`. Arms of one model
            with equal gains have equal chances in every single episode.
        rng: Random numbers.
        gate: Logged gate of every episode; None for models without one.
    """
    sizes = (shape.n_runs, shape.n_tasks, shape.n_scenes)
    task = rng.normal(0, shape.task_sd, (1, shape.n_tasks))
    scene = rng.normal(0, shape.scene_sd, (1, *sizes[1:]))
    run, of_task, of_scene = np.indices(sizes).reshape(3, -1)
    fixed = {
        "train_seed": run,
        "task": np.char.add("task-", of_task.astype(str)),
        "tier": np.where(of_task % 2 == 0, "easy", "hard"),
        "seed": of_scene,
        "init_hash": np.char.add(np.char.add(of_task.astype(str), "-"), of_scene.astype(str)),
        "policy_type": "simulated", "env": "simulated", "group": "simulated", "env_hash": "simulated",
        "renderer": "none", "steps": 100, "sum_reward": 0.0, "max_reward": 0.0, "wall_s": 0.0,
        "gate": np.nan if gate is None else gate, "attention_entropy": np.nan, "attention_mass": None, "n_plans": 25,
        "n_action_steps": 4, "image_height": 128, "image_width": 128, "episode_length": 100, "video": None,
        **dict.fromkeys(TRAINING_COLUMNS),
    }  # fmt: skip
    frames, of_checkpoints, of_models = [], {}, {}
    for model, arms in gains.items():
        of_model = task + rng.normal(0, shape.model_task_sd, task.shape)
        of_runs = (
            of_model
            + rng.normal(0, shape.run_sd, (shape.n_runs, 1))
            + rng.normal(0, shape.run_task_sd, (shape.n_runs, shape.n_tasks))
        )
        logits = of_runs[..., None] + scene + rng.normal(0, shape.model_scene_sd, scene.shape)
        for arm, gain in arms.items():
            side, shift = ModelArm(model, arm), shape.shift(gain)
            success = rng.random(sizes) < expit(logits + shift)
            names = {"model": model, "arm": arm, "checkpoint": np.char.add(f"{model}-", run.astype(str))}
            frames.append(pd.DataFrame(fixed | names | {"success": success.ravel()}))
            scene_sd = float(np.hypot(shape.scene_sd, shape.model_scene_sd))
            run_sd = float(np.hypot(shape.run_sd, shape.run_task_sd))
            of_checkpoints[side] = _mean_rate(of_runs + shift, scene_sd)
            of_models[side] = _mean_rate(of_model + shift, float(np.hypot(scene_sd, run_sd)))
    episodes = pd.concat(frames, ignore_index=True)[EPISODE_SCHEMA.names]
    return SimulatedStudy(episodes, of_checkpoints, of_models)


def _mean_rate(logits: np.ndarray, sd: float) -> float:
    """Mean success rate over `logits` and over a normal effect beside them, by Gauss-Hermite quadrature."""
    return float((expit(logits[..., None] + sd * _NODES) @ _WEIGHTS).mean() / _WEIGHTS.sum())
