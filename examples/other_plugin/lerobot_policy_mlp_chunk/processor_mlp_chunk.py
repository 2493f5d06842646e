"""Processors of mlp_chunk: LeRobot's default pipelines."""

from lerobot.processor import make_default_pre_post_processors


def make_mlp_chunk_pre_post_processors(config, dataset_stats=None):
    """Build the pre- and the postprocessor."""
    return make_default_pre_post_processors(config, dataset_stats, normalizer_device=config.device)
