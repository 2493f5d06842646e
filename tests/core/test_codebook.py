"""World tokens: fit, assignment, storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from world_modality_core.latents.codebook import N_COMPONENTS, Codebook


def clusters(n_clusters=6, per_cluster=40, p=2, d=5, seed=0):
    """Latents (n, p, d) around far-apart centres, and the centre that each belongs to."""
    rng = np.random.default_rng(seed)
    centres = 10 * rng.normal(size=(n_clusters, p, d))
    label = np.repeat(np.arange(n_clusters), per_cluster)
    return torch.from_numpy(centres[label] + 0.1 * rng.normal(size=(len(label), p, d))).float(), label


@pytest.mark.parametrize("d", [5, N_COMPONENTS + 40], ids=["narrow", "wide"])
def test_fit_puts_centroids_into_the_clusters(d):
    latents, label = clusters(d=d)
    book = Codebook.fit(latents, 24, "frame", seed=1)
    codes = book.assign(latents)
    assert codes.shape == (len(latents), 1) and codes.dtype == torch.int64
    for code in codes.unique():
        members = (codes[:, 0] == code).numpy()
        assert len(set(label[members])) == 1  # no code is shared between far-apart clusters
        mean = latents[members].flatten(1).mean(0)
        assert (book.centroids[code] - mean).abs().max() < 0.3  # the clusters are 10 apart, and 0.1 wide


def test_a_code_per_token_quantises_each_token_alone():
    latents, _ = clusters(p=3)
    book = Codebook.fit(latents, 18, "token")
    codes = book.assign(latents)
    assert codes.shape == (len(latents), 3) and book.n_per_frame(3) == 3
    for token in range(3):
        assert torch.equal(book.assign(latents[:, token : token + 1]), codes[:, token : token + 1])
    assert len(codes[:, 0].unique()) < 18 and not torch.equal(codes[:, 0], codes[:, 1])


def test_assign_gives_the_nearest_centroid_across_chunks(monkeypatch):
    import world_modality_core.latents.codebook as module

    monkeypatch.setattr(module, "_CHUNK", 7)
    torch.manual_seed(0)
    book, latents = Codebook(torch.randn(9, 8)), torch.randn(50, 2, 4)
    nearest = torch.cdist(latents.half().float().flatten(1), book.centroids).argmin(1)
    assert torch.equal(book.assign(latents)[:, 0], nearest)


def test_a_live_latent_gets_the_token_of_its_stored_twin():
    torch.manual_seed(0)
    # Centroids so close that float16 rounding decides between them.
    book = Codebook(torch.linspace(0.9999, 1.0001, 64)[:, None])
    live = 0.9999 + 0.0002 * torch.rand(500, 1, 1)
    assert torch.equal(book.assign(live), book.assign(live.half()))


def test_same_seed_same_codebook_and_no_trace_in_the_global_generator():
    latents, _ = clusters(d=N_COMPONENTS)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    books = [Codebook.fit(latents, 10, seed=seed).centroids for seed in (5, 5, 6)]
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(books[0], books[1]) and not torch.equal(books[0], books[2])


def test_repeated_vectors_leave_no_centroid_at_the_origin():
    latents = torch.full((50, 1, N_COMPONENTS + 1), 4.0)
    latents[::2] = 5.0
    centroids = Codebook.fit(latents, 8).centroids
    assert centroids.isfinite().all() and (centroids > 3).all()


def test_more_codes_than_vectors_is_an_error():
    latents, _ = clusters(n_clusters=2, per_cluster=5)
    with pytest.raises(ValueError, match="n_codes=11.*10 vectors"):
        Codebook.fit(latents, 11)
    assert Codebook.fit(latents, 11, "token").n_codes == 11


def test_latents_of_another_width_are_an_error():
    with pytest.raises(ValueError, match="width 8"):
        Codebook(torch.randn(4, 8)).assign(torch.randn(3, 1, 7))


@pytest.mark.parametrize("per", ["frame", "token"])
def test_save_and_load(tmp_path, per):
    book = Codebook(torch.randn(4, 8), per)
    book.save(tmp_path / "book.safetensors")
    loaded = Codebook.load(tmp_path / "book.safetensors")
    assert torch.equal(loaded.centroids, book.centroids) and loaded.per == per


def test_an_empty_codebook_takes_a_state_dict():
    book = Codebook(torch.randn(4, 8), "token")
    empty = Codebook.empty(4, 8, "token")
    empty.load_state_dict(book.state_dict())
    assert torch.equal(empty.assign(book.centroids[:, None]), torch.arange(4)[:, None])
