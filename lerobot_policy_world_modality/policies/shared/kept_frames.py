"""Frames and instruction as they were given, past a preprocessor that changes them for the policy."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lerobot.configs import PipelineFeatureType, PolicyFeature
from lerobot.lerobot_types import EnvTransition, TransitionKey
from lerobot.processor import AddBatchDimensionProcessorStep, ProcessorStep, ProcessorStepRegistry

# A kept frame is called this and its camera.
KEPT = "world.frame."
# The instruction as it was given: PI0.5 writes the robot's state into it.
KEPT_TASK = "world.task"


@dataclass
@ProcessorStepRegistry.register("world_keep_frames")
class KeepFramesProcessorStep(ProcessorStep):
    """Keep a rollout's frames and instruction as they are, before later steps change them.

    A training batch, which has actions, is left alone: its latents come from the companion.
    """

    def __call__(self, transition: EnvTransition) -> EnvTransition:
        observation = transition.get(TransitionKey.OBSERVATION)
        if transition.get(TransitionKey.ACTION) is not None or observation is None:
            return transition
        kept = {KEPT + key: value for key, value in observation.items() if key.startswith("observation.image")}
        told = transition.get(TransitionKey.COMPLEMENTARY_DATA) or {}
        return {
            **transition,
            TransitionKey.OBSERVATION: {**observation, **kept},
            TransitionKey.COMPLEMENTARY_DATA: told | ({KEPT_TASK: told["task"]} if "task" in told else {}),
        }

    def transform_features(
        self, features: dict[PipelineFeatureType, dict[str, PolicyFeature]]
    ) -> dict[PipelineFeatureType, dict[str, PolicyFeature]]:
        return features


def keeping_frames(make: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """Let a policy's `make_*_pre_post_processors` keep frames as soon as they are a batch under the policy's names."""

    @functools.wraps(make)  # LeRobot reads its parameters
    def make_keeping(*args: Any, **kwargs: Any) -> tuple[Any, Any]:
        preprocessor, postprocessor = make(*args, **kwargs)
        steps = [*preprocessor.steps]
        batched = [i for i, step in enumerate(steps) if isinstance(step, AddBatchDimensionProcessorStep)]
        steps.insert(batched[-1] + 1 if batched else 0, KeepFramesProcessorStep())
        preprocessor.steps = steps
        return preprocessor, postprocessor

    return make_keeping
