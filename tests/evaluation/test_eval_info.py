"""What identifies an environment in the records stays what it was when an environment gets an option."""

from pathlib import Path

import pandas as pd

from lerobot_policy_world_modality.envs.configuration_metaworld_light import MetaworldLightEnvConfig
from lerobot_policy_world_modality.evaluation.eval_info import env_fields, env_hash

STUDY = Path(__file__).parents[2] / "results/study3/episodes.parquet"
OPTIONS = {"task": "reach-v3,push-v3", "episode_length": 200, "camera_period": 4, "hide_goal_after": 12}


def test_an_environment_from_before_an_option_is_the_same_as_now_without_it():
    assert set(pd.read_parquet(STUDY, columns=["env_hash"]).env_hash) == {env_hash(MetaworldLightEnvConfig(**OPTIONS))}
    assert "hold_still_for" not in env_fields(MetaworldLightEnvConfig(**OPTIONS))


def test_a_younger_option_that_is_given_makes_another_environment():
    held = MetaworldLightEnvConfig(**OPTIONS, hold_still_for=24)
    assert env_fields(held)["hold_still_for"] == 24
    assert env_hash(held) != env_hash(MetaworldLightEnvConfig(**OPTIONS))
    assert env_hash(held) == env_hash(MetaworldLightEnvConfig(**OPTIONS | {"task": "reach-v3"}, hold_still_for=24))
