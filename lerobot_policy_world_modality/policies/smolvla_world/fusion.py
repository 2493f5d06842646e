"""F1, F2, F3a and F3b: where SmolVLA's action path reads a world memory (docs/smolvla_world.md).

F1 and F2 hook a linear layer. F3a and F3b wrap the one call through which SmolVLA runs its language model and expert.
Nothing of SmolVLA's forward pass is repeated here; at closed gates it computes what it computes alone, bit for bit.
"""

from __future__ import annotations

from typing import Any

import torch
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from torch import Tensor, nn
from transformers import DynamicCache

from world_modality_core.memory.gated_attention import Gate, GatedCrossAttention, GatedReader, TimeEmbedding
from world_modality_core.memory.injected_layer import MemoryHolder, MemoryReader
from world_modality_core.memory.sources import Memory


class MemoryTokens(GatedReader, MemoryHolder):
    """World memory as tokens of the language model's prefix, and the gate on what they change (F3a).

    Args:
        d_memory: Width of a memory token.
        n_positions: Memory tokens, m.
        d_prefix: Width of the language model.
        d_expert: Width of the action expert.
        n_heads: Groups of the expert's channels that a "per_head" gate tells apart.
        gate: Kind of gate, see `Gate`.
        is_timed: Whether tokens carry their time.
    """

    def __init__(
        self,
        d_memory: int,
        n_positions: int,
        d_prefix: int,
        d_expert: int,
        n_heads: int,
        gate: str,
        is_timed: bool = False,
    ):
        super().__init__()
        if d_expert % n_heads:
            raise ValueError(f"memory.n_heads={n_heads} does not divide the action expert's width {d_expert}")
        self.n_positions, self.n_heads = n_positions, n_heads
        self.norm_memory = nn.LayerNorm(d_memory)
        self.to_prefix = nn.Linear(d_memory, d_prefix)
        self.position = nn.Parameter(torch.randn(n_positions, d_prefix) * 0.02)
        self.norm_query = nn.LayerNorm(d_expert) if gate == "per_token" else nn.Identity()
        self.gate = Gate(gate, d_expert, n_heads)
        self.time = TimeEmbedding(d_prefix) if is_timed else None
        self.forget()

    def remember(self, memory: Memory) -> None:
        tokens, is_pad = memory.tokens, memory.is_pad
        if is_pad is not None:
            tokens = tokens.masked_fill(is_pad[..., None], 0.0)
        tokens = self.norm_memory(tokens.to(self.norm_memory.weight.dtype))
        self.tokens = self.to_prefix(tokens) + self.position  # (b, m, d_prefix)
        if self.time is not None:
            self.tokens = self.tokens + self.time(memory.time)
        self.is_used = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        if is_pad is not None:
            self.is_used = ~is_pad

    def forget(self) -> None:
        self.tokens: Tensor | None = None  # (b, m, d_prefix)
        self.is_used: Tensor | None = None  # (b, m)
        self.cache: DynamicCache | None = None  # keys and values of prefix and memory, while actions are sampled

    def __getstate__(self) -> dict[str, Any]:  # as `MemoryReader`'s
        return self.__dict__ | {"tokens": None, "is_used": None, "cache": None}

    def keep(self, cache: DynamicCache) -> None:
        """Keep the keys and values of prefix and memory for the denoising steps."""
        self.cache = cache

    def blend(self, plain: Tensor, informed: Tensor) -> Tensor:
        """plain + tanh(gate) * (informed - plain), per group of channels.

        Args:
            plain: (b, h, d_expert) states of the expert that saw no memory.
            informed: (b, h, d_expert) states of the expert that did.
        """
        gate = self.gate(self.norm_query(plain.float()))  # (b | 1, h | 1, n_heads | 1)
        self._keep(gate, None, len(plain))
        change = (informed - plain).unflatten(-1, (self.n_heads, -1))
        return plain + (gate[..., None] * change).flatten(-2).to(plain.dtype)


