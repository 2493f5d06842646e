"""What "layer" means for the transformer families, and how layers that nobody reads are left out.

Layer 0 is the embeddings, layer i in 1..L the output of block i, as in transformers' `hidden_states`. Negative layers
count from the end as there (-2 is block L-1), with one exception: -1 is `last_hidden_state`, the output of block L
*after* the final layernorm; layer L is the same without it.
"""

from __future__ import annotations

from torch import nn

from world_modality_core.encoders.base import layer_position
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError


def keep_layers(encoder: nn.Module, spec: EncoderSpec) -> None:
    """Drop the blocks behind the deepest layer that the spec reads, so that they are neither stored nor computed.

    Args:
        encoder: The transformer, its blocks in `encoder.layer`.
        spec: Names the layers.

    Raises:
        ConfigError: if the spec names a layer that does not exist.
    """
    n_blocks = len(encoder.layer)
    what = f"0 the embeddings, 1..{n_blocks} the blocks, -1 the last with the final layernorm"
    deepest = max(layer_position(part.layer, n_blocks + 1, what) for part in spec.parts)
    encoder.layer = encoder.layer[:deepest]


def layer_modules(
    layers: list[int], n_blocks: int, embeddings: nn.Module, blocks: nn.ModuleList, layernorm: nn.Module
) -> dict[int, nn.Module]:
    """Name the module whose output each layer is.

    Args:
        layers: Layer indices as the spec writes them.
        n_blocks: L, blocks of the whole model.
        embeddings: Module of layer 0.
        blocks: The blocks kept.
        layernorm: The final layernorm.
    """
    positions = {layer: layer % (n_blocks + 1) for layer in layers if layer != -1}
    modules = {layer: embeddings if i == 0 else blocks[i - 1] for layer, i in positions.items()}
    return modules | ({-1: layernorm} if -1 in layers else {})


def check_patch_size(spec: EncoderSpec, patch: int) -> None:
    """Refuse image sizes that would lose a strip of pixels.

    Raises:
        ConfigError: if height_px or width_px is not a multiple of the patch.
    """
    for name in ("height_px", "width_px"):
        size = getattr(spec, name)
        if size % patch:
            below = max(patch, size // patch * patch)
            raise ConfigError(f"encoder.{name}={size}: must be a multiple of the patch, {patch} px; try {below}")
