"""The Prophet: history of world latents -> the next ones (seed, "Model F Architecture").

z_{t-T+1..t}  (+ state, + language)  ->  z^_{t+1..t+K}
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from world_modality_core.configs import ProphetConfig
from world_modality_core.prophet.transformer import make_encoder


@dataclass
class Futures:
    """Predicted futures.

    Attributes:
        latents: (b, n, k, p, d) predicted latents of n hypotheses, in the (standardised) space of the history.
        scores: (b, n) logits: which hypothesis the Prophet believes in.
        hidden: (b, k, q, d_prophet) states that they are predicted from, q = p or 1 slots a frame; None where there is
            no Prophet behind them.
        displacement: (b, k, s) how far the robot's state will have moved from the present one, standardised; None if
            the Prophet doesn't forecast.
    """

    latents: Tensor
    scores: Tensor
    hidden: Tensor | None = None
    displacement: Tensor | None = None

    def best(self) -> Tensor:
        """The hypothesis with the highest score: (b, k, p, d)."""
        if self.latents.shape[1] == 1:
            return self.latents[:, 0]
        pick = self.scores.argmax(-1)
        return self.latents[torch.arange(len(pick), device=pick.device), pick]

    def as_memory(self) -> Tensor:
        """All hypotheses as memory tokens: (b, n * k * p, d)."""
        return self.latents.flatten(1, 3)


class Prophet(nn.Module):
    """Predict the next latents with a transformer over history tokens and learned future queries.

    Args:
        n_tokens: Latent tokens per frame, p.
        dim: Width of a latent token, d.
        n_history: History frames, t.
        n_future: Future frames, k.
        config: Sizes and options; `d_model` must be set.
        state_dim: Width of the robot state, if `config.use_state` or `config.tells_state`.
        language_dim: Width of a task embedding, if `config.use_language`.
    """

    def __init__(
        self,
        n_tokens: int,
        dim: int,
        n_history: int,
        n_future: int,
        config: ProphetConfig,
        state_dim: int = 0,
        language_dim: int = 0,
    ):
        super().__init__()
        self.config = config
        self.n_tokens, self.dim, self.n_history, self.n_future = n_tokens, dim, n_history, n_future
        d = config.d_model
        # A slot is what one transformer token stands for: a cell of a frame, or a whole frame.
        self.n_slots = n_tokens if config.per_cell else 1
        slot_dim = n_tokens * dim // self.n_slots
        self.embed = nn.Linear(slot_dim, d)
        self.time = nn.Parameter(torch.randn(n_history + n_future, 1, d) * 0.02)
        self.slot = nn.Parameter(torch.randn(1, self.n_slots, d) * 0.02)
        self.state = nn.Linear(state_dim, d) if config.use_state else None
        self.language = nn.Linear(language_dim, d) if config.use_language else None
        self.encoder = make_encoder(d, config.n_layers, config.n_heads, 0, config.dropout)
        self.head = nn.Linear(d, config.n_hypotheses * slot_dim)
        self.score = nn.Linear(d, config.n_hypotheses) if config.n_hypotheses > 1 else None
        if config.residual and config.n_hypotheses == 1:
            nn.init.zeros_(self.head.weight)  # starts as "copy the last latent", the baseline to beat
            nn.init.zeros_(self.head.bias)
        elif config.residual:
            nn.init.normal_(self.head.weight, std=1e-3)  # hypotheses must differ for best-of-n to tell them apart
        self.displacement = nn.Linear(d, state_dim) if config.tells_state else None
        if self.displacement is not None:
            nn.init.zeros_(self.displacement.weight)  # starts as "stays where it is"
            nn.init.zeros_(self.displacement.bias)
        if config.freeze:
            self.requires_grad_(False)

    def train(self, mode: bool = True) -> Prophet:
        """As torch's; a frozen Prophet stays in evaluation mode."""
        return super().train(mode and not self.config.freeze)

    def forward(
        self,
        history: Tensor,
        is_pad: Tensor | None = None,
        state: Tensor | None = None,
        language: Tensor | None = None,
    ) -> Futures:
        """Predict the futures of a batch of histories.

        Args:
            history: (b, t, p, d) standardised latents, oldest first; the last is the current frame.
            is_pad: (b, t) True for frames before the start of the episode; the current frame is never one.
            state: (b, s) normalised robot state, if configured.
            language: (b, l) task embedding, if configured.

        Returns:
            The predicted futures.
        """
        # A switch of its own: adapters (PEFT) copy a policy's modules and let the copies' parameters train.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.config.freeze):
            return self._predict(history, is_pad, state, language)

    def _predict(
        self, history: Tensor, is_pad: Tensor | None, state: Tensor | None, language: Tensor | None
    ) -> Futures:
        b, t = history.shape[:2]
        past = self.embed(history.reshape(b, t, self.n_slots, -1)) + self.time[:t] + self.slot
        queries = (self.time[t:] + self.slot).expand(b, -1, -1, -1)
        tokens = [past.flatten(1, 2), queries.flatten(1, 2)]
        if self.state is not None:
            tokens.insert(0, self.state(state)[:, None])
        if self.language is not None:
            tokens.insert(0, self.language(language)[:, None])
        x = torch.cat(tokens, dim=1)
        mask = None
        if is_pad is not None:
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            start = x.shape[1] - (t + self.n_future) * self.n_slots
            mask[:, start : start + t * self.n_slots] = is_pad.repeat_interleave(self.n_slots, dim=1)
        x = self.encoder(x, src_key_padding_mask=mask)[:, -self.n_future * self.n_slots :]
        n = self.config.n_hypotheses
        futures = self.head(x).reshape(b, self.n_future, self.n_slots, n, -1).permute(0, 3, 1, 2, 4)
        futures = futures.reshape(b, n, self.n_future, self.n_tokens, self.dim)
        if self.config.residual:
            futures = futures + history[:, None, -1:]
        scores = futures.new_zeros(b, 1) if self.score is None else self.score(x.mean(1))
        hidden = x.unflatten(1, (self.n_future, self.n_slots))
        displacement = None if self.displacement is None else self.displacement(hidden.mean(2))
        return Futures(futures, scores, hidden, displacement)


@torch.no_grad()
def rescale_input(layer: nn.Linear, scale: Tensor, shift: Tensor) -> None:
    """Fold a change of an input's units into a layer: afterwards layer(x) is what layer(x * scale + shift) was.

    Args:
        layer: Changed in place.
        scale: (n_inputs,).
        shift: (n_inputs,).
    """
    weight = layer.weight.double()
    layer.bias += (weight @ shift.to(weight)).to(layer.bias)
    layer.weight.copy_(weight * scale.to(weight))