class WorldSmolVLMWithExpert(SmolVLMWithExpertModel):
    """SmolVLM and its action expert, whose prefix reads the memory (F3b) or holds it as tokens (F3a).

    Has no constructor: `read_at_prefix` turns SmolVLA's own instance into one, as `torch.distributed.fsdp.fully_shard`
    and `torch.nn.utils.parametrize` turn modules into subclasses of theirs. Its children `world_prefix_reader` and
    `world_tokens` are the fusions; either may be None.
    """

    def forward(self, attention_mask=None, position_ids=None, past_key_values=None, inputs_embeds=None, use_cache=None):
        prefix, suffix = inputs_embeds
        if self.world_prefix_reader is not None and prefix is not None:
            prefix = self.world_prefix_reader(prefix)
        plain, cache = super().forward(attention_mask, position_ids, past_key_values, [prefix, suffix], use_cache)
        memory = self.world_tokens
        if memory is None:
            return plain, cache
        if memory.tokens is None:
            raise RuntimeError("the world memory was not filled before the layer that reads it ran")

        # The same pass once more, with the memory's tokens between prefix and suffix. It can't be one pass: tokens in
        # the sequence move positions, share the softmax and change the shape of every matrix product, so that no gate
        # could keep the plain result bit for bit.
        n_suffix = 0 if suffix is None else suffix.shape[1]
        n_prefix = attention_mask.shape[-1] - n_suffix
        mask = insert_tokens(attention_mask, n_prefix, memory.is_used, has_prefix_rows=prefix is not None)
        positions = insert_positions(position_ids, n_prefix, memory.is_used, has_prefix=prefix is not None)
        if prefix is not None:
            prefix = torch.cat([prefix, memory.tokens.to(prefix.dtype)], dim=1)
        informed, filled = super().forward(
            mask, positions, None if prefix is not None else memory.cache, [prefix, suffix], use_cache
        )
        if suffix is None:
            memory.keep(filled)  # the prefix was read once; the denoising steps go on from here
            return plain, cache
        if prefix is None:
            memory.cache.crop(n_prefix + memory.n_positions)  # drop the suffix that self-attention layers appended
        return [plain[0], memory.blend(plain[1], informed[1])], cache


def insert_tokens(mask: Tensor, n_prefix: int, is_used: Tensor, has_prefix_rows: bool) -> Tensor:
    """Make room for memory tokens after the prefix: they see the prefix and each other, and the suffix sees them.

    The prefix doesn't see them, so that it stays what it was. Nothing attends to a token that isn't used.

    Args:
        mask: (b, q, P + h) True where a query may attend; q = P + h, P or h.
        n_prefix: P.
        is_used: (b, m) True for memory tokens that count.
        has_prefix_rows: Whether the first P queries are the prefix.

    Returns:
        (b, q + m, P + m + h) with rows for the prefix, else (b, q, P + m + h).
    """
    b, m = is_used.shape
    n_rows = mask.shape[1]
    n_before = n_prefix if has_prefix_rows else 0
    sees = torch.zeros(b, n_rows, m, dtype=torch.bool, device=mask.device)
    sees[:, n_before:] = is_used[:, None]
    mask = torch.cat([mask[..., :n_prefix], sees, mask[..., n_prefix:]], dim=-1)
    if not has_prefix_rows:
        return mask
    prefix_is_used = mask[:, :n_prefix, :n_prefix].any(1)  # (b, P): what any query sees
    hidden = torch.zeros(b, mask.shape[-1] - n_prefix - m, dtype=torch.bool, device=mask.device)
    row = torch.cat([prefix_is_used, is_used, hidden], dim=-1)
    return torch.cat([mask[:, :n_prefix], row[:, None].expand(-1, m, -1), mask[:, n_prefix:]], dim=1)


def insert_positions(positions: Tensor, n_prefix: int, is_used: Tensor, has_prefix: bool) -> Tensor:
    """Number memory tokens after the last token of the prefix, and move the suffix behind them.

    Args:
        positions: (b, P + h), (b, P) or (b, h) position ids.
        n_prefix: P.
        is_used: (b, m) True for memory tokens that count.
        has_prefix: Whether the first P positions are the prefix.

    Returns:
        Position ids with m more entries after the prefix, or those of the suffix, moved.
    """
    count = is_used.cumsum(1)
    if not has_prefix:
        return positions + count[:, -1:]
    prefix, suffix = positions[:, :n_prefix], positions[:, n_prefix:]
    return torch.cat([prefix, prefix.max(1, keepdim=True).values + count, suffix + count[:, -1:]], dim=1)


def read_at_prefix(
    vlm: SmolVLMWithExpertModel, attention: GatedCrossAttention | None, tokens: MemoryTokens | None
) -> None:
    """Let the prefix cross-attend to the memory (F3b, `attention`), or hold it as tokens (F3a, `tokens`)."""
    vlm.__class__ = WorldSmolVLMWithExpert
    vlm.world_prefix_reader = None if attention is None else MemoryReader(attention)
    vlm.world_tokens = tokens
