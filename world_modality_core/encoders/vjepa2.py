"""V-JEPA 2 (Assran et al., 2025) through transformers: a video encoder over a causal window of m frames."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.encoders.base import IMAGENET_MEAN, IMAGENET_STD, WorldEncoder
from world_modality_core.encoders.pooling import LayerFeatures
from world_modality_core.encoders.pretrained import captured, image_statistics, load_pretrained
from world_modality_core.encoders.registry import register_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.encoders.transformer_layers import check_patch_size, keep_layers, layer_modules
from world_modality_core.io.errors import ConfigError


@register_encoder("vjepa2")
class VJepa2(WorldEncoder):
    """Any `facebook/vjepa2-*`, or a local folder of one; the predictor is dropped.

    The model reads tubelets of two frames. A window whose m is no multiple of that is lengthened at its old end by
    repeating its oldest frame, so that the newest tubelet always ends at the frame encoded; for m == 1 that is the
    doubling that upstream does for still images.

    Features are the patches of the *newest* tubelet only. Attention runs over the whole window, so they have seen its
    past; averaging the patches of older tubelets in would blur where things are now, which is what a grid is for.

    Layers count hidden states, see `transformer_layers`. No class token.
    """

    default_model_id = "facebook/vjepa2-vitl-fpc64-256"
    default_height_px = 256
    default_width_px = 256
    is_temporal = True

    def build(self, spec: EncoderSpec) -> tuple[nn.Module, str | None]:
        """Load the model without its predictor, cut after the deepest layer asked for.

        Raises:
            ConfigError: if the frames are not square: upstream numbers patches on a square grid.
        """
        if spec.height_px != spec.width_px:
            raise ConfigError(
                f"encoder.height_px={spec.height_px}, encoder.width_px={spec.width_px}: V-JEPA 2 needs them equal, its "
                "rotary positions are laid out on a square"
            )
        # Rotary positions come from crop_size, not from the input: 16 patches a row at crop_size 256, whatever the
        # frames' width. Left at the checkpoint's value, another size would put patches in the wrong row, silently.
        model, revision = load_pretrained(spec, {"vjepa2": "VJEPA2Model"}, crop_size=spec.height_px)
        check_patch_size(spec, model.config.patch_size)
        self.image_mean, self.image_std = image_statistics(spec, revision, (IMAGENET_MEAN, IMAGENET_STD))
        self._n_blocks = model.config.num_hidden_layers
        del model.predictor
        keep_layers(model.encoder, spec)
        return model, revision

    def features(self, frames: Tensor, layers: list[int]) -> dict[int, LayerFeatures]:
        """Run the model once over the window and keep the newest tubelet of the hidden states asked for."""
        model, config = self.network, self.network.config
        n_missing = -frames.shape[1] % config.tubelet_size
        video = torch.cat([frames[:, :1].expand(-1, n_missing, -1, -1, -1), frames], dim=1)
        side = config.crop_size // config.patch_size
        encoder = model.encoder
        modules = layer_modules(layers, self._n_blocks, encoder.embeddings, encoder.layer, encoder.layernorm)
        with captured(modules) as hidden:
            model(pixel_values_videos=video, skip_predictor=True)
        return {
            layer: LayerFeatures(patches=tokens[:, -side * side :].transpose(1, 2).unflatten(2, (side, side)))
            for layer, tokens in hidden.items()
        }
