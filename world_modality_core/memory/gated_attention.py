"""Gated cross-attention: how an action stream reads a world memory without being able to be harmed by it.

    x + tanh(gate) * attention(norm(x), memory),  gate = 0 at the start

(seed, "Model F Architecture"; the gating is Flamingo's, arXiv:2204.14198 section 2.2, without its feed-forward half.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

# Periods of the embedding of time: 2, 4, ..., 2^12 frames.
N_WAVES = 12


class Gate(nn.Module):
    """The factor tanh(g) on what was read from memory; 0 at the start.

    Args:
        kind: "scalar": one g. "per_head": one g per head. "per_token": g = w . query + c, with w = 0 and c = 0 at
            the start. "open": no g, the factor is 1; for readers that start from nothing by themselves.
        d: Width of a query.
        n_heads: Attention heads.
    """

    def __init__(self, kind: str, d: int, n_heads: int):
        super().__init__()
        self.kind = kind
        # Held shut: the factor is 0 and no gradient reaches the gate (`memory.gate_warmup_steps`).
        self.is_held = False
        # Closed at test time, whatever the warm-up says (the arm `gate_closed`, docs/evaluation.md).
        self.is_closed = False
        if kind == "per_token":
            self.weight = nn.Parameter(torch.zeros(d))
        if kind != "open":
            self.value = nn.Parameter(torch.zeros(n_heads if kind == "per_head" else 1))

    def forward(self, queries: Tensor) -> Tensor:
        """Compute the gate of each query and head.

        Args:
            queries: (b, h, d).

        Returns:
            (b | 1, h | 1, n_heads | 1) in [-1, 1], fp32.
        """
        factor = 0.0 if self.is_held or self.is_closed else 1.0
        if self.kind == "open":
            return torch.full((1, 1, 1), factor, device=queries.device)
        gate = self.value.float()
        if self.kind == "per_token":
            gate = gate + (queries.float() * self.weight.float()).sum(-1, keepdim=True)
        else:
            gate = gate[None, None]
        return torch.tanh(gate) * factor

    def _apply(self, fn, recurse=True):
        # A gate moves in steps of 1e-4: bf16 would round them away. Follow `fn` to its device, not to its dtype.
        super()._apply(fn, recurse)
        for parameter in self.parameters(recurse=False):
            if parameter.dtype != torch.float32:
                parameter.data = parameter.data.float()
        return self


class GatedReader(nn.Module):
    """A module that reads a world memory behind a `gate`, and keeps what it last did, for logs; never trained on.

    Attributes:
        gate: The gate.
    """

    gate: Gate

    def __init__(self):
        super().__init__()
        self._last: tuple[Tensor, Tensor | None] | None = None

    def _keep(self, gate: Tensor, attention: Tensor | None, b: int) -> None:
        """Keep gate (b | 1, ...) and attention (b, heads, h, m) of a call with b samples."""
        self._last, self._b = (gate.detach(), None if attention is None else attention.detach()), b

    @property
    def last_gate(self) -> Tensor:
        """() mean gate."""
        return self._last[0].mean()

    @property
    def last_sample_gate(self) -> Tensor:
        """(b,) mean |gate|, in which gates of both signs don't cancel."""
        return self._last[0].abs().mean((1, 2)).expand(self._b)

    @property
    def last_sample_mass(self) -> Tensor | None:
        """(b, m) share of attention per memory token; None where there is no attention of its own."""
        return None if self._last[1] is None else self._last[1].float().mean((1, 2))

    @property
    def last_sample_entropy(self) -> Tensor | None:
        """(b,) entropy of the attention over that of uniform attention."""
        if self._last[1] is None:
            return None
        attention = self._last[1].float()
        return torch.special.entr(attention).sum(-1).mean((1, 2)) / math.log(max(attention.shape[-1], 2))

    @property
    def last_attention_mass(self) -> Tensor | None:
        """(m,) share of attention per memory token, averaged over samples."""
        return None if self._last[1] is None else self.last_sample_mass.mean(0)

    @property
    def last_attention_entropy(self) -> Tensor | None:
        """() entropy of the attention over that of uniform attention, averaged over samples."""
        return None if self._last[1] is None else self.last_sample_entropy.mean()


class TimeEmbedding(nn.Module):
    """Embed how many frames from now a token is, negative in the past; periods of 2 to 4,096 frames.

    Args:
        d: Width.
    """

    def __init__(self, d: int):
        super().__init__()
        self.project = nn.Linear(2 * N_WAVES, d, bias=False)

    def forward(self, time: Tensor) -> Tensor:
        """(b, m) -> (b, m, d)."""
        # No buffer: a policy that is cast to bf16 would round it, and with it the age of what is long past.
        angles = time[..., None].float() * (math.pi / 2.0 ** torch.arange(N_WAVES, device=time.device))
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return self.project(waves.to(self.project.weight.dtype))


