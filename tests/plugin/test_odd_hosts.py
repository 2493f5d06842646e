"""Hosts of another plugin whose last layer is an odd one: read the memory, or are refused in one clear line."""

import copy

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from safetensors.torch import load_file

from tests.plugin.helpers import batch_of, live_batch, open_dataset, open_gates
from world_modality_core.configs import MemoryConfig, PastConfig
from world_modality_core.io.errors import ConfigError


@pytest.fixture(scope="module")
def odd():
    """The module that declares the hosts; their types are forgotten afterwards, for tests that go through all types."""
    from tests.plugin import odd_hosts

    yield odd_hosts
    for name in ("odd", "odd_world"):
        PreTrainedConfig._choice_registry.pop(name)


@pytest.fixture
def build(odd, tiny_companion, monkeypatch):
    def make(policy_type, layer="heads.0.out", seed=0, **options):
        monkeypatch.setattr(odd.OddWorldConfig, "world_layer", layer)
        config = PreTrainedConfig.get_choice_class(policy_type)(device="cpu", push_to_hub=False, **options)
        if policy_type == "odd_world":
            config.companion.root = str(tiny_companion.companion_root)
        dataset = open_dataset(tiny_companion, config)
        torch.manual_seed(seed)
        policy = make_policy(config, ds_meta=dataset.meta)
        processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
        return policy.train(), dataset, processors

    return make


WORLD = {"n_future_steps": 2, "memory": MemoryConfig(past=PastConfig(3, 2))}
# 16 states of 4 steps, 4 heads: axes that would match one another by chance.
FRAMES = [3, 5, 14, 16]


def loss_of(policy, batch):
    return policy.train().forward(dict(batch))[0]


@pytest.mark.parametrize(
    "kind, layer",
    [("", "heads.0.out"), ("", "alias"), ("twice", "heads.0.out"), ("conv", "conv"), ("attention", "heads.0.out")],
)
def test_it_reads_and_does_no_harm(build, kind, layer, tmp_path):
    plain, dataset, (preprocessor, _) = build("odd", kind=kind)
    world, *_ = build("odd_world", layer, kind=kind, **copy.deepcopy(WORLD))
    batch = batch_of(dataset, preprocessor, FRAMES)
    seen = live_batch(LeRobotDataset(dataset.repo_id, root=dataset.root), preprocessor, [3, 20])
    logged = world.train().forward(dict(batch))[1]
    assert logged["loss_action"] == loss_of(plain, batch)
    world.eval().reset()
    assert torch.equal(world.select_action(dict(seen)), plain.eval().select_action(dict(seen)))
    open_gates(world)
    loss = loss_of(world, batch)
    loss.backward()
    reader = next(iter(world.readers.values()))
    assert loss != logged["loss_action"] and reader.to_key_value.weight.grad.abs().max() > 0

    world.update()
    world.save_pretrained(tmp_path)
    again, *_ = build("odd_world", layer, seed=1, kind=kind, **copy.deepcopy(WORLD))
    again = type(world).from_pretrained(tmp_path)
    world.reset(), again.reset()
    world.eval()
    assert torch.equal(world.select_action(dict(seen)), again.select_action(dict(seen)))
    assert len([name for name in load_file(tmp_path / "model.safetensors") if name.endswith("gate.value")]) == 1


@pytest.mark.parametrize(
    "kind, layer, error, says",
    [
        ("", "heads.1.out", ConfigError, r"world_variant\(layer='heads.1.out'\) names no layer"),
        ("", "norm", ConfigError, "LayerNorm has none of in_features"),
        ("", "step", ConfigError, r"world_variant\(layer='step'\)"),
        ("attention", "attention.out_proj", RuntimeError, "has run without calling 'attention.out_proj'"),
        ("by hand", "heads.0.out", RuntimeError, "has run without calling 'heads.0.out'"),
        ("flat", "heads.0.out", RuntimeError, r"states of shape \(16, 16\); expected \(b, h, d\) = \(4, h, d\)"),
        ("keyword", "heads.0.out", RuntimeError, "called by keyword"),
    ],
)
def test_what_cannot_read_says_why_in_one_line(build, kind, layer, error, says):
    with pytest.raises(error, match=says) as said:
        policy, dataset, (preprocessor, _) = build("odd_world", layer, kind=kind, **copy.deepcopy(WORLD))
        loss_of(policy, batch_of(dataset, preprocessor, FRAMES))
    assert "\n" not in str(said.value)


def test_a_width_that_heads_do_not_divide_is_refused(build):
    with pytest.raises(ValueError, match="memory.n_heads=5 does not divide the action stream's width 16"):
        build("odd_world", memory=MemoryConfig(n_heads=5))
