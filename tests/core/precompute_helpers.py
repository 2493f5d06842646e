"""An encoder that costs nothing and names the frame, and a request that uses it."""

from __future__ import annotations

import torch

from world_modality_core.encoders import register_encoder
from world_modality_core.encoders.base import WorldEncoder
from world_modality_core.encoders.pooling import LayerFeatures
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.precompute.precompute_options import OutputConfig, PrecomputeConfig, SourceConfig

LENGTHS = (12, 17, 14, 20)


@register_encoder("test_colour")
class ColourEncoder(WorldEncoder):
    """Reads a frame's mean colour: latents name the frame. With a window, the mean over it."""

    default_height_px = default_width_px = 16
    is_temporal = True
    image_mean, image_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)

    def build(self, spec):
        return torch.nn.Identity(), None

    def features(self, frames, layers):
        maps = frames.mean(dim=1)
        return {layer: LayerFeatures(maps) for layer in layers}


COLOUR = EncoderSpec(family="test_colour")


def config(source_root, output_root, encoder=COLOUR, **options) -> PrecomputeConfig:
    options = {"device": "cpu", "batch_size": 7, "num_workers": 0} | options
    return PrecomputeConfig(
        dataset=SourceConfig("tests/solid", str(source_root)),
        output=OutputConfig("tests/solid_world", str(output_root)),
        encoder=encoder,
        **options,
    )
