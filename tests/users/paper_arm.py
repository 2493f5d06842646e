"""An arm and its leader on paper, by LeRobot's interfaces: six joints that follow, cameras that see a bright bar."""

import math
from dataclasses import dataclass, field

import numpy as np
from lerobot.cameras import CameraConfig
from lerobot.robots import Robot, RobotConfig
from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

JOINTS = [f"{name}.pos" for name in ("pan", "lift", "elbow", "flex", "roll", "gripper")]
SIZE = 64


@RobotConfig.register_subclass("paper_arm")
@dataclass
class PaperArmConfig(RobotConfig):
    port: str = ""
    cameras: dict[str, CameraConfig] = field(default_factory=dict)
    max_relative_target: float | None = None


@TeleoperatorConfig.register_subclass("paper_leader")
@dataclass
class PaperLeaderConfig(TeleoperatorConfig):
    port: str = ""


class _Connected:
    is_connected = False
    is_calibrated = True

    def connect(self, calibrate: bool = True) -> None:
        self.is_connected = True

    def disconnect(self) -> None:
        self.is_connected = False

    def calibrate(self) -> None: ...

    def configure(self) -> None: ...


class PaperArm(_Connected, Robot):
    config_class = PaperArmConfig
    name = "paper_arm"

    def __init__(self, config: PaperArmConfig):
        super().__init__(config)
        self.config, self.cameras = config, dict.fromkeys(config.cameras)
        self.at = dict.fromkeys(JOINTS, 0.0)

    @property
    def observation_features(self) -> dict:
        return dict.fromkeys(JOINTS, float) | dict.fromkeys(self.cameras, (SIZE, SIZE, 3))

    @property
    def action_features(self) -> dict:
        return dict.fromkeys(JOINTS, float)

    def get_observation(self) -> dict:
        picture = np.full((SIZE, SIZE, 3), 40, np.uint8)
        middle = int(SIZE / 2 + SIZE / 3 * math.tanh(self.at[JOINTS[0]] / 50))
        picture[:, max(0, middle - 4) : middle + 4] = 220
        return self.at | {name: picture.copy() for name in self.cameras}

    def send_action(self, action: dict) -> dict:
        assert all(math.isfinite(action[name]) for name in JOINTS)
        print("moved", flush=True)
        self.at = {name: float(action[name]) for name in JOINTS}
        return self.at


class PaperLeader(_Connected, Teleoperator):
    config_class = PaperLeaderConfig
    name = "paper_leader"
    action_features = dict.fromkeys(JOINTS, float)
    feedback_features: dict = {}
    ticks = 0

    def get_action(self) -> dict:
        self.ticks += 1
        return {name: 40 * math.sin(self.ticks / 10 + i) for i, name in enumerate(JOINTS)}

    def send_feedback(self, feedback: dict) -> None: ...
