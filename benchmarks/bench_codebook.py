"""Codebook fit: CPU time and quantisation error of `Codebook.fit` over scikit-learn's MiniBatchKMeans.

Each repeat gives both the same data, another one than the repeat before. CPU time depends on the threads: libraries
that spin while they wait burn it. `OMP_NUM_THREADS=1` compares the work itself.

Data: clustered latents (a mixture of Gaussians with power-law spread, as image features have), the same for both.
CPU time is `time.process_time`, which counts all threads. The quantisation error is the mean squared distance of the
data to its nearest centroid. Both are fitted with the seed of the repeat.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.cluster import MiniBatchKMeans

sys.path.insert(0, str(Path(__file__).parent))
from report import report

from world_modality_core.latents.codebook import Codebook


def latents(n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    """(n, dim) float32: 200 clusters, spread falling as 1 / sqrt(dimension)."""
    scale = (1 / np.sqrt(1 + np.arange(dim))).astype(np.float32)
    centres = rng.standard_normal((200, dim), np.float32) * scale
    return centres[rng.integers(0, 200, n)] + 0.5 * rng.standard_normal((n, dim), np.float32) * scale


def error(x: np.ndarray, centroids: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid."""
    x, c = torch.from_numpy(x), torch.from_numpy(np.ascontiguousarray(centroids, dtype=np.float32))
    return torch.cat([torch.cdist(part, c).min(1).values.square() for part in x.split(4096)]).mean().item()


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--n", type=int, default=20_000, help="latents")
    cli.add_argument("--dim", type=int, default=768, help="their width")
    cli.add_argument("--codes", type=int, default=1024, help="codes")
    cli.add_argument("--repeats", type=int, default=3)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    times, errors = {"ours": [], "sklearn": []}, {"ours": [], "sklearn": []}
    for seed in range(args.repeats):
        x = latents(args.n, args.dim, np.random.default_rng(seed)).astype(np.float16).astype(np.float32)
        start = time.process_time()
        book = Codebook.fit(torch.from_numpy(x)[:, None], args.codes, seed=seed)
        times["ours"].append(time.process_time() - start)
        start = time.process_time()
        theirs = MiniBatchKMeans(args.codes, random_state=seed).fit(x)
        times["sklearn"].append(time.process_time() - start)
        errors["ours"].append(error(x, book.centroids.numpy()))
        errors["sklearn"].append(error(x, theirs.cluster_centers_))
    report(
        "codebook CPU time over MiniBatchKMeans",
        {f"{name} CPU (s)": values for name, values in times.items()}
        | {f"{name} error": values for name, values in errors.items()}
        | {"error ratio (<= 1)": [a / b for a, b in zip(errors["ours"], errors["sklearn"], strict=True)]},
        ratio=[a / b for a, b in zip(times["ours"], times["sklearn"], strict=True)],
        target="<= 0.1 at equal or lower error",
        settings=vars(args),
    )


if __name__ == "__main__":
    main()
