"""What tells good world latents from bad ones: the figures that `wm-precompute` prints and stores.

Each is defined in docs/precompute.md. Everything is summed up in one pass over the episodes, so that no more than one
episode and a small seeded sample are in memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

HORIZONS = (1, 2, 4, 8, 16)
# Cosine of copying below which a Prophet has something to add. At 30 fps one frame ahead copies at 0.996.
WORTH_PREDICTING = 0.95
# Rows in the sample for the effective rank; its cost grows with their square.
RANK_SAMPLE = 2048
# A dimension is near-constant if its spread is below this share of the root mean square of all dimensions' spread.
NEAR_CONSTANT = 0.01
_EPISODES_AT_ONCE, _ROWS_AT_ONCE = 512, 1 << 20


class LatentStatistics:
    """One pass over latents: per-dimension statistics, copy-last cosines, and a seeded sample of rows."""

    def __init__(self, n_frames: int, n_tokens: int, dim: int, sample_size: int, seed: int, every: int = 1) -> None:
        """Prepare for `n_frames` rows of `n_tokens` tokens of width `dim`, new ones `every` so many rows; sample
        `sample_size` of them."""
        self.shape = (n_tokens, dim)
        self.n_frames = n_frames
        rng = np.random.default_rng(seed)
        self._wanted = np.sort(rng.choice(n_frames, min(sample_size, n_frames), replace=False))
        self._sample: list[np.ndarray] = []
        self._seen = 0
        width = n_tokens * dim
        self._mean, self._m2 = np.zeros(width), np.zeros(width)
        self.min, self.max = np.full(width, np.inf, np.float32), np.full(width, -np.inf, np.float32)
        self._cosine = {k * every: [0.0, 0] for k in HORIZONS}

    def update(self, latents: np.ndarray) -> None:
        """Add one episode, the next in order: (t, p * d) float16."""
        n = len(latents)
        first, last = np.searchsorted(self._wanted, [self._seen, self._seen + n])
        self._sample.append(latents[self._wanted[first:last] - self._seen])
        x = latents.astype(np.float32)
        # Chan et al. 1979: sums of squares of large means would cancel.
        mean = x.mean(axis=0, dtype=np.float64)
        delta, total = mean - self._mean, self._seen + n
        self._m2 += ((x - mean) ** 2).sum(axis=0, dtype=np.float64) + delta**2 * (self._seen * n / total)
        self._mean += delta * (n / total)
        self._seen = total
        self.min, self.max = np.minimum(self.min, x.min(axis=0)), np.maximum(self.max, x.max(axis=0))
        tokens = x.reshape(n, *self.shape)
        tokens = tokens / np.maximum(np.linalg.norm(tokens, axis=-1, keepdims=True), 1e-12)
        for k in self._cosine:
            if n > k:
                self._cosine[k][0] += float(np.einsum("tpd,tpd->", tokens[:-k], tokens[k:]))
                self._cosine[k][1] += (n - k) * self.shape[0]

    @property
    def mean(self) -> np.ndarray:
        """(p * d,) float64 mean over all frames."""
        return self._mean

    @property
    def std(self) -> np.ndarray:
        """(p * d,) float64 standard deviation over all frames."""
        return np.sqrt(self._m2 / self._seen)

    def sample(self, size: int | None = None) -> np.ndarray:
        """(n, p * d) float16 seeded sample of rows; of at most `size` of them, evenly thinned."""
        rows = np.concatenate(self._sample)
        return rows if size is None or size >= len(rows) else rows[np.linspace(0, len(rows) - 1, size).astype(int)]

    def figures(self) -> dict:
        """The figures about latents."""
        std = self.std
        scale = float(np.sqrt((std**2).mean()))
        return {
            "n_frames": self._seen,
            "spread": {name: float(np.quantile(std, q)) for name, q in (("min", 0), ("median", 0.5), ("max", 1))},
            "effective_rank": effective_rank(self.sample(RANK_SAMPLE).astype(np.float32)),
            "n_dims": len(std),
            "near_constant": float((std <= NEAR_CONSTANT * scale).mean()),
            "cosine_copy": {str(k): (total / n if n else None) for k, (total, n) in self._cosine.items()},
        }


def effective_rank(rows: np.ndarray) -> float:
    """Exponential of the entropy of the covariance's normalised eigenvalues (Roy and Vetterli, 2007).

    Between 1 (all variance along one direction) and the number of dimensions; 0 for rows that are all equal.

    Args:
        rows: (n, d).
    """
    centred = rows - rows.mean(axis=0)
    gram = centred @ centred.T if len(rows) < rows.shape[1] else centred.T @ centred
    eigenvalues = np.clip(np.linalg.eigvalsh(gram.astype(np.float64)), 0, None)
    if eigenvalues.sum() == 0:
        return 0.0
    p = eigenvalues / eigenvalues.sum()
    return float(np.exp(-(p[p > 0] * np.log(p[p > 0])).sum()))


def token_figures(tokens: np.ndarray, bounds: np.ndarray, n_codes: int, every: int = 1) -> dict:
    """The figures about world tokens.

    Args:
        tokens: (n, n_per_frame) codes of all frames.
        bounds: (e, 2) first frame and one past the last frame of each episode.
        n_codes: Codes in the book.
        every: Frames between two that were encoded.

    Returns:
        Usage, perplexity, and per horizon the accuracies of the copy and bigram baselines. The bigram is counted on
        episodes 0, 2, 4, ... and both are scored on episodes 1, 3, 5, ...; None where there is nothing to score.
    """
    counts = np.zeros(n_codes, np.int64)
    for part in np.array_split(
        tokens, -(-len(tokens) // _ROWS_AT_ONCE)
    ):  # counting makes a copy of eight bytes a token
        counts += np.bincount(part.reshape(-1), minlength=n_codes)
    p = counts[counts > 0] / counts.sum()
    copy, bigram = {}, {}
    for k in (every * k for k in HORIZONS):
        copy[str(k)], bigram[str(k)] = _baselines(tokens, bounds, k, n_codes)
    return {
        "n_codes": n_codes,
        "usage": float((counts > 0).mean()),
        "perplexity": float(np.exp(-(p * np.log(p)).sum())),
        "copy_accuracy": copy,
        "bigram_accuracy": bigram,
    }


def _pairs(tokens: np.ndarray, bounds: np.ndarray, k: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Codes and those k frames later, of some episodes at a time."""
    long = bounds[bounds[:, 1] - bounds[:, 0] > k]
    for block in np.array_split(long, -(-len(long) // _EPISODES_AT_ONCE)) if len(long) else ():
        yield (
            np.concatenate([tokens[a : b - k] for a, b in block]).reshape(-1),
            np.concatenate([tokens[a + k : b] for a, b in block]).reshape(-1),
        )


def _baselines(tokens: np.ndarray, bounds: np.ndarray, k: int, n_codes: int) -> tuple[float | None, float | None]:
    counted = [
        np.unique(now.astype(np.int64) * n_codes + later, return_counts=True)
        for now, later in _pairs(tokens, bounds[::2], k)
    ]
    scored = n_copied = n_foreseen = 0
    if counted:
        pairs, where = np.unique(np.concatenate([pairs for pairs, _ in counted]), return_inverse=True)
        counts = np.bincount(where, np.concatenate([counts for _, counts in counted]))
        best = np.arange(n_codes)  # a code never seen is copied
        order = np.argsort(counts, kind="stable")  # the most frequent successor is written last and stays
        best[pairs[order] // n_codes] = pairs[order] % n_codes
        for now, later in _pairs(tokens, bounds[1::2], k):
            scored += len(now)
            n_copied, n_foreseen = n_copied + (now == later).sum(), n_foreseen + (best[now] == later).sum()
    return (float(n_copied / scored), float(n_foreseen / scored)) if scored else (None, None)


def suggested_stride(cosine_copy: dict[str, float | None]) -> int | None:
    """Frames ahead at which there is something to predict.

    Returns:
        The fewest of those measured at which copying the last latent scores less than `WORTH_PREDICTING`, the most
        where it scores more at all; None where nothing was measured.
    """
    measured = {int(k): value for k, value in cosine_copy.items() if value is not None}
    return next((k for k, value in measured.items() if value < WORTH_PREDICTING), max(measured, default=None))


def format_quality(quality: dict, fps: float) -> str:
    """The figures as a table for people."""
    latents, tokens = quality["latents"], quality.get("tokens")
    spread = latents["spread"]
    lines = [
        f"Latents of {latents['n_frames']} frames, {latents['n_dims']} dimensions",
        "  spread (std) per dimension     " + "  ".join(f"{name} {value:.4g}" for name, value in spread.items()),
        f"  effective rank                 {latents['effective_rank']:.1f}",
        f"  near-constant dimensions       {100 * latents['near_constant']:.1f} %",
        _row("cosine z_t to z_t+k (copy)", latents["cosine_copy"], "k="),
    ]
    if stride := suggested_stride(latents["cosine_copy"]):
        lines.append(
            f"  suggested strides              {stride} frames ({stride / fps:.2g} s): "
            f"--policy.history_stride={stride} --policy.future_stride={stride}"
        )
    if tokens:
        lines += [
            f"Tokens, {tokens['n_codes']} codes",
            f"  codes used                     {100 * tokens['usage']:.1f} %",
            f"  perplexity                     {tokens['perplexity']:.1f}",
            _row("accuracy of copying", tokens["copy_accuracy"], "k="),
            _row("accuracy of the bigram", tokens["bigram_accuracy"], "k="),
        ]
    return "\n".join(lines)


def _row(title: str, by_horizon: dict, prefix: str) -> str:
    cells = [f"{prefix}{k} {'-' if value is None else f'{value:.3f}'}" for k, value in by_horizon.items()]
    return f"  {title:<30} {'  '.join(cells)}"
