"""Processors of qwen_world_fplus: LeRobot's default pipelines (rename, batch, device, normalise).

The backbone's own processor runs inside the policy (`qwen_inputs`), not here: labels, which are looked up by `index`,
belong to the same token sequence as the prompt, images are on the device by then, and a prompt is tokenised once.
"""

from lerobot_policy_world_modality.policies.world.processor_world_modality import make_world_A_pre_post_processors

make_qwen_world_fplus_pre_post_processors = make_world_A_pre_post_processors
