"""Processors of smolvla_world: SmolVLA's own."""

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

make_smolvla_world_pre_post_processors = make_smolvla_pre_post_processors
