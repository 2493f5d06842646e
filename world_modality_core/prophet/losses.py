"""World objectives and the figures that say whether they are met. docs/metrics.md defines each logged name."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from world_modality_core.prophet.network import Futures

# Share of the loss that the losing hypotheses keep, so that none of them dies; the relaxed winner-takes-all loss of
# Rupprecht et al. (arXiv:1612.00197, eq. 6) with epsilon = 0.05.
LOSER_SHARE = 0.05
# Weight of the cross-entropy by which the Prophet learns which of its hypotheses to believe.
SCORE_WEIGHT = 0.1


def frame_cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine between frames, over all tokens of a frame at once.

    Args:
        a: (..., p, d).
        b: (..., p, d), broadcast against `a`.

    Returns:
        (...) in [-1, 1], fp32.
    """
    return F.cosine_similarity(a.flatten(-2).float(), b.flatten(-2).float(), dim=-1)


def masked_mean(values: Tensor, is_pad: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """Mean of the values that are not padding; 0 where all are.

    Args:
        values: Any shape; may hold anything where `is_pad`.
        is_pad: Same shape, True for padding.
        dim: Axes to reduce; all by default.
    """
    keep = ~is_pad
    dim = tuple(range(values.ndim)) if dim is None else dim
    total = values.masked_fill(is_pad, 0.0).sum(dim)
    return total / keep.sum(dim).clamp(min=1)


def future_latent_loss(futures: Futures, target: Tensor, is_pad: Tensor) -> Tensor:
    """One minus the cosine to the true future, over the steps inside the episode; best of n hypotheses.

    Args:
        futures: Predicted latents (b, n, k, p, d).
        target: (b, k, p, d) true latents.
        is_pad: (b, k) True beyond the end of the episode.

    Returns:
        (b,) loss per sample; 0 for a sample without any future.
    """
    return _best_of(frame_cosine(futures.latents, target[:, None]), futures.scores, is_pad)


def future_latent_objective(
    futures: Futures, current: Tensor, target: Tensor, is_pad: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """`future_latent_loss`, and the `skill_metrics` of the hypothesis with the highest score, for logs.

    Args:
        futures: Predicted latents (b, n, k, p, d).
        current: (b, p, d) the latents that copying would predict.
        target: (b, k, p, d) true latents.
        is_pad: (b, k) True beyond the end of the episode.

    Returns:
        (b,) loss per sample, and the figures.
    """
    cosine = frame_cosine(futures.latents, target[:, None])  # (b, n, k)
    with torch.no_grad():
        pick = futures.scores.argmax(-1) if cosine.shape[1] > 1 else None
        believed = cosine[:, 0] if pick is None else cosine[torch.arange(len(pick), device=pick.device), pick]
        metrics = skill_metrics(believed, frame_cosine(current[:, None], target), is_pad)
    return _best_of(cosine, futures.scores, is_pad), metrics


def _best_of(cosine: Tensor, scores: Tensor, is_pad: Tensor) -> Tensor:
    """(b,) loss of the cosines (b, n, k) of n hypotheses, and of the scores (b, n) that tell them apart."""
    error = 1 - cosine
    error = masked_mean(error, is_pad[:, None].expand_as(error), dim=-1)  # (b, n)
    n = error.shape[1]
    if n == 1:
        return error[:, 0]
    best, winner = error.min(dim=1)
    relaxed = (1 - LOSER_SHARE) * best + LOSER_SHARE * (error.sum(1) - best) / (n - 1)
    score = F.cross_entropy(scores.float(), winner, reduction="none")
    return relaxed + SCORE_WEIGHT * score * (~is_pad.all(-1))


def future_token_loss(logits: Tensor, target: Tensor, is_pad: Tensor) -> Tensor:
    """Cross-entropy over world tokens, over the steps inside the episode.

    Args:
        logits: (b, k, n, c) for n tokens per frame and c codes.
        target: (b, k, n) codes.
        is_pad: (b, k) True beyond the end of the episode.

    Returns:
        (b,) loss per sample, in nats.
    """
    entropy = F.cross_entropy(logits.flatten(0, 2).float(), target.flatten(), reduction="none")
    entropy = entropy.view(target.shape).mean(-1)
    return masked_mean(entropy, is_pad, dim=-1)


@torch.no_grad()
def skill_metrics(cosine: Tensor, copy: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
    """Compare predicted latents with the baseline that copies the current one.

    skill = 1 - (1 - cos_predicted) / (1 - cos_copy): 1 is perfect, 0 is no better than copying, below 0 is worse.
    Both numerator and denominator are means over the batch.

    Args:
        cosine: (b, k) cosine of predicted and true latents.
        copy: (b, k) cosine of current and true latents.
        is_pad: (b, k).

    Returns:
        `prophet_cosine`, `copy_cosine`, `prophet_skill` and `prophet_skill_1` ... `prophet_skill_K`, each 0-d.
    """
    # Both at once: on an accelerator each of these small sums takes as long as a layer's.
    error, keep = (1 - torch.stack([cosine, copy])).masked_fill(is_pad, 0.0), ~is_pad  # (2, b, k), (b, k)
    total = torch.cat([error.flatten(1).sum(1, keepdim=True), error.sum(1)], dim=1)  # of all steps, then of each
    count = torch.cat([keep.sum().view(1), keep.sum(0)])
    error = total / count.clamp(min=1)  # (2, 1 + k)
    means, skills = 1 - error[:, 0], 1 - error[0] / error[1].clamp(min=1e-6)
    metrics = {"prophet_cosine": means[0], "copy_cosine": means[1], "prophet_skill": skills[0]}
    return metrics | {f"prophet_skill_{i}": skill for i, skill in enumerate(skills[1:], start=1)}


@torch.no_grad()
def future_token_metrics(logits: Tensor, target: Tensor, is_pad: Tensor) -> dict[str, Tensor]:
    """Top-1 and top-5 accuracy of the world tokens, per horizon step.

    Args:
        logits: (b, k, n, c).
        target: (b, k, n).
        is_pad: (b, k).

    Returns:
        `token_top1_1` ... `token_top1_K` and `token_top5_1` ... `token_top5_K`, each 0-d in [0, 1].
    """
    top = logits.topk(min(5, logits.shape[-1]), dim=-1).indices == target[..., None]  # (b, k, n, 5)
    top1 = masked_mean(top[..., 0].float().mean(-1), is_pad, dim=0)
    top5 = masked_mean(top.any(-1).float().mean(-1), is_pad, dim=0)
    metrics = {f"token_top1_{i}": value for i, value in enumerate(top1, start=1)}
    return metrics | {f"token_top5_{i}": value for i, value in enumerate(top5, start=1)}
