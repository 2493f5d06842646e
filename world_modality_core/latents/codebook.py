"""World tokens: a frozen k-means codebook over world latents."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import faiss
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from world_modality_core.encoders.precision import exact_float32
from world_modality_core.io.files import reading, writing

# The assignment is found among the leading principal components, where an iteration costs a tenth and the error comes
# out the same or lower (benchmarks/bench_codebook.py); the centroids are means in the full space.
N_COMPONENTS = 64
N_ITERATIONS = 8
_COMPONENTS_SAMPLE = 4096
# Latents compared with all codes at once: 8,192 x 1,024 distances are 32 MiB.
_CHUNK = 8192


class Codebook(nn.Module):
    """Nearest-centroid quantiser of world latents.

    Latents are rounded to float16, as they are stored, before they are compared, so that a live latent gets the token
    that its stored twin has.

    Attributes:
        centroids: (n_codes, d_code) float32 buffer; d_code is p * d for `per == "frame"` and d for "token".
        per: "frame": one code for all tokens of a frame; "token": one code for each.
    """

    def __init__(self, centroids: Tensor, per: Literal["frame", "token"] = "frame") -> None:
        super().__init__()
        if per not in ("frame", "token"):
            raise ValueError(f"tokens.per={per!r}: expected 'frame' or 'token'")
        self.per = per
        self.register_buffer("centroids", centroids.float())

    @classmethod
    def empty(cls, n_codes: int, dim: int, per: Literal["frame", "token"] = "frame") -> Codebook:
        """A codebook of zeros, to load a state dict into.

        Args:
            n_codes: Codes.
            dim: Width of one code: p * d for "frame", d for "token".
            per: What one code stands for.
        """
        return cls(torch.zeros(n_codes, dim), per)

    @classmethod
    def fit(cls, samples: Tensor, n_codes: int, per: Literal["frame", "token"] = "frame", seed: int = 0) -> Codebook:
        """Fit the centroids by k-means (faiss) on a sample of latents.

        Args:
            samples: (n, p, d) latents.
            n_codes: Codes.
            per: What one code stands for.
            seed: Seed of the initial centroids.

        Raises:
            ValueError: if there are fewer vectors than codes.
        """
        book = cls.empty(n_codes, samples.shape[1] * samples.shape[2] if per == "frame" else samples.shape[2], per)
        vectors = book._vectors(samples).cpu()
        if len(vectors) < n_codes:
            raise ValueError(
                f"tokens.n_codes={n_codes}: only {len(vectors)} vectors to fit them on; use at most that many codes"
            )
        mean, basis = _principal_components(vectors, seed)
        reduced = (vectors - mean) @ basis
        kmeans = faiss.Kmeans(
            reduced.shape[1], n_codes, niter=N_ITERATIONS, seed=seed,
            min_points_per_centroid=1, max_points_per_centroid=len(vectors),
        )  # fmt: skip
        kmeans.train(reduced.numpy())
        codes = torch.from_numpy(kmeans.index.search(reduced.numpy(), 1)[1][:, 0])
        counts = torch.bincount(codes, minlength=n_codes)[:, None]
        means = torch.zeros_like(book.centroids).index_add_(0, codes, vectors) / counts.clamp(min=1)
        book.centroids = torch.where(counts > 0, means, torch.from_numpy(kmeans.centroids) @ basis.T + mean)
        return book

    @property
    def n_codes(self) -> int:
        """Codes in the book."""
        return len(self.centroids)

    @property
    def sha256(self) -> str:
        """Hash of the centroids and of what they stand for."""
        return hashlib.sha256(self.per.encode() + self.centroids.cpu().numpy().tobytes()).hexdigest()

    def n_per_frame(self, n_tokens: int) -> int:
        """World tokens per frame, for latents of `n_tokens` tokens per frame."""
        return 1 if self.per == "frame" else n_tokens

    @torch.no_grad()
    @exact_float32()
    def assign(self, latents: Tensor) -> Tensor:
        """Quantise latents.

        Args:
            latents: (n, p, d).

        Returns:
            (n, n_per_frame) int64 codes, on the codebook's device.

        Raises:
            ValueError: if the latents' width is not the codebook's.
        """
        vectors = self._vectors(latents).to(self.centroids.device)
        if vectors.shape[1] != self.centroids.shape[1]:
            raise ValueError(
                f"latents of shape {tuple(latents.shape)} do not fit a codebook of width {self.centroids.shape[1]} "
                f"per {self.per}"
            )
        # The squared norm of the latent is the same for all codes, so it is left out.
        norms = self.centroids.square().sum(1)
        codes = [
            torch.addmm(norms, chunk, self.centroids.T, alpha=-2).argmin(1) for chunk in vectors.split(_CHUNK)
        ]  # fmt: skip
        return torch.cat(codes).view(len(latents), self.n_per_frame(latents.shape[1]))

    def _vectors(self, latents: Tensor) -> Tensor:
        latents = latents.half().float()
        return latents.flatten(1) if self.per == "frame" else latents.flatten(0, 1)

    def save(self, path: str | Path) -> None:
        """Write the codebook as safetensors."""
        with writing(path) as aside:
            save_file({"centroids": self.centroids.cpu().contiguous()}, aside, metadata={"per": self.per})

    @classmethod
    def load(cls, path: str | Path) -> Codebook:
        """Read a codebook that `save` wrote.

        Raises:
            DamagedFileError: if the file is not a codebook.
        """
        with reading(path, "a codebook"), safe_open(path, "pt") as file:
            centroids, per = file.get_tensor("centroids"), (file.metadata() or {})["per"]
            if centroids.ndim != 2 or centroids.dtype != torch.float32:
                raise ValueError(f"centroids of shape {tuple(centroids.shape)}, {centroids.dtype}")
            return cls(centroids, per)


def _principal_components(vectors: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Mean (d,) and leading principal directions (d, q) of a seeded sample of (n, d) vectors."""
    if vectors.shape[1] <= N_COMPONENTS:
        return torch.zeros(vectors.shape[1]), torch.eye(vectors.shape[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sample = vectors[torch.randperm(len(vectors))[:_COMPONENTS_SAMPLE]]
        _, _, basis = torch.pca_lowrank(sample, min(N_COMPONENTS, len(sample)))
    return sample.mean(0), basis
