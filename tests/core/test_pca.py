"""The PCA of latents: against scikit-learn, on disk, in a checkpoint."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from world_modality_core.latents.pca import LatentPCA


def sample(n: int, d: int, rank: int, seed: int = 0) -> torch.Tensor:
    """Rows of falling variance along `rank` random directions, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(n, rank, generator=generator) * torch.linspace(5, 1, rank)
    return factors @ torch.randn(rank, d, generator=generator) + torch.randn(d, generator=generator)


@pytest.mark.parametrize("d", [12, 5000])  # exact, and randomised
def test_fit_agrees_with_scikit_learn(d):
    from sklearn.decomposition import PCA

    rows = sample(300, d, rank=8)
    pca, reference = LatentPCA.fit([rows], dim=4), PCA(4, svd_solver="full").fit(rows.double().numpy())
    torch.testing.assert_close(pca.mean_0, torch.tensor(reference.mean_, dtype=torch.float32), rtol=1e-4, atol=1e-4)
    ratios = torch.tensor(reference.explained_variance_ratio_, dtype=torch.float32)
    torch.testing.assert_close(pca.explained_0, ratios, rtol=1e-3, atol=1e-4)
    overlap = (pca.components_0 @ torch.tensor(reference.components_, dtype=torch.float32).T).abs()
    torch.testing.assert_close(overlap, torch.eye(4), rtol=0, atol=2e-3)
    assert pca.explained_variance == [pytest.approx(reference.explained_variance_ratio_.sum(), rel=1e-3)]


@pytest.mark.parametrize("d", [12, 5000])
def test_fit_is_deterministic_and_leaves_the_global_seed_alone(d):
    rows = sample(200, d, rank=8)
    torch.manual_seed(1)
    first, drawn = LatentPCA.fit([rows], dim=4, seed=3), torch.rand(1)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(2)
    assert LatentPCA.fit([rows], dim=4, seed=3).sha256 == first.sha256
    assert torch.equal(drawn, expected)
    largest = first.components_0.gather(1, first.components_0.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all()


def test_parts_have_their_own_projection_and_keep_their_axes():
    parts = [sample(60, 6, 6).unflatten(0, (20, 3)), sample(100, 9, 9, seed=1).unflatten(0, (20, 5))]
    pca = LatentPCA.fit(parts, dim=2)
    assert (pca.raw_dims, pca.dim, pca.n_parts) == ([6, 9], 2, 2)
    low = pca(parts)
    assert [tuple(part.shape) for part in low] == [(20, 3, 2), (20, 5, 2)]
    expected = (parts[1][7, 4] - pca.mean_1) @ pca.components_1[1]
    torch.testing.assert_close(low[1][7, 4, 1], expected)
    assert low[0].flatten(0, 1).mean(dim=0).abs().max() < 1e-4
    with pytest.raises(ValueError, match=r"\[6\] wide"):
        pca(parts[:1])


def test_a_full_pca_loses_nothing():
    rows = sample(50, 5, 5)
    pca = LatentPCA.fit([rows], dim=5)
    torch.testing.assert_close(pca([rows])[0] @ pca.components_0 + pca.mean_0, rows, rtol=1e-4, atol=1e-4)
    assert pca.explained_variance == [pytest.approx(1)]


def test_disk_and_checkpoint_round_trips(tmp_path):
    pca = LatentPCA.fit([sample(40, 6, 6), sample(40, 9, 9)], dim=3)
    pca.save(tmp_path / "world_pca.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["world_pca.safetensors"]
    loaded = LatentPCA.load(tmp_path / "world_pca.safetensors")
    assert loaded.sha256 == pca.sha256 and loaded.explained_variance == pca.explained_variance

    policy = nn.Module()
    policy.pca = LatentPCA.empty(pca.raw_dims, pca.dim)
    assert not policy.pca.is_fitted and policy.pca.sha256 != pca.sha256
    policy.load_state_dict({f"pca.{name}": value for name, value in pca.state_dict().items()}, strict=True)
    assert policy.pca.is_fitted and policy.pca.sha256 == pca.sha256
    assert not list(policy.parameters())
    policy.apply(lambda module: None)  # initialisers walk a policy with nn.Module.apply


def test_fewer_samples_than_dimensions():
    """A short data set: 21 frames of 1,280 values, on whose covariance an eigensolver may not converge."""
    rows = torch.randn(21, 1280, generator=torch.Generator().manual_seed(0))
    projected = LatentPCA.fit([rows], dim=20)([rows])[0]
    # 20 directions hold all that 21 centred samples differ in: distances stay.
    torch.testing.assert_close(torch.cdist(projected, projected), torch.cdist(rows, rows), rtol=1e-4, atol=1e-3)


def test_the_hash_tells_values_apart():
    pca = LatentPCA.fit([sample(40, 6, 6)], dim=3)
    before = pca.sha256
    pca.components_0[2, 5] += 1e-6
    assert pca.sha256 != before


@pytest.mark.parametrize(
    "rows, message",
    [
        (torch.randn(10, 4), "pca_dim=5: part 0 has 10 samples of 4 dimensions"),
        (torch.randn(3, 9), "pca_dim=5: part 0 has 3 samples"),
        (torch.full((10, 9), float("inf")), "NaN or infinity"),
    ],
)
def test_samples_that_cannot_be_fitted_are_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        LatentPCA.fit([rows], dim=5)


def test_a_foreign_file_is_refused(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a LatentPCA"):
        LatentPCA.load(tmp_path / "other.safetensors")
