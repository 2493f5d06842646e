"""DINOv2 (Oquab et al., 2023) through transformers, with or without register tokens (Darcet et al., 2023)."""

from __future__ import annotations

from torch import Tensor, nn

from world_modality_core.encoders.base import IMAGENET_MEAN, IMAGENET_STD, WorldEncoder
from world_modality_core.encoders.pooling import LayerFeatures
from world_modality_core.encoders.pretrained import captured, image_statistics, load_pretrained
from world_modality_core.encoders.registry import register_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.encoders.transformer_layers import check_patch_size, keep_layers, layer_modules


@register_encoder("dinov2")
class Dinov2(WorldEncoder):
    """Any `facebook/dinov2-*` (also `-with-registers-*`), or a local folder of one.

    Layers count hidden states: 0 the embeddings, i the output of block i, -1 the last block's output after the final
    layernorm. Register tokens are dropped.
    """

    default_model_id = "facebook/dinov2-base"
    default_height_px = 224
    default_width_px = 224

    def build(self, spec: EncoderSpec) -> tuple[nn.Module, str | None]:
        """Load the model, cut after the deepest layer asked for."""
        model, revision = load_pretrained(
            spec, {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
        )
        check_patch_size(spec, model.config.patch_size)
        self.image_mean, self.image_std = image_statistics(spec, revision, (IMAGENET_MEAN, IMAGENET_STD))
        self._n_blocks = model.config.num_hidden_layers
        self._n_prefix = 1 + getattr(model.config, "num_register_tokens", 0)
        keep_layers(model.encoder, spec)
        return model, revision

    def features(self, frames: Tensor, layers: list[int]) -> dict[int, LayerFeatures]:
        """Run the model once and keep the hidden states asked for."""
        model, patch = self.network, self.network.config.patch_size
        grid = (frames.shape[-2] // patch, frames.shape[-1] // patch)
        modules = layer_modules(layers, self._n_blocks, model.embeddings, model.encoder.layer, model.layernorm)
        with captured(modules) as hidden:
            model(pixel_values=frames[:, 0])
        return {
            layer: LayerFeatures(
                patches=tokens[:, self._n_prefix :].transpose(1, 2).unflatten(2, grid),
                cls=tokens[:, 0],
            )
            for layer, tokens in hidden.items()
        }
