"""Config dataclasses that several policy types share."""

from dataclasses import asdict, replace

import pytest

from world_modality_core.configs import LanguageConfig, MemoryConfig, ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError


def test_what_nobody_typed_does_not_count_as_given():
    typed = ProphetConfig(n_layers=3, n_heads=4)  # 4 is the default, and was typed all the same
    assert typed._given == {"n_layers", "n_heads"}
    assert replace(typed, dropout=0.1)._given == {"n_layers", "dropout"}
    assert ProphetConfig(**asdict(typed))._given == {"n_layers"}  # as a saved config comes back
    assert LanguageConfig()._given == set()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gate": "big"}, r"memory.gate='big': expected one of 'scalar', 'per_head', 'per_token'"),
        ({"gate": None}, "memory.gate=None"),
        ({"content": "hiden"}, "memory.content='hiden'"),
        ({"schedule_steps": 0}, "memory.schedule_steps=0: expected at least 1"),
    ],
)
def test_a_closed_choice_is_refused_by_name(options, message):
    with pytest.raises(ConfigError, match=message):
        MemoryConfig(**options)


def test_weights_in_a_folder_are_kept_by_their_full_path(tmp_path, monkeypatch):
    (tmp_path / "weights").mkdir()
    monkeypatch.chdir(tmp_path)
    assert EncoderSpec(model_id="weights").model_id == str(tmp_path / "weights")
    assert EncoderSpec(model_id="facebook/dinov2-small").model_id == "facebook/dinov2-small"
