"""The space that a policy's world latents live in: what turns frames' latents into what the networks see.

Its buffers come from the companion in training and from the checkpoint afterwards, so that a policy acts on a machine
that has neither dataset nor companion. The encoder itself is never part of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.codebook import Codebook
from world_modality_core.configs import TokenizerConfig
from world_modality_core.encoder_spec import EncoderSpec
from world_modality_core.pca import LatentPCA

# A dimension that hardly varies is noise: dividing by its own spread would blow the noise up to the size of a signal.
MIN_RELATIVE_STD = 0.01


class WorldSpace(nn.Module):
    """Standardisation, PCA and codebook of the latents.

    Args:
        spec: A resolved encoder spec.
        tokens: Shape of the codebook; None for a policy without world tokens.
    """

    def __init__(self, spec: EncoderSpec, tokens: TokenizerConfig | None = None):
        super().__init__()
        self.n_tokens, self.dim = spec.n_tokens, spec.dim
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
        std = std.view_as(self.std)
        self.std.copy_(std.clamp(min=max(MIN_RELATIVE_STD * std.mean().item(), 1e-6)))
        if self.pca is not None:
            self.pca.load_state_dict(pca.state_dict())
        if self.codebook is not None:
            self.codebook.load_state_dict(codebook.state_dict())

    def standardise(self, latents: Tensor) -> Tensor:
        """Latents as stored -> zero mean and unit variance per entry.

        Args:
            latents: (..., p * d) or (..., p, d), any float dtype.

        Returns:
            (..., p, d) fp32.
        """
        if latents.shape[-2:] != self.mean.shape:
            latents = latents.unflatten(-1, self.mean.shape)
        return (latents.to(self.mean.dtype) - self.mean) / self.std

    def restore(self, latents: Tensor) -> Tensor:
        """Inverse of `standardise`: (..., p, d) -> (..., p, d)."""
        return latents * self.std + self.mean
