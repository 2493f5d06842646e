"""World encoders: frozen networks that turn camera frames into world latents (docs/encoders.md)."""

from world_modality_core.encoders.base import WorldEncoder
from world_modality_core.encoders.pooling import LayerFeatures
from world_modality_core.encoders.registry import encoder_families, make_world_encoder, register_encoder

from world_modality_core.encoders import dinov2, efficientnet_lite0, vjepa2  # isort: skip  # noqa: F401 (register themselves)

__all__ = ["LayerFeatures", "WorldEncoder", "encoder_families", "make_world_encoder", "register_encoder"]