class GatedCrossAttention(GatedReader):
    """Read a memory of predicted latents into an action stream, behind a gate.

    Args:
        d: Width of the action stream.
        d_memory: Width of a memory token.
        n_positions: Memory tokens; each position has a learned key embedding, since latents don't carry their time.
        n_heads: Attention heads; must divide `d`.
        gate: Kind of gate, see `Gate`.
        is_timed: Whether tokens carry their time, as past frames do, whose age differs from plan to plan.
    """

    def __init__(
        self,
        d: int,
        d_memory: int,
        n_positions: int,
        n_heads: int = 4,
        gate: str = "scalar",
        is_timed: bool = False,
    ):
        super().__init__()
        if d % n_heads:
            raise ValueError(f"memory.n_heads={n_heads} does not divide the action stream's width {d}")
        self.d_memory = d_memory
        self.n_positions = n_positions
        self.n_heads = n_heads
        self.norm_query = nn.LayerNorm(d)
        self.norm_memory = nn.LayerNorm(d_memory)
        self.to_query = nn.Linear(d, d)
        self.to_key_value = nn.Linear(d_memory, 2 * d)
        self.position = nn.Parameter(torch.randn(n_positions, d) * 0.02)
        self.to_out = nn.Linear(d, d, bias=False)
        self.gate = Gate(gate, d, n_heads)
        self.time = TimeEmbedding(d) if is_timed else None

    def project(
        self, memory: Tensor, is_pad: Tensor | None = None, time: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Turn a memory into keys and values, once per action chunk.

        Args:
            memory: (b, n_positions, d_memory) world latents, unnormalised.
            is_pad: (b, n_positions) True where a token must not be attended to; such tokens may hold anything.
            time: (b, n_positions) frames from now of each token, where tokens carry their time.

        Returns:
            Keys and values, each (b, n_heads, n_positions, d / n_heads).

        Raises:
            ValueError: if the memory's shape is not (b, n_positions, d_memory).
        """
        if memory.shape[1:] != (self.n_positions, self.d_memory):
            raise ValueError(
                f"memory has shape {tuple(memory.shape)}; expected (b, {self.n_positions}, {self.d_memory})"
            )
        if is_pad is not None:
            memory = memory.masked_fill(is_pad[..., None], 0.0)
        keys, values = self.to_key_value(self.norm_memory(memory)).chunk(2, dim=-1)
        keys = keys + self.position
        if self.time is not None:
            keys = keys + self.time(time)
        return self._split(keys), self._split(values)

    def forward(
        self,
        queries: Tensor,
        memory: Tensor | None = None,
        is_pad: Tensor | None = None,
        keys_values: tuple[Tensor, Tensor] | None = None,
        time: Tensor | None = None,
    ) -> Tensor:
        """Add gated cross-attention over predicted futures to the action stream.

        out = queries + tanh(gate) * attention(norm(queries), memory). With gate == 0 the output is `queries`, bit for
        bit. A row whose memory is padded throughout reads nothing.

        Args:
            queries: (b, h, d) action-stream hidden states.
            memory: (b, n_positions, d_memory) predicted world latents, unnormalised.
            is_pad: (b, n_positions) True where a memory token must not be attended to.
            keys_values: What `project` returned, instead of `memory`.
            time: (b, n_positions) frames from now of each token, where tokens carry their time.

        Returns:
            (b, h, d), same dtype as `queries`.

        Raises:
            ValueError: if neither or both of `memory` and `keys_values` are given, or memory's shape is wrong.
        """
        if (memory is None) == (keys_values is None):
            raise ValueError("give either `memory` or `keys_values`")
        keys_values = self.project(memory, is_pad, time) if keys_values is None else keys_values
        normed = self.norm_query(queries.to(self.norm_query.weight.dtype))
        read, attention = self.attend(normed, keys_values, is_pad)
        gate = self.gate(normed)  # (b | 1, h | 1, heads | 1)
        gated = read * gate.permute(0, 2, 1)[..., None].to(read.dtype)
        self._keep(gate, attention, len(attention))
        update = self.to_out(gated.transpose(1, 2).flatten(2))
        return queries + update.to(queries.dtype)

    def attend(
        self, normed: Tensor, keys_values: tuple[Tensor, Tensor], is_pad: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Read a projected memory.

        Args:
            normed: (b, h, d) queries.
            keys_values: See `project`.
            is_pad: (b, n_positions) True where a token must not be attended to.

        Returns:
            What was read (b, heads, h, d / heads), and the attention (b, heads, h, n_positions).
        """
        keys, values = keys_values
        scores = self._split(self.to_query(normed)) @ keys.mT * keys.shape[-1] ** -0.5  # (b, heads, h, n_positions)
        if is_pad is not None:
            scores = scores.masked_fill(is_pad[:, None, None], float("-inf"))
            all_pad = is_pad.all(-1)[:, None, None, None]
            scores = scores.masked_fill(all_pad, 0.0)  # a row without any -inf gives no NaN ...
            attention = scores.softmax(-1).masked_fill(all_pad, 0.0)  # ... and reads nothing
        else:
            attention = scores.softmax(-1)
        return attention @ values, attention

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
