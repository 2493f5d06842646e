"""The transformer that the trunk and the Prophet are made of: torch's own, pre-norm."""

from __future__ import annotations

from torch import nn


def make_encoder(d: int, n_layers: int, n_heads: int, d_feedforward: int, dropout: float) -> nn.TransformerEncoder:
    """Build a pre-norm transformer encoder with a final LayerNorm.

    Args:
        d: Width; `n_heads` must divide it.
        n_layers: Layers.
        n_heads: Attention heads.
        d_feedforward: Width of the feed-forward layers; 0 for 4 * d.
        dropout: Dropout in the layers.

    Returns:
        A module of (b, n, d) and a `src_key_padding_mask` (b, n), True where a token must not be attended to.

    Raises:
        ValueError: if `n_heads` does not divide `d`.
    """
    if d % n_heads:
        raise ValueError(f"n_heads={n_heads} does not divide the width {d}")
    layer = nn.TransformerEncoderLayer(
        d, n_heads, d_feedforward or 4 * d, dropout, activation="gelu", batch_first=True, norm_first=True
    )
    # Nested tensors would take another kernel in evaluation than in training.
    return nn.TransformerEncoder(layer, n_layers, norm=nn.LayerNorm(d), enable_nested_tensor=False)
