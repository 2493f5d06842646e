"""The tiny SmolVLM behaves as the real one where SmolVLA uses it; else tests that stand on it would prove nothing."""

from __future__ import annotations

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import get_policy_class, make_policy, make_policy_config, make_pre_post_processors
from torch.utils.data import default_collate
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

from tests.plugin.smolvla_helpers import make_smolvla_checkpoint
from wm_tools.doctor.smolvlm_backbone import NAMED_TOKENS, SHAPES, TINY_SMOLVLA, make_smolvlm

PROMPTS = ["push the puck", "pick up the red block and place it on the blue plate"]


@pytest.fixture(scope="module")
def vlm(tmp_path_factory):
    return make_smolvlm(tmp_path_factory.mktemp("vlm") / "tiny", save_weights=True)


@pytest.fixture(scope="module")
def dataset(tiny_companion):
    delta = {"action": [i / 10 for i in range(TINY_SMOLVLA["chunk_size"])]}
    return LeRobotDataset(tiny_companion.source_repo_id, root=tiny_companion.source_root, delta_timestamps=delta)


def build(vlm, dataset, **options):
    """A SmolVLA policy and its preprocessor, as lerobot-train builds them."""
    config = make_policy_config("smolvla", vlm_model_name=str(vlm), **TINY_SMOLVLA | options)
    torch.manual_seed(0)
    policy = make_policy(config, ds_meta=dataset.meta)
    return policy, make_pre_post_processors(config, dataset_stats=dataset.meta.stats)[0]


def raw_batch(dataset, prompts=PROMPTS):
    return default_collate([dataset[i] for i in range(len(prompts))]) | {"task": list(prompts)}


def test_transformers_loads_every_part(vlm):
    config, processor = AutoConfig.from_pretrained(vlm), AutoProcessor.from_pretrained(vlm)
    tokenizer = AutoTokenizer.from_pretrained(vlm)
    model = AutoModelForImageTextToText.from_pretrained(vlm)
    assert sum(p.numel() for p in model.parameters()) < 200_000
    assert tokenizer.decode(tokenizer(PROMPTS[1]).input_ids) == PROMPTS[1]
    for name, token in NAMED_TOKENS.items():
        ids = [getattr(t, f"{name}_id") for t in (tokenizer, processor.tokenizer)]
        assert ids == [tokenizer.convert_tokens_to_ids(token)] * 2
        assert tokenizer(token).input_ids == ids[:1]  # one token, not its bytes
    assert config.image_token_id == tokenizer.image_token_id
    assert len(tokenizer) <= config.text_config.vocab_size
    # An image becomes as many tokens as the model makes of it: the model refuses any other number.
    pixels = torch.zeros(3, 32, 32, dtype=torch.uint8)
    batch = processor(images=[pixels], text=f"<image>{PROMPTS[0]}", return_tensors="pt")
    n_image_tokens = int((batch["input_ids"] == config.image_token_id).sum())
    assert n_image_tokens == SHAPES["tiny"].image_seq_len == 4
    assert torch.isfinite(model(**batch).logits).all()


def test_saved_weights_are_always_the_same_and_are_loaded(vlm, dataset, tmp_path):
    again = make_smolvlm(tmp_path / "again", save_weights=True)
    assert (again / "model.safetensors").read_bytes() == (vlm / "model.safetensors").read_bytes()
    saved = AutoModelForImageTextToText.from_pretrained(vlm).state_dict()
    name = "model.vision_model.encoder.layers.1.mlp.fc1.weight"
    for load, is_saved in ((True, True), (False, False)):
        loaded = build(vlm, dataset, load_vlm_weights=load)[0].model.vlm_with_expert.vlm.state_dict()[name]
        assert torch.equal(loaded, saved[name].to(loaded.dtype)) is is_saved


@pytest.mark.parametrize("load_vlm_weights", [False, True])
def test_smolvla_trains_a_step_and_acts(vlm, dataset, load_vlm_weights):
    policy, preprocess = build(vlm, dataset, load_vlm_weights=load_vlm_weights)
    policy.train()
    before = {name: p.detach().clone() for name, p in policy.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    loss, _ = policy.forward(preprocess(raw_batch(dataset)))
    loss.backward()
    optimizer.step()
    moved = {name for name, p in policy.named_parameters() if p.requires_grad and not torch.equal(p, before[name])}
    assert torch.isfinite(loss)
    assert {"model.state_proj.weight", "model.action_in_proj.weight", "model.action_out_proj.weight"} <= moved
    assert any(name.startswith("model.vlm_with_expert.lm_expert.layers.1.") for name in moved)
    batch = preprocess(raw_batch(dataset))
    assert policy.predict_action_chunk(batch).shape == (2, 4, 4)
    policy.reset()
    assert torch.isfinite(policy.select_action(batch)).all()


def test_prompts_of_different_length_share_a_batch(vlm, dataset):
    policy, preprocess = build(vlm, dataset)
    batch = preprocess(raw_batch(dataset))
    lengths = batch["observation.language.attention_mask"].sum(dim=1).tolist()
    assert lengths[0] < lengths[1] == batch["observation.language.tokens"].shape[1]
    noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    together = policy.predict_action_chunk(batch, noise=noise)
    item = raw_batch(dataset, PROMPTS[:1])
    alone = policy.predict_action_chunk(preprocess(item), noise=noise[:1])
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)
    # Positive control: the prompt is read, so another one gives other actions.
    other = policy.predict_action_chunk(preprocess(item | {"task": PROMPTS[1:]}), noise=noise[:1])
    assert (other - alone).abs().max() > 1e-3


def test_the_image_and_the_state_are_read(vlm, dataset):
    policy, preprocess = build(vlm, dataset)
    noise = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    batch = preprocess(raw_batch(dataset))
    reference = policy.predict_action_chunk(batch, noise=noise)
    for key in ("observation.images.top", "observation.images.wrist", "observation.state"):
        changed = policy.predict_action_chunk(batch | {key: 1 - batch[key]}, noise=noise)
        assert (changed - reference).abs().max() > 1e-3, key


def test_a_checkpoint_loads_as_lerobot_train_loads_it(vlm, dataset, tmp_path):
    folder = make_smolvla_checkpoint(tmp_path / "checkpoint", vlm, dataset.meta)
    config = PreTrainedConfig.from_pretrained(folder)
    config.pretrained_path = folder
    policy = make_policy(config, ds_meta=dataset.meta)
    preprocess, postprocess = make_pre_post_processors(config, pretrained_path=str(folder))
    saved = get_policy_class("smolvla").from_pretrained(folder).state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in policy.state_dict().items())
    batch = preprocess(raw_batch(dataset))
    assert postprocess(policy.predict_action_chunk(batch)).shape == (2, 4, 4)
    # The processors know the dataset: states come out standardised by its statistics.
    state, stats = raw_batch(dataset)["observation.state"], dataset.meta.stats["observation.state"]
    expected = (state - torch.as_tensor(stats["mean"])) / torch.as_tensor(stats["std"])
    torch.testing.assert_close(batch["observation.state"], expected.float(), atol=1e-4, rtol=1e-4)


def test_the_large_shape_is_that_of_smolvlm2_500m(tmp_path):
    folder = make_smolvlm(tmp_path / "large", "450m")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(folder))
    assert sum(p.numel() for p in model.parameters()) == 507_482_304
    assert AutoProcessor.from_pretrained(folder).image_seq_len == 64
    assert not (folder / "model.safetensors").exists()
