"""`--env.type=metaworld_light`: Meta-World at a chosen image size, rendered cheaply. Imports neither MuJoCo nor torch
models: this module is loaded whenever LeRobot discovers its plugins."""

from __future__ import annotations

from dataclasses import dataclass, field

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig
from lerobot.utils.constants import ACTION, OBS_IMAGE, OBS_STATE

from world_modality_core.io.errors import ConfigError

ACTION_DIM = 4
STATE_DIM = 4


@EnvConfig.register_subclass("metaworld_light")
@dataclass
class MetaworldLightEnvConfig(EnvConfig):
    """Meta-World for CPU work: the tasks, physics, seeds and camera of `--env.type=metaworld`, small cheap images.

    Attributes:
        task: a task (`push-v3`), a comma list of tasks, or a difficulty tier (`easy`, `medium`, `hard`, `very_hard`).
        fps: Meta-World's control rate; not a choice.
        episode_length: steps after which an episode is truncated (stock: always 500).
        obs_type: `pixels_agent_pos` (image and state) or `pixels`.
        observation_height, observation_width: of the image, in pixels.
        camera_name: a camera of the Meta-World models; `corner2` is placed and turned as stock LeRobot does.
        camera_period: steps between two pictures; in between the last one is repeated, as by a camera slower than the
            control. A policy that looks at multiples of it only acts as with 1, at a fraction of the cost.
        hide_goal_after: steps after which the goal marker is invisible, so that it has to be remembered; 0: never.
        hold_still_for: steps at the start in which the robot stays where it is, whatever the action: with a goal that
            is hidden meanwhile, no movement tells where it was.
    """

    # Not a field. Options that earlier records lack: there they had their default, and so they are left out of a record
    # while they have it (evaluation/eval_info.py).
    younger_than_records = ("hold_still_for",)

    task: str = "push-v3"
    fps: int = 80
    episode_length: int = 500
    obs_type: str = "pixels_agent_pos"
    observation_height: int = 128
    observation_width: int = 128
    camera_name: str = "corner2"
    camera_period: int = 1
    hide_goal_after: int = 0
    hold_still_for: int = 0
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {ACTION: PolicyFeature(type=FeatureType.ACTION, shape=(ACTION_DIM,))}
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {ACTION: ACTION, "agent_pos": OBS_STATE, "pixels": OBS_IMAGE}
    )

    def __post_init__(self) -> None:
        if self.obs_type not in ("pixels", "pixels_agent_pos"):
            raise ConfigError(f"env.obs_type={self.obs_type!r}: expected 'pixels_agent_pos' or 'pixels'")
        if self.fps != 80:
            raise ConfigError(f"env.fps={self.fps}: Meta-World is simulated at 80 steps a second; leave it at 80")
        leasts = {"episode_length": 1, "camera_period": 1, "hide_goal_after": 0, "hold_still_for": 0}
        for name in (*leasts, "observation_height", "observation_width"):
            least = leasts.get(name, 16)
            if getattr(self, name) < least:
                raise ConfigError(f"env.{name}={getattr(self, name)}: expected at least {least}")
        image_shape = (self.observation_height, self.observation_width, 3)
        self.features["pixels"] = PolicyFeature(type=FeatureType.VISUAL, shape=image_shape)
        if self.obs_type == "pixels_agent_pos":
            self.features["agent_pos"] = PolicyFeature(type=FeatureType.STATE, shape=(STATE_DIM,))

    @property
    def gym_kwargs(self) -> dict:
        return {
            "obs_type": self.obs_type,
            "camera_name": self.camera_name,
            "observation_height": self.observation_height,
            "observation_width": self.observation_width,
            "episode_length": self.episode_length,
            "camera_period": self.camera_period,
            "hide_goal_after": self.hide_goal_after,
            "hold_still_for": self.hold_still_for,
        }

    def create_envs(self, n_envs: int, use_async_envs: bool = False) -> dict:
        """Build {group: {task_id: vector env}}, as `lerobot.envs.make_env` expects it."""
        from .mujoco_gl import choose_mujoco_gl

        choose_mujoco_gl()  # before anything imports mujoco
        from .metaworld_light import create_metaworld_light_envs

        return create_metaworld_light_envs(self.task, n_envs, self.gym_kwargs, use_async_envs=use_async_envs)
