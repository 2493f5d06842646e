"""Options of world_A to world_F: what is refused, what outlives a file, and what `--help` says of them."""

import dataclasses
import json

import pytest
from draccus.wrappers.docstring import get_attribute_docstring
from lerobot.configs import PreTrainedConfig
from lerobot.policies import make_policy

from lerobot_policy_world_modality.policies.shared.training_companion import check_encoder, policy_spec
from tests.plugin.helpers import TYPES, build, make_config, open_dataset
from world_modality_core.configs import CompanionConfig, MemoryConfig, MemorySource, ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError


def test_a_companion_of_something_else_is_refused(tiny_companion):
    with pytest.raises(ValueError, match="companion.root"):
        build((tiny_companion[0], tiny_companion[1], None), "world_F")
    spec = EncoderSpec(family="efficientnet_lite0", pooling="cls+mean")
    with pytest.raises(ValueError, match="encoder.*pooling"):
        build(tiny_companion, "world_A", encoder=spec)
    policy, *_ = build(tiny_companion, "world_A")
    same = EncoderSpec(family=policy.config.encoder.family, pooling=policy.config.encoder.pooling)
    build(tiny_companion, "world_A", encoder=same)  # what was typed agrees


@pytest.mark.parametrize(
    ("policy_type", "options", "message"),
    [
        ("world_A", {"n_action_steps": 9, "chunk_size": 4}, "n_action_steps=9"),
        ("world_A", {"d_model": 30, "n_heads": 4}, "n_heads=4"),
        ("world_A", {"action_loss": "huber"}, "action_loss='huber'"),
        ("world_A", {"n_obs_steps": 0}, "n_obs_steps=0"),
        ("world_B_cont", {"use_vision": False}, "residual_targets"),
        ("world_C", {"use_vision": False}, "use_world_input"),
        ("world_F", {"use_vision": False}, "memory.source"),
        ("world_F", {"memory": MemoryConfig(source="reversed"), "n_future_steps": 1}, "'reversed' takes 2 or more"),
        ("world_F", {"see_through_memory": True}, "use_vision=false"),
        (
            "world_F",
            {"see_through_memory": True, "use_vision": False, "memory": MemoryConfig(source=MemorySource.zero)},
            "memory.source=pred",
        ),
        ("world_F", {"use_state": False, "prophet": ProphetConfig(use_state=True)}, "prophet.use_state"),
    ],
)
def test_configs_that_make_no_sense_are_refused(policy_type, options, message):
    with pytest.raises(ConfigError, match=message):
        make_config(policy_type, **options)


@pytest.mark.parametrize("policy_type", TYPES)
def test_a_config_survives_the_disk(policy_type, tmp_path):
    config = make_config(policy_type, "/somewhere")
    if policy_type == "world_F":
        config.memory.source = MemorySource.scheduled
        config.memory.eval_source = MemorySource.zero
        config.prophet.n_hypotheses = 3
    config._save_pretrained(tmp_path)
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


def test_an_old_config_keeps_loading(tmp_path):
    """A saved config is a disk format: a field added later takes its default."""
    config = make_config("world_F")
    config._save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in ("metrics_every", "history_stride"):
        del saved[name]
    del saved["memory"]["detach"]
    (tmp_path / "config.json").write_text(json.dumps(saved))
    assert PreTrainedConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize("policy_type", TYPES)
def test_help_explains_every_option(policy_type):
    """draccus reads help from comments above the fields; a docstring line can shadow one, or crash it."""
    upstream = {f.name for f in dataclasses.fields(PreTrainedConfig)} | {"normalization_mapping"}

    def check(cls, skip):
        for field in dataclasses.fields(cls):
            if field.name not in skip:
                doc = get_attribute_docstring(cls, field.name)
                assert doc.comment_above and not doc.docstring_below, f"{cls.__name__}.{field.name}"
            default = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
            if dataclasses.is_dataclass(default):
                check(type(default), set())

    check(PreTrainedConfig.get_choice_class(policy_type), upstream - {"n_obs_steps"})


def test_a_companion_s_cameras_can_be_renamed_as_the_dataset_s(tiny_companion):
    """With --rename_map the batch has the policy's names, while the companion knows the dataset's."""
    names = {"observation.images.top": "observation.images.camera1"}
    config = make_config("world_F", companion=CompanionConfig(root=str(tiny_companion[2]), rename_map=names))
    policy = make_policy(config, ds_meta=open_dataset(tiny_companion, config).meta, rename_map=names)
    assert policy.config.encoder.cameras == ["observation.images.camera1", "observation.images.wrist"]
    assert (
        set(policy.config.image_features)
        == set(policy.config.encoder.cameras)
        == set(policy.latent_reader.frames.cameras)
    )
    check_encoder(policy.config.encoder, policy_spec(policy.config, policy.latent_reader.companion))
    with pytest.raises(ValueError, match="cameras.*companion.rename_map"):
        check_encoder(policy.config.encoder, policy.latent_reader.companion.spec)
    with pytest.raises(ValueError, match="renames .*'nothing'.* but companion"):
        build(tiny_companion, "world_F", companion=CompanionConfig(rename_map={"nothing": "x"}))


def test_images_are_normalised_by_the_encoder_alone_which_is_said_before_training():
    for policy_type in ("world_A", "smolvla_world", "qwen_world_fplus"):
        with pytest.raises(ConfigError, match="normalization_mapping: VISUAL is MEAN_STD.*use IDENTITY"):
            PreTrainedConfig.get_choice_class(policy_type)(normalization_mapping={"VISUAL": "MEAN_STD"}, device="cpu")
