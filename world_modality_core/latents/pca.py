"""The PCA that shortens latents: fitted once, stored beside the companion, part of the encoder spec."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from world_modality_core.io.errors import DamagedFileError
from world_modality_core.io.files import read_tensors, writing


class LatentPCA(nn.Module):
    """One linear projection per pooling part, all to the same width, without whitening.

    Only buffers: a policy that registers this module carries the PCA in its own checkpoint and needs no companion at
    rollout. Buffers of part i: `mean_i` (d_i,), `components_i` (d, d_i) and `explained_i` (d,), the share of the part's
    variance that each kept dimension explains.
    """

    def __init__(self, means: list[Tensor], components: list[Tensor], explained: list[Tensor]):
        """Hold a fitted PCA.

        Args:
            means: (d_i,) per part.
            components: (d, d_i) per part, rows orthonormal.
            explained: (d,) per part, shares of variance.
        """
        super().__init__()
        for i, tensors in enumerate(zip(means, components, explained, strict=True)):
            for name, tensor in zip(("mean", "components", "explained"), tensors, strict=True):
                self.register_buffer(f"{name}_{i}", tensor.detach().to(torch.float32).contiguous())
        self.n_parts = len(means)

    @classmethod
    def empty(cls, raw_dims: list[int], dim: int) -> LatentPCA:
        """Build a PCA of zeros with the right shapes, to load a state dict into."""
        return cls(
            [torch.zeros(raw) for raw in raw_dims],
            [torch.zeros(dim, raw) for raw in raw_dims],
            [torch.zeros(dim) for _ in raw_dims],
        )

    @classmethod
    def fit(cls, samples: list[Tensor], dim: int, seed: int = 0) -> LatentPCA:
        """Fit one PCA per pooling part.

        Same samples, dim and seed give the same PCA: up to 4096 dimensions the covariance (float64) is decomposed
        exactly, above that the randomised solver is seeded; each component's sign makes its largest entry positive.

        Args:
            samples: Per part, (..., d_i) raw features, as `WorldEncoder.encode_raw` returns them; leading axes are
                flattened.
            dim: Dimensions kept.
            seed: Seed of the randomised solver.

        Returns:
            The fitted PCA, on the CPU.

        Raises:
            ValueError: if a part is narrower than `dim`, has fewer samples than `dim`, or holds NaN or infinity.
        """
        fitted = []
        for i, sample in enumerate(samples):
            rows = sample.detach().to("cpu", torch.float32).flatten(0, -2)
            n, raw_dim = rows.shape
            if dim > min(n, raw_dim):
                raise ValueError(
                    f"encoder.pca_dim={dim}: part {i} has {n} samples of {raw_dim} dimensions; pca_dim can be at most "
                    f"{min(n, raw_dim)}, so lower it or give more frames"
                )
            if not torch.isfinite(rows).all():
                raise ValueError(f"samples of part {i} hold NaN or infinity; check the frames and encoder.dtype")
            fitted.append(_principal_components(rows, dim, seed))
        means, components, explained = zip(*fitted, strict=True)
        return cls(list(means), list(components), list(explained))

    @property
    def raw_dims(self) -> list[int]:
        """Width of each part before the projection."""
        return [len(getattr(self, f"mean_{i}")) for i in range(self.n_parts)]

    @property
    def dim(self) -> int:
        """Width of a token after the projection."""
        return len(self.components_0)

    @property
    def explained_variance(self) -> list[float]:
        """Share of each part's variance that is kept, 0 to 1."""
        return [getattr(self, f"explained_{i}").sum().item() for i in range(self.n_parts)]

    @property
    def is_fitted(self) -> bool:
        """Whether the values were fitted or loaded; False for `empty` as built."""
        return all(bool(getattr(self, f"components_{i}").any()) for i in range(self.n_parts))

    @property
    def sha256(self) -> str:
        """Hash of names, shapes and values: equal hashes mean equal projections."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.to("cpu", torch.float32).numpy().tobytes())
        return digest.hexdigest()

    def forward(self, parts: list[Tensor]) -> list[Tensor]:
        """Project raw features.

        Args:
            parts: Per part, (..., d_i) float32.

        Returns:
            Per part, (..., d) float32, on the input's device.

        Raises:
            ValueError: if the parts are not as many or as wide as those fitted.
        """
        widths = [part.shape[-1] for part in parts]
        if widths != self.raw_dims:
            raise ValueError(f"raw features are {widths} wide; this PCA was fitted for {self.raw_dims}")
        projected = []
        for i, part in enumerate(parts):
            mean, components = getattr(self, f"mean_{i}").to(part), getattr(self, f"components_{i}").to(part)
            projected.append((part - mean) @ components.T)
        return projected

    def save(self, path: str | Path) -> None:
        """Write the buffers as safetensors, aside and then in one rename."""
        with writing(path) as aside:
            save_file(self.state_dict(), aside)

    @classmethod
    def load(cls, path: str | Path) -> LatentPCA:
        """Read what `save` wrote.

        Raises:
            DamagedFileError: if the file is not a LatentPCA.
        """
        tensors = read_tensors(path)
        n_parts = len(tensors) // 3
        expected = {f"{name}_{i}" for name in ("mean", "components", "explained") for i in range(n_parts)}
        if not tensors or set(tensors) != expected:
            names = ", ".join(sorted(tensors))[:200]
            raise DamagedFileError(f"{path}: holds {names}, not a LatentPCA (mean_i, components_i, explained_i)")
        parts = [[tensors[f"{name}_{i}"] for i in range(n_parts)] for name in ("mean", "components", "explained")]
        for mean, components, explained in zip(*parts, strict=True):
            if components.ndim != 2 or (*explained.shape, *mean.shape) != components.shape:
                raise DamagedFileError(f"{path}: a part's mean, components and explained do not fit together")
        return cls(*parts)


def _principal_components(rows: Tensor, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (d_i,), first `dim` principal directions (d, d_i) and their shares of variance (d,) of rows (n, d_i)."""
    n, raw_dim = rows.shape
    mean = rows.double().mean(dim=0)
    total = sum((chunk.double() - mean).square().sum() for chunk in rows.split(4096))
    if n < raw_dim <= 4096:  # the covariance would be singular, on which LAPACK's eigh may not converge
        _, singular, vectors = torch.linalg.svd(rows.double() - mean, full_matrices=False)
        variances, components = singular[:dim].square(), vectors[:dim]
    elif raw_dim <= 4096:
        scatter = torch.zeros(raw_dim, raw_dim, dtype=torch.float64)
        for chunk in rows.split(4096):  # never the whole sample in float64
            centred = chunk.double() - mean
            scatter.addmm_(centred.T, centred)
        values, vectors = torch.linalg.eigh(scatter)  # ascending
        variances, components = values.flip(0)[:dim].clamp(min=0), vectors.flip(1)[:, :dim].T
    else:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            _, singular, vectors = torch.pca_lowrank(rows - mean.float(), q=min(dim + 16, n), niter=4)
        variances, components = singular[:dim].double().square(), vectors[:, :dim].T
    largest = components.abs().argmax(dim=1, keepdim=True)
    components = components * components.gather(1, largest).sign()
    return mean, components, variances / total.clamp(min=torch.finfo(torch.float64).tiny)
