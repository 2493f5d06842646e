"""A companion's latents on an accelerator, and the gather of windows from them without a wait for the host."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from world_modality_core.latents.latent_table import LatentTable

# Exponent bits of an fp16 number: all set in NaN and Inf only.
_EXPONENT = 0x7C00


def row_is_finite(latents: Tensor) -> Tensor:
    """Whether all entries of a row are finite.

    Args:
        latents: (..., p * d) float16, on the CPU.

    Returns:
        (...) bool. Bits are compared, not numbers: fp16 arithmetic is slow on a CPU.
    """
    return ((latents.view(torch.int16) & _EXPONENT) != _EXPONENT).all(-1)


class GpuLatentTable:
    """Device-side counterpart of `LatentTable.gather`.

    Args:
        table: The companion's latents; all of them are copied.
        device: Where to.
    """

    def __init__(self, table: LatentTable, device: torch.device):
        # Through a tensor of our own: the memory map is read-only, which torch would warn about.
        self.latents = torch.tensor(table.latents).to(device)
        self.tokens = None if table.tokens is None else torch.tensor(table.tokens).to(device)
        self.starts = torch.tensor(table.bounds[:, 0], device=device)
        self.ends = torch.tensor(table.bounds[:, 1], device=device)
        self._offsets: dict[tuple[int, ...], Tensor] = {}

    def gather(self, index: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read the latents at `index[i] + offsets[j]`, staying inside the episode of `index[i]`.

        Args:
            index: (b,) frames, on the device. A frame beyond the table is a device-side error.
            offsets: w offsets in frames.

        Returns:
            latents (b, w, p * d) float16 and is_pad (b, w), as `LatentTable.gather`.
        """
        rows, is_pad = self.rows(index, offsets)
        return self.latents[rows], is_pad

    def gather_tokens(self, index: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """As `gather`, but the world tokens: (b, w, n_per_frame) int64."""
        rows, is_pad = self.rows(index, offsets)
        return self.tokens[rows].long(), is_pad

    def rows(self, index: Tensor, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows (b, w) of windows, clamped to the episode of `index[i]`, and where they were (b, w)."""
        key = tuple(offsets)
        if key not in self._offsets:
            self._offsets[key] = torch.tensor(key, device=self.latents.device)
        episode = torch.searchsorted(self.starts, index, right=True) - 1
        wanted = index[:, None] + self._offsets[key]
        rows = wanted.clamp(self.starts[episode, None], self.ends[episode, None] - 1)
        return rows, rows != wanted
