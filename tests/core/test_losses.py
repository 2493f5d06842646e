"""World objectives and their figures, against hand-made values."""

import math

import pytest
import torch

from world_modality_core.prophet.losses import (
    future_latent_loss,
    future_latent_objective,
    future_token_loss,
    future_token_metrics,
    masked_mean,
)
from world_modality_core.prophet.network import Futures


def futures(latents):
    return Futures(latents, torch.zeros(latents.shape[:2]))


def test_masked_mean_ignores_padding_whatever_it_holds():
    values = torch.tensor([[1.0, float("nan")], [3.0, 5.0]])
    is_pad = torch.tensor([[False, True], [False, False]])
    assert masked_mean(values, is_pad) == 3.0
    assert masked_mean(values, is_pad, dim=1).tolist() == [1.0, 4.0]
    assert masked_mean(values, torch.ones_like(is_pad)).item() == 0.0


def test_latent_loss_is_one_minus_cosine_over_the_frame():
    target = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]]]])  # b=1, k=1, p=2, d=2
    same = future_latent_loss(futures(3 * target[:, None]), target, torch.zeros(1, 1, dtype=torch.bool))
    opposite = future_latent_loss(futures(-target[:, None]), target, torch.zeros(1, 1, dtype=torch.bool))
    half = torch.tensor([[[[[1.0, 0.0], [0.0, 0.0]]]]])
    assert same.item() == pytest.approx(0, abs=1e-6) and opposite.item() == pytest.approx(2)
    loss = future_latent_loss(futures(half), target, torch.zeros(1, 1, dtype=torch.bool))
    assert loss.item() == pytest.approx(1 - 1 / math.sqrt(2))


def test_latent_loss_skips_steps_beyond_the_episode():
    torch.manual_seed(0)
    predicted, target = torch.randn(2, 1, 3, 2, 4), torch.randn(2, 3, 2, 4)
    is_pad = torch.tensor([[False, False, True], [True, True, True]])
    loss = future_latent_loss(futures(predicted), target, is_pad)
    target[0, 2], target[1] = 1e6, float("nan")
    assert torch.equal(future_latent_loss(futures(predicted), target, is_pad), loss)
    assert loss[1] == 0
    shorter = future_latent_loss(futures(predicted[:1, :, :2]), target[:1, :2], is_pad[:1, :2])
    torch.testing.assert_close(loss[:1], shorter)


def test_best_of_n_trains_the_winner_and_its_score():
    target = torch.randn(2, 2, 3, 4)
    good, bad = target + 0.01, -target
    latents = torch.stack([bad, good], dim=1).requires_grad_()
    scores = torch.zeros(2, 2, requires_grad=True)
    future_latent_loss(Futures(latents, scores), target, torch.zeros(2, 2, dtype=torch.bool)).sum().backward()
    assert (scores.grad[:, 1] < 0).all() and (scores.grad[:, 0] > 0).all()
    loss = future_latent_loss(Futures(latents, scores), target, torch.zeros(2, 2, dtype=torch.bool))
    assert (loss < 0.25).all()  # a mean over hypotheses would be near 1


def test_skill_is_zero_for_copying_one_for_perfect_and_negative_below():
    torch.manual_seed(0)
    current, target = torch.randn(5, 2, 3), torch.randn(5, 4, 2, 3)
    is_pad = torch.zeros(5, 4, dtype=torch.bool)
    copy = current[:, None].expand_as(target)

    def metrics(predicted, is_pad=is_pad):
        worse = torch.stack([torch.randn_like(predicted), predicted], dim=1)  # the second hypothesis is believed
        believed = Futures(worse, torch.tensor([[0.0, 1.0]]).expand(len(predicted), -1))
        both = (future_latent_objective(f, current, target, is_pad)[1] for f in (believed, futures(predicted[:, None])))
        of_best, alone = ({name: float(value) for name, value in metrics.items()} for metrics in both)
        assert of_best == pytest.approx(alone)
        return alone

    assert metrics(copy)["prophet_skill"] == pytest.approx(0, abs=1e-6)
    assert metrics(target)["prophet_skill"] == pytest.approx(1, abs=1e-6)
    assert metrics(-target)["prophet_skill"] < 0
    late = torch.zeros_like(is_pad).index_fill(1, torch.tensor([2, 3]), True)
    half = torch.cat([target[:, :2], target[:, 2:] * float("nan")], dim=1)
    assert metrics(half, late)["prophet_skill"] == pytest.approx(1, abs=1e-6)  # padding may hold anything
    partly = torch.cat([target[:, :1], copy[:, 1:]], dim=1)
    values = metrics(partly)
    assert values["prophet_skill_1"] == pytest.approx(1, abs=1e-6)
    assert values["prophet_skill_2"] == pytest.approx(0, abs=1e-6)


def test_token_loss_and_accuracy():
    target = torch.tensor([[[0, 1], [2, 3]]])  # b=1, k=2, n=2
    uniform = torch.zeros(1, 2, 2, 8)
    is_pad = torch.zeros(1, 2, dtype=torch.bool)
    assert future_token_loss(uniform, target, is_pad).item() == pytest.approx(math.log(8))
    logits = torch.nn.functional.one_hot(target, 8).float() * 50
    assert future_token_loss(logits, target, is_pad).item() == pytest.approx(0, abs=1e-4)
    logits[0, 1, 1] = torch.arange(8.0).flip(0)  # ranks code 3 fourth
    values = future_token_metrics(logits, target, is_pad)
    assert values["token_top1_1"] == 1 and values["token_top1_2"] == 0.5 and values["token_top5_2"] == 1
    masked = future_token_loss(logits, target, torch.tensor([[False, True]]))
    assert masked.item() == pytest.approx(0, abs=1e-4)
