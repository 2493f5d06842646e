"""A device that isn't there is refused by each command that takes one, in one line and before any work."""

import pytest
import torch

from coc_tools.config import LocalConfig
from lerobot_policy_world_modality.intervention.cli import InterveneConfig
from world_modality_core.io.devices import check_device
from world_modality_core.io.errors import ConfigError
from world_modality_core.precompute.precompute_options import PrecomputeConfig, SourceConfig
from world_modality_core.prophet.training_options import ProphetTrainingConfig


@pytest.mark.parametrize("device", [None, "cpu", "mps", "xpu:0"])
def test_what_needs_no_look_at_the_machine(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1 / 0)
    check_device(device)


@pytest.mark.parametrize(("device", "n"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there(device, n, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
    with pytest.raises(ConfigError, match=f"local.device='{device}': torch sees {n} CUDA devices.*local.device=cpu"):
        check_device(device, "local.device")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n + 1)
    check_device(device)


@pytest.mark.parametrize(
    "options",
    [
        lambda: PrecomputeConfig(SourceConfig("me/data"), device="cdua"),
        lambda: ProphetTrainingConfig(companions="here", output_dir="there", device="cdua"),
        lambda: LocalConfig(device="cdua"),
        lambda: InterveneConfig(device="cdua"),
    ],
    ids=["wm-precompute", "wm-prophet", "coc-label", "wm-intervene"],
)
def test_every_command_refuses_a_name_that_is_none(options):
    with pytest.raises(ConfigError, match="device='cdua': no such device"):
        options()
