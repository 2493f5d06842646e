"""Let any layer of a policy read a world memory, without touching the code that calls it.

A policy whose `forward` lives upstream is given its memory by a hook on one layer: the layer keeps its class, its
weights, their names and their gradients, and holds the reader as its child `world_reader`. What upstream changes around
it doesn't matter.
"""

from __future__ import annotations

from typing import Any, Literal

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

    Attributes:
        was_read: Whether the memory at hand was read.
    """

    def __init__(self, attention: GatedCrossAttention):
        super().__init__()
        self.attention = attention
        self.forget()

    def remember(self, memory: Memory) -> None:
        tokens = memory.tokens.to(self.attention.norm_memory.weight.dtype)
        self._keys, self._values = self.attention.project(tokens, memory.is_pad, memory.time)
        self._is_pad = memory.is_pad

        self.was_read = False

    def forget(self) -> None:
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self._is_pad: Tensor | None = None
        self.was_read = False

    def __getstate__(self) -> dict[str, Any]:
        # A copy or a pickle of the policy holds no memory: it is of one forward pass, and may hang on its graph.
        return self.__dict__ | {"_keys": None, "_values": None, "_is_pad": None, "was_read": False}

    def forward(self, x: Tensor) -> Tensor:
        """Add what is read from the memory: (b, h, d) -> (b, h, d).

        Raises:
            RuntimeError: if no memory was given, or not one for each sample of x.
        """
        if self._keys is None:
            raise RuntimeError("the world memory was not filled before the layer that reads it ran")
        if x.ndim != 3 or len(x) != len(self._keys):  # else axes that happen to be as long would be mixed up
            raise RuntimeError(
                f"the layer that reads the world memory was called with states of shape {tuple(x.shape)}; expected "
                f"(b, h, d) = ({len(self._keys)}, h, d), of a Conv1d (b, d, h): let another layer read"
            )
        self.was_read = True
        return self.attention(x, is_pad=self._is_pad, keys_values=(self._keys, self._values))


def layer_width(layer: nn.Module, at: Literal["input", "output"] = "input") -> int:
    """Width d of what enters or leaves a layer: `Linear`, `Conv1d`, or X-VLA's `DomainAwareLinear`.

    Raises:
        TypeError: if the layer doesn't say how wide it is.
    """
    names = {"input": ("in_features", "in_channels", "input_size")}.get(at, ("out_features", "out_channels"))
    for name in names:
        if hasattr(layer, name):
            return getattr(layer, name)
    raise TypeError(f"{type(layer).__name__} has none of {', '.join(names)}: its {at} can't read a memory")


def read_memory_at(
    layer: nn.Module, attention: GatedCrossAttention, at: Literal["input", "output"] = "input"
) -> MemoryReader:
    """Let a layer read a memory: `layer(read(x), ...)`, or `read(layer(x, ...))`.

    Args:
        layer: Called with states (b, h, d) first, or (b, d, h) where it is a `Conv1d`.
        attention: The gated cross-attention; its width is that of the layer's input or output.
        at: Where the memory is read.

    Returns:
        The layer's child `world_reader`, which is given the memory.
    """
    layer.world_reader = MemoryReader(attention)
    if at == "input":
        layer.register_forward_pre_hook(_read_at_input)
    else:
        layer.register_forward_hook(_read_at_output)
    return layer.world_reader


# The hooks are given the module that runs: an adapter or a moving average copies the layer, child and hooks with it.


def _read_at_input(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    if not args:
        raise RuntimeError("the layer that reads the world memory was called by keyword: its states must come first")
    return _read(layer, args[0]), *args[1:]


def _read_at_output(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return _read(layer, output)


def _read(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv1d):
        return layer.world_reader(x.mT).mT
    return layer.world_reader(x)
