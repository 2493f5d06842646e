"""Modulation: a world memory scales and shifts an action stream, instead of being attended to by each of its states.

A few learned queries read the memory once per chunk; what they read becomes one scale and one shift for all action
states, both 0 at the start (adaLN-Zero, arXiv:2212.09748; RoboMME, arXiv:2603.04639, found a memory to help more so
than as context).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.memory.gated_attention import GatedCrossAttention

N_QUERIES = 4


class MemoryModulation(GatedCrossAttention):
    """x + scale * x + shift, both read from a memory; for what it logs as its gate, |scale| stands.

    Args:
        d: Width of the action stream.
        d_memory: Width of a memory token.
        n_positions: Memory tokens.
        n_heads: Attention heads; must divide `d`.
        is_timed: Whether tokens carry their time.
    """

    def __init__(self, d: int, d_memory: int, n_positions: int, n_heads: int = 4, is_timed: bool = False):
        super().__init__(d, d_memory, n_positions, n_heads, "open", is_timed)
        self.queries = nn.Parameter(torch.randn(N_QUERIES, d) * 0.02)
        self.to_scale_shift = nn.Linear(N_QUERIES * d, 2 * d, bias=False)
        nn.init.zeros_(self.to_scale_shift.weight)

    def project(
        self, memory: Tensor, is_pad: Tensor | None = None, time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Read a memory, once per action chunk; arguments as `GatedCrossAttention.project`.

        Returns:
            Scale and shift, each (b, 1, d).
        """
        queries = self.queries.expand(len(memory), -1, -1)
        read, attention = self.attend(self.norm_query(queries), super().project(memory, is_pad, time), is_pad)
        self._attention = attention.detach()
        return self.to_scale_shift(self.to_out(read.transpose(1, 2).flatten(2)).flatten(1))[:, None].chunk(2, dim=-1)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor | None = None,
        is_pad: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Scale and shift an action stream by what is read from a memory; arguments as `GatedCrossAttention.forward`.

        While scale and shift are 0 the output is `queries`, bit for bit.

        Args:
            queries: (b, h, d) action-stream hidden states; they don't choose what is read.
            memory: (b, n_positions, d_memory) world latents.
            is_pad: (b, n_positions) True where a memory token must not be read.
            keys_values: What `project` returned, instead of `memory`.
            time: (b, n_positions) steps from now of each token.

        Returns:
            (b, h, d), same dtype as `queries`.
        """
        scale, shift = self.project(memory, is_pad, time) if keys_values is None else keys_values
        gate = self.gate(queries)  # (1, 1, 1): 1, or 0 while it is held
        self._keep(gate * scale.abs().mean(-1, keepdim=True), self._attention, len(queries))
        return queries + (gate * (scale * queries + shift)).to(queries.dtype)
