"""The space of the latents: standardisation, its inverse, and what travels in a checkpoint."""

from dataclasses import replace

import pytest
import torch

from world_modality_core.configs import TokenizerConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.latent_normaliser import LatentNormaliser, shrunk_std

# two cameras; per camera one "mean" token and four cells
SPEC = EncoderSpec(
    "family", cameras=["a", "b"], pooling="mean+grid:2x2", pca_dim=3, n_tokens=10, dim=3, raw_dims=[5, 7]
)
MEAN_TOKENS, CELLS = [0, 5], [1, 2, 3, 4, 6, 7, 8, 9]


def latents(n=5000):
    torch.manual_seed(0)
    std = torch.full((10, 3), 0.1)
    std[MEAN_TOKENS] = 20.0
    std[CELLS, 0] = torch.tensor([4.0, 2.0, 1.0, 0.5, 4.0, 2.0, 1.0, 0.5])
    return 5.0 + std * torch.randn(n, 10, 3)


def build():
    values, space = latents(), LatentNormaliser(SPEC)
    space.fill(values.mean(0).flatten(), values.std(0).flatten(), space.pca, None)
    return space, values


def test_parts_have_zero_mean_and_unit_variance_whatever_their_scale():
    space, values = build()
    out = space.standardise(values)
    torch.testing.assert_close(out.mean(0), torch.zeros(10, 3), atol=1e-4, rtol=0)
    for tokens in (MEAN_TOKENS, CELLS):
        assert out[:, tokens].var(0).mean() == pytest.approx(1, rel=1e-3)


def test_entries_without_content_are_not_blown_up():
    space, values = build()
    out = space.standardise(values).std(0)
    assert out[1, 0] > out[4, 0] > out[1, 1]  # much, little and hardly any variance stay in this order
    assert out[1, 1] < 0.2
    plain = values.std(0)
    assert (shrunk_std(plain, SPEC)[CELLS, 1] > 5 * plain[CELLS, 1]).all()


def test_a_constant_latent_is_no_division_by_zero():
    scale = shrunk_std(torch.zeros(10, 3), SPEC)
    assert torch.isfinite(scale).all() and (scale > 0).all()


def test_restore_is_the_inverse_and_rows_are_split():
    space, values = build()
    torch.testing.assert_close(space.restore(space.standardise(values)), values, rtol=1e-4, atol=1e-4)
    assert torch.equal(space.standardise_rows(values.flatten(1)), space.standardise(values))
    with pytest.raises(ValueError, match="standardise_rows"):
        space.standardise(values.flatten(1))


def test_rows_of_one_token_keep_their_axes():
    """A window of one frame of one token, (b, 1, d), looks like split latents and isn't."""
    space = LatentNormaliser(replace(SPEC, pooling="mean", pca_dim=0, raw_dims=[3], dim=3, n_tokens=1))
    assert space.standardise_rows(torch.randn(5, 1, 3)).shape == (5, 1, 1, 3)


def test_statistics_pca_and_codebook_travel_in_the_state_dict():
    tokens = TokenizerConfig(n_codes=4, per="frame", n_per_frame=1, dim=30)
    keys = set(LatentNormaliser(SPEC, tokens).state_dict())
    assert {"mean", "std", "codebook.centroids", "pca.mean_0", "pca.components_1"} <= keys
