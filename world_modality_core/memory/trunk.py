"""The trunk that world_A to world_F share: observation tokens + action queries -> action states.

    [language] [state] [world tokens] [latents of t frames] [h action queries]  ->  transformer

The policy types differ only in what enters the sequence and in what is trained beside the action.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.memory.gated_attention import TimeEmbedding
from world_modality_core.prophet.transformer import make_encoder


class WorldTrunk(nn.Module):
    """Turn observations into a context and the states of the action queries.

    Every input is optional; a part that was configured must be given in `forward`.

    Args:
        d: Width.
        n_layers: Transformer layers.
        n_heads: Attention heads.
        d_feedforward: Width of the feed-forward layers; 0 for 4 * d.
        dropout: Dropout in the layers.
        n_actions: Action queries, h.
        latent_shape: (t, p, d_world) of the observation latents; None for a policy without vision.
        per_cell: One trunk token per latent token, instead of one per frame.
        state_dim: Width of the robot state; 0 for none.
        language_dim: Width of a task embedding; 0 for none.
        n_codes: Size of the world-token vocabulary; 0 if world tokens are no input.
        n_world_tokens: World tokens per frame.
    """

    def __init__(
        self,
        d: int,
        n_layers: int,
        n_heads: int,
        d_feedforward: int,
        dropout: float,
        n_actions: int,
        latent_shape: tuple[int, int, int] | None,
        per_cell: bool = True,
        state_dim: int = 0,
        language_dim: int = 0,
        n_codes: int = 0,
        n_world_tokens: int = 0,
    ):
        super().__init__()
        self.n_actions = n_actions
        self.language = nn.Linear(language_dim, d) if language_dim else None
        self.state = nn.Linear(state_dim, d) if state_dim else None
        self.latent = None
        if latent_shape is not None:
            t, p, d_world = latent_shape
            self.n_slots = p if per_cell else 1
            self.latent = nn.Linear(p * d_world // self.n_slots, d)
            self.time = nn.Parameter(torch.randn(t, 1, d) * 0.02)
            self.cell = nn.Parameter(torch.randn(1, self.n_slots, d) * 0.02)
        self.queries = nn.Parameter(torch.randn(n_actions, d) * 0.02)
        self.encoder = make_encoder(d, n_layers, n_heads, d_feedforward, dropout)
        # Last, so that a seed gives the weights above the same values with and without it.
        self.world_token = nn.Embedding(n_codes, d) if n_codes else None
        self.world_token_position = nn.Parameter(torch.randn(n_world_tokens, d) * 0.02) if n_codes else None

    def forward(
        self,
        batch_size: int,
        latents: Tensor | None = None,
        latents_is_pad: Tensor | None = None,
        state: Tensor | None = None,
        language: Tensor | None = None,
        world_tokens: Tensor | None = None,
        memory: tuple[Tensor, Tensor | None] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run the trunk.

        Args:
            batch_size: b.
            latents: (b, t, p, d_world) standardised latents, oldest first.
            latents_is_pad: (b, t) True for frames before the start of the episode.
            state: (b, s) normalised robot state.
            language: (b, l) task embedding.
            world_tokens: (b, n) codes of the current frame.
            memory: (b, m, d) further context tokens, from `AppendedMemory`, and (b, m) True where one must not be read.

        Returns:
            Action states (b, h, d), context (b, c, d) and the context's padding (b, c). The context is empty for a
            policy without any input.
        """
        parts: list[Tensor] = []
        if self.language is not None:
            parts.append(self.language(language)[:, None])
        if self.state is not None:
            parts.append(self.state(state)[:, None])
        if self.world_token is not None:
            parts.append(self.world_token(world_tokens) + self.world_token_position)
        n_always = sum(part.shape[1] for part in parts)
        if self.latent is not None:
            frames = latents.reshape(*latents.shape[:2], self.n_slots, -1)
            tokens = self.latent(frames) + self.time + self.cell
            parts.append(tokens.flatten(1, 2))
        n_observed = sum(part.shape[1] for part in parts)
        if memory is not None:
            parts.append(memory[0])
        parts.append(self.queries.expand(batch_size, -1, -1))
        x = torch.cat(parts, dim=1)
        n_context = x.shape[1] - self.n_actions
        is_pad = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        if self.latent is not None and latents_is_pad is not None:
            is_pad[:, n_always:n_observed] = latents_is_pad.repeat_interleave(self.n_slots, dim=1)
        if memory is not None and memory[1] is not None:
            is_pad[:, n_observed:n_context] = memory[1]
        x = self.encoder(x, src_key_padding_mask=is_pad)
        return x[:, n_context:], x[:, :n_context], is_pad[:, :n_context]

    def freeze_layers(self) -> None:
        """Train no more what reads the latents, nor the transformer's layers."""
        for part in (self.encoder, self.latent, self.time, self.cell):
            part.requires_grad_(False)


class AppendedMemory(nn.Module):
    """Turn a world memory into context tokens of the trunk (`memory.entry=appended`); without a gate.

    Args:
        d: Width of the trunk.
        d_memory: Width of a memory token.
        n_positions: Memory tokens; each position has a learned embedding, since latents don't carry their time.
        is_normed: Whether tokens pass a LayerNorm; not where their length says how far something moves.
        is_timed: Whether tokens carry their time.
    """

    def __init__(self, d: int, d_memory: int, n_positions: int, is_normed: bool = True, is_timed: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(d_memory) if is_normed else nn.Identity()
        self.project = nn.Linear(d_memory, d)
        self.position = nn.Parameter(torch.randn(n_positions, d) * 0.02)
        self.time = TimeEmbedding(d) if is_timed else None

    def forward(self, memory: Tensor, is_pad: Tensor | None = None, time: Tensor | None = None) -> Tensor:
        """Project a memory.

        Args:
            memory: (b, n_positions, d_memory).
            is_pad: (b, n_positions) True where a token won't be read; such tokens may hold anything.
            time: (b, n_positions) frames from now of each token, where tokens carry their time.

        Returns:
            (b, n_positions, d).
        """
        if is_pad is not None:
            memory = memory.masked_fill(is_pad[..., None], 0.0)
        tokens = self.project(self.norm(memory)) + self.position
        return tokens if self.time is None else tokens + self.time(time)


class FutureHead(nn.Module):
    """Auxiliary head of B, B_cont and C: learned future queries read the trunk's context.

    Nothing flows back into the action path but gradients: the head is a multi-task target, not a memory.

    Args:
        d: Width of the trunk.
        n_heads: Attention heads.
        n_future: Future frames, k.
        n_outputs: Values per future frame: n * n_codes logits, or p * d latent entries.
        zero_init: Start with all outputs at 0 (for residual targets).
    """

    def __init__(self, d: int, n_heads: int, n_future: int, n_outputs: int, zero_init: bool = False):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(n_future, d) * 0.02)
        self.attention = nn.MultiheadAttention(d, n_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.norm = nn.LayerNorm(d)
        self.out = nn.Linear(d, n_outputs)
        if zero_init:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def forward(self, context: Tensor, is_pad: Tensor) -> Tensor:
        """Predict from the context.

        Args:
            context: (b, c, d).
            is_pad: (b, c) True where a token must not be read.

        Returns:
            (b, k, n_outputs).
        """
        queries = self.queries.expand(len(context), -1, -1)
        x = queries + self.attention(queries, context, context, key_padding_mask=is_pad, need_weights=False)[0]
        return self.out(self.norm(x + self.mlp(x)))
