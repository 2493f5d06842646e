"""`--env.type=metaworld_light`: Meta-World at a chosen image size, rendered cheaply. Imports neither MuJoCo nor torch
models: this module is loaded whenever LeRobot discovers its plugins."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from world_modality_core.configs import check_at_least
from world_modality_core.io.errors import ConfigError

ACTION_DIM = 4
STATE_DIM = 4


# The cameras of Meta-World's models.
Camera = Literal["corner", "corner2", "corner3", "topview", "behindGripper", "gripperPOV"]
Observations = Literal["pixels_agent_pos", "pixels"]
# What may happen in the middle of an episode; "" for nothing (docs/simulation.md).
Disturbance = Literal[
    "", "move_object", "push_object", "gripper_slips", "actions_delayed", "actions_scaled", "light_changes",
    "camera_moves", "distractor_enters",
]  # fmt: skip


@dataclass
class EpisodeOptions:
    """What an episode shows and how long it is, in recordings and in rollouts."""

    # Steps of 1/80 s after which an episode ends (stock: always 500).
    episode_length: int = 500
    # Of the image, in pixels.
    observation_height: int = 128
    observation_width: int = 128
    # `corner2` is placed and turned as stock LeRobot does.
    camera_name: Camera = "corner2"
    # Steps after which the goal marker is invisible, so that the goal has to be remembered; 0: never.
    hide_goal_after: int = 0
    # Steps at the start in which the robot stays where it is, whatever the action: with a goal that is hidden
    # meanwhile, no movement tells where it was.
    hold_still_for: int = 0
    # Draw everything but the robot: recordings of another body, from which no action can be told.
    hide_robot: bool = False

    def __post_init__(self) -> None:
        leasts = {"episode_length": 1, "observation_height": 16, "observation_width": 16}
        for name, least in (leasts | {"hide_goal_after": 0, "hold_still_for": 0}).items():
            check_at_least(self, least, name, prefix="env.")
        if self.camera_name not in get_args(Camera):
            raise ConfigError(f"env.camera_name={self.camera_name!r}: expected one of {', '.join(get_args(Camera))}")

    @property
    def gym_kwargs(self) -> dict:
        """Arguments of `MetaworldLightEnv`."""
        return {each.name: getattr(self, each.name) for each in fields(EpisodeOptions)}


@EnvConfig.register_subclass("metaworld_light")
@dataclass
class MetaworldLightEnvConfig(EpisodeOptions, EnvConfig):
    """Meta-World for CPU work: the tasks, physics, seeds and camera of `--env.type=metaworld`, small cheap images.

    Attributes:
        task: a task (`push-v3`), a comma list of tasks, or a difficulty tier (`easy`, `medium`, `hard`, `very_hard`).
        fps: Meta-World's control rate; not a choice.
        obs_type: `pixels_agent_pos` (image and state) or `pixels`.
        camera_period: steps between two pictures; in between the last one is repeated, as by a camera slower than the
            control. A policy that looks at multiples of it only acts as with 1, at a fraction of the cost.
        disturbance: what disturbs each episode, decided by its seed.
        disturb_at: step at which it does.
    """

    # Not a field. Options that earlier records lack: there they had their default, and so they are left out of a record
    # while they have it (evaluation/eval_info.py).
    younger_than_records = ("hold_still_for", "hide_robot", "disturbance", "disturb_at")

    task: str = "push-v3"
    fps: int = 80
    obs_type: Observations = "pixels_agent_pos"
    camera_period: int = 1
    disturbance: Disturbance = ""
    disturb_at: int = 40
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,))}
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.obs_type not in get_args(Observations):
            raise ConfigError(f"env.obs_type={self.obs_type!r}: expected one of {', '.join(get_args(Observations))}")
        if self.fps != 80:
            raise ConfigError(f"env.fps={self.fps}: Meta-World is simulated at 80 steps a second; leave it at 80")
        if self.camera_period < 1:
            raise ConfigError(f"env.camera_period={self.camera_period}: expected at least 1")
        if self.disturbance not in get_args(Disturbance):
            raise ConfigError(
                f"env.disturbance={self.disturbance!r}: expected one of {', '.join(get_args(Disturbance)[1:])}, or none"
            )
        if self.disturb_at < 1:
            raise ConfigError(f"env.disturb_at={self.disturb_at}: expected at least 1")
        image_shape = (self.observation_height, self.observation_width, 3)
        self.features["pixels"] = PolicyFeature(type=FeatureType.VISUAL, shape=image_shape)
        if self.obs_type == "pixels_agent_pos":
            self.features["agent_pos"] = PolicyFeature(type=FeatureType.STATE, shape=(STATE_DIM,))

    @property
    def gym_kwargs(self) -> dict:
        own = ("obs_type", "camera_period", "disturbance", "disturb_at")
        return super().gym_kwargs | {name: getattr(self, name) for name in own}

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict:
        """Build {group: {task_id: vector env}}, as `lerobot.envs.make_env` expects it."""
        from .mujoco_gl import choose_mujoco_gl

        choose_mujoco_gl()  # before anything imports mujoco
        from .metaworld_light import create_metaworld_light_envs

        return create_metaworld_light_envs(self.task, n_envs, self.gym_kwargs, use_async_envs=use_async_envs)
