"""Open-loop rollout of a Prophet: fed its own predictions again and again, how far does it stay ahead of copying?"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lerobot_policy_world_modality.policies.shared.memory_filling import predict_futures
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.prophet.network import Prophet

# (offsets in frames) -> latents (b, w, p, d), standardised, and is_pad (b, w).
Recorded = Callable[[list[int]], tuple[Tensor, Tensor]]


def needs_interpolation(n_history: int, history_stride: int, future_stride: int) -> bool:
    """Whether a history of predicted frames has frames between two predicted ones."""
    return n_history > 1 and history_stride % future_stride != 0


@torch.no_grad()
def open_loop(
    prophet: Prophet,
    world_batch: WorldBatch,
    recorded: Recorded,
    history_stride: int,
    future_stride: int,
    n_rounds: int,
) -> Tensor:
    """Predict K steps, take them for what happened, predict the next K, and so on.

    Round r starts at frame o = r * K * future_stride. Its history holds recorded latents up to the current frame and
    predicted ones after it; a frame that lies between two predicted ones (a history denser than the predictions) is
    interpolated linearly. State and task stay those of the current frame. Of several hypotheses the believed one goes
    on.

    Args:
        prophet: The predictor.
        world_batch: The current frames, with their history.
        recorded: Looks up recorded latents; asked for offsets <= 0 only.
        history_stride: Frames between two latents of a history.
        future_stride: Frames between two predicted ones.
        n_rounds: Rounds, at least 1.

    Returns:
        (b, n_rounds * k, p, d) predicted latents; the first k are the one-shot prediction.
    """
    known = [
        world_batch.current[:, None],
        predict_futures(prophet, world_batch).best(),  # at 0, then each future_stride
    ]
    for round_ in range(1, n_rounds):
        nodes = torch.cat(known, dim=1)
        origin = round_ * prophet.n_future * future_stride
        wanted = [origin - i * history_stride for i in reversed(range(prophet.n_history))]
        past = [at for at in wanted if at <= 0]
        parts, is_pad = [], torch.zeros(len(nodes), len(wanted), dtype=torch.bool, device=nodes.device)
        if past:
            latents, is_pad[:, : len(past)] = recorded(past)
            parts.append(latents)
        for at in wanted[len(past) :]:
            before, part = divmod(at, future_stride)
            latent = nodes[:, before]
            if part:
                latent = torch.lerp(latent, nodes[:, before + 1], part / future_stride)
            parts.append(latent[:, None])
        history = torch.cat(parts, dim=1)
        known.append(prophet(history, is_pad, world_batch.state, world_batch.language).best())
    return torch.cat(known[1:], dim=1)
