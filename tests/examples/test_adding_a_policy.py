"""The code of docs/adding_a_policy.md: an action head of LeRobot's that reads a world memory."""

import copy
import re
from pathlib import Path

import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy

from world_modality_core.memory.sources import Memory

PAGE = Path(__file__).parents[2] / "docs" / "adding_a_policy.md"


@pytest.fixture(scope="module")
def plain() -> ACTPolicy:
    torch.manual_seed(0)
    features = {
        "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        "observation.environment_state": PolicyFeature(FeatureType.ENV, (6,)),
    }
    sizes = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 32, "n_encoder_layers": 1, "n_vae_encoder_layers": 1}
    config = ACTConfig(chunk_size=5, n_action_steps=5, device="cpu", dropout=0.0, use_vae=False, **sizes)
    config.input_features, config.output_features = features, {"action": PolicyFeature(FeatureType.ACTION, (3,))}
    return ACTPolicy(config)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return {
        "observation.state": torch.randn(2, 4, generator=generator),
        "observation.environment_state": torch.randn(2, 6, generator=generator),
        "action": torch.randn(2, 5, 3, generator=generator),
        "action_is_pad": torch.zeros(2, 5, dtype=torch.bool),
    }


def blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_documented_declaration_is_that_of_the_example():
    world = Path(__file__).parents[2] / "examples" / "other_plugin" / "lerobot_policy_mlp_chunk" / "world.py"
    assert blocks()[0] == world.read_text()


def test_a_documented_head_reads_a_memory(plain, batch):
    module = {}
    exec(next(block for block in blocks() if "give_memory" in block), module)
    policy = copy.deepcopy(plain)
    reader = module["give_memory"](policy, d_world=64, n_tokens=8)
    tokens = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(2))

    with pytest.raises(RuntimeError, match="not filled"):
        policy.forward(batch)
    reader.remember(Memory(tokens))
    loss, _ = policy.forward(batch)
    assert torch.equal(loss, plain.forward(batch)[0])

    with torch.no_grad():
        reader.attention.gate.value.fill_(0.5)
    first = policy.forward(batch)[0]
    reader.remember(Memory(tokens.flip(0)))
    second = policy.forward(batch)[0]
    assert not torch.equal(first, loss) and not torch.equal(first, second)
    # Weights keep their names: a checkpoint of the plain policy still fits.
    assert {"weight", "bias"} <= {name.removeprefix("model.action_head.") for name in policy.state_dict()}
