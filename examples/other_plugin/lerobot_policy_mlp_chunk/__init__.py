"""A plugin with the policy type `mlp_chunk`, and with `mlp_chunk_world`: the same with a world memory."""

from lerobot_policy_mlp_chunk.configuration_mlp_chunk import MLPChunkConfig
from lerobot_policy_mlp_chunk.world import MLPChunkWorldConfig

__all__ = ["MLPChunkConfig", "MLPChunkWorldConfig"]
