"""Let any linear layer of a policy read a world memory, without touching the code that calls it.

A policy whose `forward` lives upstream is given its memory by swapping one layer: the layer keeps its weights, their
names and their gradients, and holds a gated cross-attention as a child. What upstream changes around it doesn't matter.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from world_modality_core.memory.gated_attention import GatedCrossAttention
from world_modality_core.memory.sources import Memory


class MemoryHolder(nn.Module):
    """A module that is given its memory before the forward pass that reads it; abstract."""

    def remember(self, memory: Memory) -> None:
        """Take the memory that the next forward passes read."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop the memory: reading without a new one is an error."""
        raise NotImplementedError


class MemoryReader(MemoryHolder):
    """A gated cross-attention that is given its memory before the forward pass that reads it.

    Keys and values are projected once per memory, however often the memory is read (a flow-matching policy reads it at
    every denoising step).

    Args:
        attention: The gated cross-attention.
    """

    def __init__(self, attention: GatedCrossAttention):
        super().__init__()
        self.attention = attention
        self.forget()

    def remember(self, memory: Memory) -> None:
        tokens = memory.tokens.to(self.attention.norm_memory.weight.dtype)
        self._keys, self._values = self.attention.project(tokens, memory.is_pad)
        self._is_pad = memory.is_pad

    def forget(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._is_pad: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Add what is read from the memory: (b, h, d) -> (b, h, d).

        Raises:
            RuntimeError: if no memory was given.
        """
        if self._keys is None:
            raise RuntimeError("the world memory was not filled before the layer that reads it ran")
        return self.attention(x, is_pad=self._is_pad, keys_values=(self._keys, self._values))


class WorldInjectedLinear(nn.Linear):
    """`linear(inject(x))`, or `inject(linear(x))`: a linear layer around which a memory is read.

    It takes over the weight and bias of the layer that it replaces, under the same names.

    Args:
        linear: The layer to replace.
        attention: The gated cross-attention; its width is that of the layer's input (`at="input"`) or output.
        at: Where the memory is read.
    """

    def __init__(self, linear: nn.Linear, attention: GatedCrossAttention, at: Literal["input", "output"] = "input"):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.at = at
        self.world_reader = MemoryReader(attention)

    def forward(self, x: Tensor) -> Tensor:
        """(b, h, in_features) -> (b, h, out_features)."""
        if self.at == "input":
            return super().forward(self.world_reader(x))
        return self.world_reader(super().forward(x))
