"""The Prophet: baseline at the start, padding, conditioning, hypotheses, and that it learns."""

import pytest
import torch

from world_modality_core.configs import ProphetConfig
from world_modality_core.prophet.losses import future_latent_loss
from world_modality_core.prophet.network import Prophet

B, T, K, P, D = 4, 3, 2, 5, 6


def build(per_cell=False, **options):
    torch.manual_seed(0)
    config = ProphetConfig(d_model=32, n_layers=1, n_heads=2, per_cell=per_cell, **options)
    return Prophet(P, D, T, K, config, state_dim=3, language_dim=4).eval()


def inputs():
    torch.manual_seed(1)
    return torch.randn(B, T, P, D), torch.randn(B, 3), torch.randn(B, 4)


def randomise_head(prophet):
    with torch.no_grad():
        prophet.head.weight.normal_(std=0.3)
    return prophet


@pytest.mark.parametrize("per_cell", [False, True])
def test_a_residual_prophet_starts_as_copy_the_last_latent(per_cell):
    history, *_ = inputs()
    futures = build(per_cell)(history)
    assert futures.latents.shape == (B, 1, K, P, D)
    assert torch.equal(futures.best(), history[:, -1:].expand(-1, K, -1, -1))
    assert not torch.allclose(build(per_cell, residual=False)(history).best(), futures.best())


@pytest.mark.parametrize("per_cell", [False, True])
def test_padded_history_can_hold_anything(per_cell):
    history, *_ = inputs()
    prophet = randomise_head(build(per_cell))
    is_pad = torch.tensor([True, False, False]).expand(B, -1)
    expected = prophet(history, is_pad).latents
    changed = history.clone()
    changed[:, 0] = 1e3
    torch.testing.assert_close(prophet(changed, is_pad).latents, expected)
    changed = history.clone()
    changed[:, 1] += 1  # positive control
    assert not torch.allclose(prophet(changed, is_pad).latents, expected, atol=1e-3)


def test_order_of_the_history_matters():
    history, *_ = inputs()
    prophet = randomise_head(build(residual=False))
    with torch.no_grad():
        prophet.time.normal_()
    assert not torch.allclose(prophet(history.flip(1)).latents, prophet(history).latents, atol=1e-3)


@pytest.mark.parametrize("per_cell", [False, True])
def test_samples_do_not_touch_each_other(per_cell):
    history, *_ = inputs()
    prophet = randomise_head(build(per_cell))
    torch.testing.assert_close(prophet(history).latents[1:2], prophet(history[1:2]).latents, rtol=1e-4, atol=1e-5)


def test_conditioning_reaches_the_prediction():
    history, state, language = inputs()
    prophet = randomise_head(build(use_state=True, use_language=True))
    out = prophet(history, None, state, language).latents
    assert not torch.allclose(prophet(history, None, state + 1, language).latents, out, atol=1e-4)
    assert not torch.allclose(prophet(history, None, state, language + 1).latents, out, atol=1e-4)


def test_hypotheses_differ_and_the_scores_pick_one():
    history, *_ = inputs()
    prophet = build(n_hypotheses=3)
    futures = randomise_head(prophet)(history)
    assert futures.latents.shape == (B, 3, K, P, D)
    assert futures.as_memory().shape == (B, 3 * K * P, D)
    assert not torch.allclose(futures.latents[:, 0], futures.latents[:, 1], atol=1e-2)
    futures.scores = torch.eye(3)[[2, 0, 1, 2]]
    for i, pick in enumerate([2, 0, 1, 2]):
        assert torch.equal(futures.best()[i], futures.latents[i, pick])


def test_all_parameters_get_a_gradient():
    history, state, language = inputs()
    prophet = randomise_head(build(n_hypotheses=2, use_state=True, use_language=True))
    futures = prophet(history, None, state, language)
    is_pad = torch.zeros(B, K, dtype=torch.bool)
    future_latent_loss(futures, torch.randn(B, K, P, D), is_pad).mean().backward()
    for name, parameter in prophet.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("per_cell", [False, True])
def test_it_learns_to_beat_copying(per_cell):
    """Latents that move with a constant velocity: the history tells the future, the last latent alone doesn't."""
    torch.manual_seed(0)
    prophet = build(per_cell).train()
    optimiser = torch.optim.Adam(prophet.parameters(), lr=3e-3)
    is_pad = torch.zeros(64, K, dtype=torch.bool)
    for _ in range(150):
        start, velocity = torch.randn(64, 1, P, D), torch.randn(64, 1, P, D)
        path = start + velocity * torch.arange(T + K).view(1, -1, 1, 1)
        path = path - path[:, T - 1 : T] + start  # the present is equally spread, whatever the velocity
        loss = future_latent_loss(prophet(path[:, :T]), path[:, T:], is_pad).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    copy = 1 - torch.cosine_similarity(path[:, T - 1 : T].flatten(2), path[:, T:].flatten(2), dim=-1).mean()
    assert loss < 0.6 * copy
