"""World latents of a companion dataset as one flat, memory-mapped table, and the gather of windows from it.

Parquet cannot be mapped into memory as it is, so the latent column is written once into a flat `.npy` beside the
companion (`build_table`, on first use) and mapped read-only from then on: a training process holds none of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import torch
from filelock import FileLock
from torch import Tensor

from world_modality_core.io.dataset_files import column_values
from world_modality_core.io.errors import DamagedFileError
from world_modality_core.io.files import open_parquet, reading, writing

LATENTS = "world.latents"
TOKENS = "world.tokens"


class ContentHash:
    """Running SHA-256 of a companion's latents and tokens, whatever pieces they come in."""

    def __init__(self) -> None:
        self._latents, self._tokens = hashlib.sha256(), hashlib.sha256()

    def update(self, latents: np.ndarray, tokens: np.ndarray | None = None) -> None:
        """Add the next frames: latents (n, p * d) float16 and tokens (n, n_per_frame) int32."""
        self._latents.update(np.ascontiguousarray(latents))
        if tokens is not None:
            self._tokens.update(np.ascontiguousarray(tokens))

    def hexdigest(self) -> str:
        """The hash of all frames added so far."""
        return hashlib.sha256(self._latents.digest() + self._tokens.digest()).hexdigest()


class LatentTable:
    """Read-only table of one latent row (and one token row) per frame, with the episodes' bounds.

    Attributes:
        latents: (n, p * d) float16 memory map.
        tokens: (n, n_per_frame) int32 memory map, or None.
        bounds: (e, 2) int64, first frame and one past the last frame of each episode.
    """

    def __init__(self, latents_path: str | Path, tokens_path: str | Path | None, bounds: np.ndarray) -> None:
        self._args = (str(latents_path), None if tokens_path is None else str(tokens_path), np.asarray(bounds))
        self.bounds = np.asarray(bounds, dtype=np.int64)
        self.latents = self._map(self._args[0], np.float16)
        self.tokens = None if tokens_path is None else self._map(self._args[1], np.int32)

    def _map(self, path: str, dtype: type) -> np.ndarray:
        remedy = "delete this cache file and open the companion again"
        with reading(path, "a cache of latents", remedy):
            values = np.load(path, mmap_mode="r")
        if values.dtype != dtype or values.ndim != 2:
            raise DamagedFileError(f"{path}: holds {values.dtype} {values.shape}; {remedy}")
        if self.bounds[0, 0] != 0 or self.bounds[-1, 1] != len(values):
            raise DamagedFileError(
                f"{path}: {len(values)} frames, but the episodes cover frames {self.bounds[0, 0]} to "
                f"{self.bounds[-1, 1]}; {remedy}"
            )
        return values

    def __reduce__(self):
        # A copy (EMA) or a worker process maps the files again; the default would copy them into memory.
        return type(self), self._args

    @property
    def n_frames(self) -> int:
        """Frames in the table."""
        return len(self.latents)

    @cached_property
    def episode_index(self) -> np.ndarray:
        """(n,) int64 episode of each frame."""
        return np.repeat(np.arange(len(self.bounds)), self.bounds[:, 1] - self.bounds[:, 0])

    def episode_of(self, index: Tensor | np.ndarray) -> np.ndarray:
        """Episode of each frame: of (...) indices on the CPU, (...) int64."""
        return np.searchsorted(self.bounds[:, 0], index, side="right") - 1

    def bad_rows(self) -> np.ndarray:
        """Rows that hold NaN or Inf; reads the whole table once."""
        bad = []
        for start in range(0, self.n_frames, 4096):
            bits = np.asarray(self.latents[start : start + 4096]).view(np.uint16)
            bad.append(start + np.flatnonzero(((bits & 0x7C00) == 0x7C00).any(axis=1)))
        return np.concatenate(bad)

    def gather(self, index: Tensor | np.ndarray, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read the latents at `index[i] + offsets[j]`, staying inside the episode of `index[i]`.

        Args:
            index: (b,) frames (`batch["index"]`), on the CPU.
            offsets: w offsets in frames, e.g. -2, -1, 0 for a history or 1, ..., k for the future.

        Returns:
            latents: (b, w, p * d) float16; where the position lies outside the episode, its nearest frame.
            is_pad: (b, w) bool, True at those positions.

        Raises:
            IndexError: if an index is not a frame of the table.
        """
        rows, is_pad = self.rows(index, offsets)
        return self.read(rows), torch.from_numpy(is_pad)

    def read(self, rows: np.ndarray) -> Tensor:
        """Read the latents of rows (b, w): (b, w, p * d) float16."""
        out = torch.empty((*rows.shape, self.latents.shape[1]), dtype=torch.float16)
        _take(self.latents, rows, out)
        return out

    def gather_tokens(self, index: Tensor | np.ndarray, offsets: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Read the world tokens at `index[i] + offsets[j]`; as `gather`, but (b, w, n_per_frame) int64.

        Raises:
            IndexError: if an index is not a frame of the table.
            ValueError: if the companion has no tokens.
        """
        if self.tokens is None:
            raise ValueError(
                "this companion has no world tokens; write one that has: wm-precompute ... --tokens.n_codes=1024"
            )
        rows, is_pad = self.rows(index, offsets)
        out = torch.empty((*rows.shape, self.tokens.shape[1]), dtype=torch.int32)
        _take(self.tokens, rows, out)
        return out.long(), torch.from_numpy(is_pad)

    def rows(self, index: Tensor | np.ndarray, offsets: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Find the rows of windows, for a caller that holds the latents elsewhere (on an accelerator, say).

        Args:
            index: (b,) frames, on the CPU.
            offsets: w offsets in frames.

        Returns:
            rows: (b, w) int64, clamped to the episode of `index[i]`.
            is_pad: (b, w) bool, True where the row was clamped.

        Raises:
            IndexError: if an index is not a frame of the table.
        """
        index = np.asarray(index, dtype=np.int64)
        out_of_range = (index < 0) | (index >= self.n_frames)
        if out_of_range.any():
            raise IndexError(
                f"index {int(index[out_of_range][0])} is not a frame of this companion, which has {self.n_frames}; "
                "is it a companion of another dataset?"
            )
        starts, ends = self.bounds[:, 0], self.bounds[:, 1]
        episode = self.episode_of(index)
        wanted = index[:, None] + np.asarray(offsets, dtype=np.int64)
        rows = np.clip(wanted, starts[episode, None], ends[episode, None] - 1)
        return rows, rows != wanted


def _take(table: np.ndarray, rows: np.ndarray, out: Tensor) -> None:
    # mode="clip" writes straight into `out` ("raise" goes through a buffer); the rows are in range already.
    np.take(table.view(np.ndarray), rows, axis=0, out=out.numpy(), mode="clip")


def build_table(
    data_files: Sequence[Path], bounds: np.ndarray, cache_dir: Path, n_values: int, n_tokens: int, content_sha256: str
) -> LatentTable:
    """Open the flat cache of a companion, writing it first if it is not there.

    Safe against a kill (written aside, then renamed) and against several processes at once (a file lock: one
    writes, the others wait).

    Args:
        data_files: The companion's parquet files, in order.
        bounds: (e, 2) episode bounds.
        cache_dir: Folder of the cache.
        n_values: p * d.
        n_tokens: World tokens per frame, 0 for none.
        content_sha256: `ContentHash` of all frames; it also names the cache.

    Raises:
        DamagedFileError: if the parquet files do not hold what the hash promises.
        DiskFullError: if there is no room for the cache.
    """
    cache_dir.mkdir(parents=True, exist_ok=True)
    latents_path = cache_dir / f"latents-{content_sha256[:16]}.npy"
    tokens_path = cache_dir / f"tokens-{content_sha256[:16]}.npy" if n_tokens else None
    with FileLock(cache_dir / f"{content_sha256[:16]}.lock"):
        if not latents_path.exists():  # renamed last, so the tokens are there too
            _write_cache(data_files, int(bounds[-1, 1]), latents_path, n_values, tokens_path, n_tokens, content_sha256)
    return LatentTable(latents_path, tokens_path, bounds)


def _write_cache(data_files, n_frames, latents_path, n_values, tokens_path, n_tokens, content_sha256) -> None:
    # Written, not mapped: on a full disk a write is an error, and touching a mapped page kills the process (SIGBUS).
    with ExitStack() as files:
        # Closed, and so renamed, in the reverse order: where the latents are, the tokens are too.
        latents_file = files.enter_context(_npy_file(latents_path, np.float16, (n_frames, n_values)))
        if n_tokens:
            tokens_file = files.enter_context(_npy_file(tokens_path, np.int32, (n_frames, n_tokens)))
        for latents, tokens in read_content(data_files, n_frames, n_values, n_tokens, content_sha256):
            latents_file.write(latents)
            if n_tokens:
                tokens_file.write(tokens)


def read_content(
    data_files: Sequence[Path], n_frames: int, n_values: int, n_tokens: int, content_sha256: str
) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """Read a companion's latents and tokens, and hold them against their hash at the end.

    Args:
        data_files: The companion's parquet files, in order.
        n_frames: Frames of all of them.
        n_values, n_tokens, content_sha256: As for `build_table`.

    Yields:
        (n, p * d) float16 latents and (n, tokens) int32 tokens, or None, of consecutive frames.

    Raises:
        DamagedFileError: if the files do not hold what the hash promises.
    """
    digest, row = ContentHash(), 0
    columns = ["index", LATENTS] + ([TOKENS] if n_tokens else [])
    for path in data_files:
        for batch in _row_groups(path, columns):
            stop = row + batch.num_rows
            if stop > n_frames or not np.array_equal(batch["index"].to_numpy(), np.arange(row, stop)):
                raise DamagedFileError(f"{path}: frames are not in the order of `index`; write the companion again")
            with reading(path, "a companion's data", "download or write the companion again"):
                latents = np.ascontiguousarray(column_values(batch[LATENTS], n_values), np.float16)
                tokens = column_values(batch[TOKENS], n_tokens).astype(np.int32) if n_tokens else None
            digest.update(latents, tokens)
            yield latents, tokens
            row = stop
    if row != n_frames or digest.hexdigest() != content_sha256:
        raise DamagedFileError(
            f"{data_files[0].parents[2] if data_files else 'a companion'}: its latents are not those that "
            f"wm-precompute wrote ({row} of {n_frames} frames read): it is damaged; download or write it again"
        )


@contextmanager
def _npy_file(path: Path, dtype: type, shape: tuple[int, int]) -> Iterator[BinaryIO]:
    """An .npy file of that shape, of which the header is written."""
    with writing(path) as aside, aside.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        yield file


def _row_groups(path: Path, columns: list[str]) -> Iterator[pa.Table]:
    file = open_parquet(path)
    for group in range(file.num_row_groups):
        with reading(path, "parquet", "download or write the companion again"):
            table = file.read_row_group(group, columns=columns)
            if missing := sorted(set(columns) - set(table.column_names)):
                raise ValueError(f"no column {missing[0]!r}")
        yield table
