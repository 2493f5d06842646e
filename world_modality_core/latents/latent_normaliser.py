"""The space that a policy's world latents live in: what turns frames' latents into what the networks see.

Its buffers come from the companion in training and from the checkpoint afterwards, so that a policy acts on a machine
that has neither dataset nor companion. The encoder itself is never part of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.configs import TokenizerConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.codebook import Codebook
from world_modality_core.latents.pca import LatentPCA


def shrunk_std(std: Tensor, spec: EncoderSpec) -> Tensor:
    """Spread to divide a latent's entries by: their own, drawn towards that of the pooling part that they belong to.

    An entry that hardly varies (a cell of background, a late principal component) holds noise, and dividing by its own
    spread would blow the noise up to the size of a signal: what h264 (crf 12, 4:2:0) does to a Meta-World frame moved
    its latent 1.9 times as far as 10 frames of motion did with plain standardisation, and 1.1 times with this
    (docs/RESULTS.md).

    Args:
        std: (p, d) standard deviation of each entry.
        spec: The resolved encoder spec.

    Returns:
        (p, d) sqrt(std^2 + s^2), with s^2 the mean variance over the part, scaled so that the part's entries have unit
        variance on average after the division.
    """
    variance = std.double().square().clamp(min=1e-12)
    by_camera = variance.view(len(spec.cameras), -1, variance.shape[-1])
    scales = []
    for part in by_camera.split([part.n_tokens for part in spec.parts], dim=1):  # (v, p_i, d)
        total = part + part.mean()
        scales.append((total * (part / total).mean()).sqrt())
    return torch.cat(scales, dim=1).view_as(std).to(std.dtype)


class LatentNormaliser(nn.Module):
    """Standardisation, PCA and codebook of the latents.

    Args:
        spec: A resolved encoder spec.
        tokens: Shape of the codebook; None for a policy without world tokens.
    """

    def __init__(self, spec: EncoderSpec, tokens: TokenizerConfig | None = None):
        super().__init__()
        self.n_tokens, self.dim = spec.n_tokens, spec.dim
        self._spec = spec
        self.register_buffer("mean", torch.zeros(spec.n_tokens, spec.dim))
        self.register_buffer("std", torch.ones(spec.n_tokens, spec.dim))
        self.pca = LatentPCA.empty(spec.raw_dims, spec.dim) if spec.pca_dim else None
        self.codebook = Codebook.empty(tokens.n_codes, tokens.dim, tokens.per) if tokens is not None else None

    @torch.no_grad()
    def fill(self, mean: Tensor, std: Tensor, pca: LatentPCA | None, codebook: Codebook | None) -> None:
        """Take the companion's values.

        Args:
            mean: (p * d,) mean of every latent entry over the companion.
            std: (p * d,) its standard deviation.
            pca: The companion's PCA, if its spec has one.
            codebook: The companion's codebook, if the policy uses world tokens.
        """
        self.mean.copy_(mean.view_as(self.mean))
        self.std.copy_(shrunk_std(std.view_as(self.std), self._spec))
        if self.pca is not None:
            self.pca.load_state_dict(pca.state_dict())
        if self.codebook is not None:
            self.codebook.load_state_dict(codebook.state_dict())

    def standardise(self, latents: Tensor) -> Tensor:
        """Bring latents to zero mean per entry and unit variance per pooling part (see `shrunk_std`).

        Args:
            latents: (..., p, d), any float dtype.

        Returns:
            (..., p, d) fp32.

        Raises:
            ValueError: if the last axes are not (p, d).
        """
        if latents.shape[-2:] != self.mean.shape:
            raise ValueError(
                f"latents have shape {tuple(latents.shape)}; expected (..., {self.n_tokens}, {self.dim}), or "
                "standardise_rows for rows as a companion stores them"
            )
        return (latents.to(self.mean.dtype) - self.mean) / self.std

    def standardise_rows(self, rows: Tensor) -> Tensor:
        """`standardise` for latents as a companion stores them: (..., p * d) -> (..., p, d)."""
        return self.standardise(rows.unflatten(-1, self.mean.shape))

    def restore(self, latents: Tensor) -> Tensor:
        """Inverse of `standardise`: (..., p, d) -> (..., p, d)."""
        return latents * self.std + self.mean
