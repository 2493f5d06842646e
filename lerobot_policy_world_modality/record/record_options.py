"""Options of `wm-record`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lerobot.configs.video import RGBEncoderConfig

from lerobot_policy_world_modality.envs.configuration_metaworld_light import EpisodeOptions
from world_modality_core.configs import check_at_least, check_scene_seed
from world_modality_core.io.errors import ConfigError


@dataclass
class RecordOutput:
    """Where the dataset goes: a local folder (default: LeRobot's home), and its name on the Hub."""

    repo_id: str = ""
    root: str | None = None
    private: bool = False


@dataclass
class RecordEnv(EpisodeOptions):
    """The part of `--env.type=metaworld_light` that a recording may choose."""

    type: Literal["metaworld_light"] = "metaworld_light"


@dataclass
class RecordConfig:
    """Options of `wm-record`."""

    # Meta-World tasks or difficulty tiers, comma-separated.
    tasks: str = ""
    # successful episodes to keep, per task.
    n_episodes: int = 30
    # the first seed of every task; each next attempt takes the next seed. Record from 0 upwards and evaluate
    # with `--seed=100000` or above, and no scene is in both.
    start_seed: int = 0
    # standard deviation of the white noise added to the executed action; labels stay the expert's own.
    action_noise: float = 0.0
    # frames kept after success, in which the expert goes on.
    n_frames_after_success: int = 5
    # processes; 0 means one per usable core, at most 8. Does not change the result.
    n_workers: int = 0
    # upload when done.
    push_to_hub: bool = False
    output: RecordOutput = field(default_factory=RecordOutput)
    env: RecordEnv = field(default_factory=RecordEnv)
    # LeRobot's encoder settings. The default is lossless but for the rounding of colours, as a policy acts on frames
    # that no codec has touched, and decodes fast at random places (a key frame every 2 frames, no B-frames).
    video: RGBEncoderConfig = field(
        default_factory=lambda: RGBEncoderConfig(
            vcodec="h264", pix_fmt="yuv444p", g=2, crf=0, preset="veryfast", extra_options={"bf": 0}
        )
    )

    def validate(self) -> None:
        """Raises ConfigError naming the option that is missing or out of range."""
        if not self.output.repo_id:
            raise ConfigError("output.repo_id is empty: name the dataset, for instance --output.repo_id=me/metaworld")
        check_at_least(self, 1, "n_episodes")
        check_at_least(self, 0, "n_frames_after_success", "n_workers")
        check_scene_seed(self, "start_seed", self.n_episodes)
        if not 0 <= self.action_noise <= 1:
            raise ConfigError(f"action_noise={self.action_noise}: expected 0 to 1; actions lie in [-1, 1]")
