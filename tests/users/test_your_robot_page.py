"""docs/your_robot.md from its first command to its last, with an arm on paper in place of an SO-101."""

import re
import shutil
from pathlib import Path

import pytest

from tests.users.pages import documented, run

# What a real arm, an evening and a GPU are in the documentation.
SHORTER = {
    "--robot.type": "paper_arm --robot.discover_packages_path=paper",
    "--teleop.type": "paper_leader --teleop.discover_packages_path=paper --play_sounds=false --dataset.reset_time_s=0"
    " --dataset.rgb_encoder.vcodec=h264",
    "--dataset.num_episodes": "8", "--dataset.episode_time_s": "1.2", "--encoder.pca_dim": "4 --num_workers=0",
    "--batch_size": "8", "--steps": "2 --policy.d_model=32 --policy.n_layers=1 --policy.n_heads=2 --num_workers=0",
    "--false_alarm_rate": "0.5", "--duration": "1.5 --play_sounds=false --return_to_initial_position=false",
    "--exclude_episodes": "2-7 --steps=4 --batch_size=8 --prophet.d_model=32 --prophet.n_heads=2",
}  # fmt: skip


@pytest.fixture(scope="module")
def at_home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "paper").mkdir()
    (home / "paper/__init__.py").write_text("from .paper_arm import PaperArm, PaperLeader  # noqa: F401\n")
    shutil.copy(Path(__file__).with_name("paper_arm.py"), home / "paper")
    return home


def test_the_page_from_its_first_command_to_its_last(at_home):
    commands = documented("your_robot.md", SHORTER)
    for command in commands:
        if command[0] not in ("wm-trial", "wm-compare"):  # a person has to judge
            printed = run(command, at_home)
            assert command[0] != "lerobot-rollout" or printed.count("moved") > 10
    tools = {"wm-precompute", "wm-prophet", "wm-monitor", "wm-trial", "wm-compare"}
    assert {command[0] for command in commands} == {"lerobot-record", "lerobot-train", "lerobot-rollout", *tools}
    # The watched copy runs in the place of the checkpoint.
    rollout = next(command for command in commands if command[0] == "lerobot-rollout")
    watched = [re.sub("^--policy.path=.*", "--policy.path=outputs/cup_F_watched", word) for word in rollout]
    assert run(watched, at_home).count("moved") > 10
