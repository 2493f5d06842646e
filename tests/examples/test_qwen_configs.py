"""The experiments E0 to E4 of examples/qwen_world_fplus: they parse, and differ in what the seed says, and no more."""

import functools
import json
from pathlib import Path

import draccus
import pytest
from lerobot.configs.train import TrainPipelineConfig

import lerobot_policy_world_modality  # noqa: F401  registers the type

FOLDER = Path(__file__).parents[2] / "examples" / "qwen_world_fplus"
MEMORY = {"policy.use_memory": True, "policy.lambda_world": 0.2, "policy.memory.source": "scheduled"}
TEXT = {"policy.lambda_text": 0.1}
DIFFERENCES = {
    "E0": {},
    "E1": {"policy.use_memory": True, "policy.memory.source": "zero"},
    "E1_aux": {"policy.lambda_world": 0.2},
    "E2": MEMORY,
    "E3": TEXT,
    "E4": MEMORY | TEXT,
}


def flat(values: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


@functools.cache
def parsed(name: str) -> dict:
    # What `lerobot-train --config_path=` does with it.
    return flat(draccus.encode(TrainPipelineConfig.from_pretrained(FOLDER / f"{name}.json", cli_args=[])))


def test_these_are_all():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(DIFFERENCES)


@pytest.mark.parametrize("name", DIFFERENCES)
def test_an_experiment_differs_from_e0_in_what_it_should(name):
    e0, config = parsed("E0"), parsed(name)
    assert config["policy.vlm_backbone"] == "Qwen/Qwen3-VL-2B-Instruct"
    expected = dict(DIFFERENCES[name])
    if name != "E0":
        expected |= {"output_dir": f"outputs/qwen_world_fplus/{name}", "job_name": name}
    assert {key: value for key, value in config.items() if value != e0[key]} == expected
    # The files say the same, so that a reader sees it too.
    files = [flat(json.loads((FOLDER / f"{each}.json").read_text())) for each in ("E0", name)]
    assert files[0].keys() == files[1].keys()
    assert {key: value for key, value in files[1].items() if value != files[0][key]} == expected
