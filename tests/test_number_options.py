"""Numbers that no option can mean: NaN, which is below no bound, seeds that no generator takes."""

import math
from dataclasses import fields
from typing import get_args, get_type_hints

import pytest
import torch
from lerobot.configs import PreTrainedConfig

import lerobot_policy_world_modality  # noqa: F401
from coc_tools import config as coc
from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import LoraOptions
from lerobot_policy_world_modality.policies.shared.memory_filling import draw_generator
from lerobot_policy_world_modality.record.record_options import RecordConfig, RecordOutput
from world_modality_core.configs import MemoryConfig, ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.precompute.precompute_options import PrecomputeConfig, SourceConfig
from world_modality_core.prophet.training_options import ProphetTrainingConfig

FAMILIES = ["world_A", "world_B_cont", "world_F", "qwen_world_fplus"]
CLASSES = [
    (MemoryConfig, {}), (ProphetConfig, {}), (LoraOptions, {}), (coc.SamplingConfig, {}), (coc.EndpointConfig, {}),
    (coc.PricesConfig, {"input_per_million": 1.0, "output_per_million": 1.0}),
    (ProphetTrainingConfig, {"companions": "x", "output_dir": "x"}),
    (PrecomputeConfig, {"dataset": SourceConfig(repo_id="a/b")}),
    (RecordConfig, {"output": RecordOutput(repo_id="a/b")}),
    *((PreTrainedConfig.get_choice_class(family), {"device": "cpu"}) for family in FAMILIES),
]  # fmt: skip
MADE_UP = {"fps"}  # not for a user to give


def numbers(kind: type) -> list[str]:
    hints = get_type_hints(kind)
    is_float = {name: hint is float or float in get_args(hint) for name, hint in hints.items()}
    return [each.name for each in fields(kind) if is_float[each.name] and each.name not in MADE_UP]


def check(kind: type, options: dict) -> None:
    made = kind(**options)
    getattr(made, "validate", lambda: None)()


@pytest.mark.parametrize(
    ("kind", "given", "name"), [(kind, given, name) for kind, given in CLASSES for name in numbers(kind)]
)
def test_what_is_no_number_is_refused(kind, given, name):
    check(kind, given)
    with pytest.raises(ConfigError, match=f"{name}=nan"):
        check(kind, given | {name: math.nan})


def test_a_seed_of_eight_digits_is_a_seed():
    seeds = {
        draw_generator(seed, step, torch.device("cpu")).initial_seed() for seed in (0, 20261128) for step in (0, 1)
    }
    assert len(seeds) == 4
    assert draw_generator(7, 5, torch.device("cpu")).initial_seed() == 7 * 2**40 + 5  # what records were drawn with


@pytest.mark.parametrize(
    ("kind", "given", "says"),
    [
        (MemoryConfig, {"seed": -1}, "memory.seed=-1: expected at least 0"),
        (PrecomputeConfig, {"dataset": SourceConfig(repo_id="a/b"), "seed": -1}, "seed=-1: expected at least 0"),
        (RecordConfig, {"output": RecordOutput(repo_id="a/b"), "start_seed": -1}, "start_seed=-1: expected 0 to 42"),
        (
            RecordConfig, {"output": RecordOutput(repo_id="a/b"), "n_episodes": 3, "start_seed": 2**32 - 2},
            "start_seed=4294967294: expected 0 to 4294967293",
        ),
    ],
)  # fmt: skip
def test_a_seed_that_no_generator_takes_is_refused(kind, given, says):
    with pytest.raises(ConfigError, match=says):
        check(kind, given)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ({"future_step_s": math.inf}, "future_step_s=inf: expected seconds above 0"),
        ({"d_feedforward": -1}, "d_feedforward=-1: expected at least 0"),
    ],
)
def test_what_no_policy_can_be_built_with_is_refused(option, says):
    with pytest.raises(ConfigError, match=says):
        PreTrainedConfig.get_choice_class("world_F")(device="cpu", **option)
