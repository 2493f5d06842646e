"""From the patch features of one layer to the tokens of one pooling part."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from world_modality_core.encoders.spec import PoolingPart
from world_modality_core.io.errors import ConfigError


@dataclass(frozen=True)
class LayerFeatures:
    """What an encoder's layer says about n frames.

    Attributes:
        patches: (n, d, rows, cols) features on the patch grid, row 0 at the top of the image, column 0 at its left.
        cls: (n, d) class token, None where the family has none.
    """

    patches: Tensor
    cls: Tensor | None = None


def pool(features: LayerFeatures, part: PoolingPart) -> Tensor:
    """Pool one layer's features into one part's tokens.

    "grid" averages with `adaptive_avg_pool2d` (cells overlap by a patch where the grid does not divide); "s2d"
    concatenates the patches of a cell, row by row, so a token is (patch rows * patch cols * d) wide.

    Args:
        features: Features of the part's layer.
        part: The pooling part.

    Returns:
        (n, p, d) float32, tokens in reading order (left to right, then top to bottom).

    Raises:
        ConfigError: if the part asks for a class token where there is none, for more cells than there are patches, or
            for a space-to-depth grid that does not divide the patches.
    """
    if part.kind == "cls":
        if features.cls is None:
            raise ConfigError(
                "encoder.pooling='cls': this encoder has no class token; use 'mean', 'grid:RxC' or 's2d:RxC'"
            )
        return features.cls.float().unsqueeze(1)

    patches = features.patches.float()
    n, d, height, width = patches.shape
    rows, cols = part.rows, part.cols
    if part.kind == "mean":
        return patches.mean(dim=(2, 3)).unsqueeze(1)
    if rows > height or cols > width:
        raise ConfigError(
            f"encoder.pooling='{part.kind}:{rows}x{cols}': layer {part.layer} has only {height}x{width} patches; ask "
            "for at most as many cells, or raise encoder.height_px and encoder.width_px"
        )
    if part.kind == "grid":
        return F.adaptive_avg_pool2d(patches, (rows, cols)).flatten(2).transpose(1, 2)
    if height % rows or width % cols:
        raise ConfigError(
            f"encoder.pooling='s2d:{rows}x{cols}': the {height}x{width} patches of layer {part.layer} do not divide "
            f"into {rows}x{cols} cells; use 'grid:{rows}x{cols}', which averages, or a grid that divides"
        )
    cells = patches.reshape(n, d, rows, height // rows, cols, width // cols)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(n, rows * cols, -1)
