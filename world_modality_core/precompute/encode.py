"""From chunks of frames to the latents of whole episodes, and the sample that the PCA is fitted on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from world_modality_core.encoders import WorldEncoder
from world_modality_core.encoders.windows import causal_windows, window_positions
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.latents.pca import LatentPCA
from world_modality_core.precompute.source import BadEpisode, Chunk, SourceDataset
from world_modality_core.precompute.staging import Staging

# The PCA's sample comes from at most so many episodes (each is decoded to its end) and holds at most so many tokens
# per pooling part: 65,536 x 768 float32 are 192 MiB.
PCA_MAX_EPISODES = 64
PCA_MAX_TOKENS = 65_536
# Batches that are tried, each twice the one before, for as long as one is faster by a twentieth.
SMALLEST_BATCH, LARGEST_BATCH, LEAST_GAIN = 16, 512, 1.05


def find_batch_size(encoder: WorldEncoder, sizes: dict[str, tuple[int, int]], longest: int) -> int:
    """The batch with which an encoder is fastest: doubled for as long as that gains something.

    A batch that memory is too short for is halved by the encoder itself, and so gains nothing.

    Args:
        encoder: The encoder; a PCA is of no matter.
        sizes: (height, width) of each camera's frames.
        longest: Frames of the longest episode: no batch can hold more.

    Returns:
        Frames.
    """
    spec, best, rate, n = encoder.spec, 0, 0.0, SMALLEST_BATCH
    while best < min(longest, LARGEST_BATCH):
        black = {camera: torch.zeros(n, *size, 3, dtype=torch.uint8, device=encoder.device).permute(0, 3, 1, 2)
                 for camera, size in sizes.items()}  # fmt: skip
        windows = {camera: causal_windows(images, spec.n_frames, spec.frame_stride) for camera, images in black.items()}
        seconds = []
        for _ in range(3):  # the first one warms up
            start = time.perf_counter()
            encoder.encode_raw(windows)[0].cpu()  # waits for the device
            seconds.append(time.perf_counter() - start)
        if n / min(seconds[1:]) < LEAST_GAIN * rate:
            break
        best, rate, n = n, n / min(seconds[1:]), 2 * n
    return best


def stage_latents(
    source: SourceDataset,
    encoder: WorldEncoder,
    staging: Staging,
    episodes: Sequence[int],
    batch_size: int,
    n_workers: int,
    progress: Callable[[int], object] = lambda n_frames: None,
    skips_bad: bool = False,
) -> None:
    """Decode, encode and stage some episodes.

    Args:
        source: The source dataset.
        encoder: The encoder, PCA attached if it has one.
        staging: Where the latents go.
        episodes: Episode indices.
        batch_size: Frames encoded at once.
        n_workers: Decoding processes.
        progress: Called with the number of frames of each batch.
        skips_bad: Leave out an episode that can't be read, and say so.

    Raises:
        ConfigError: if latents are not finite in float16.
        UserError: if an episode can't be read.
    """
    chunks = source.chunks(episodes, encoder.spec, batch_size, n_workers)
    for n_frames, episode, latents in encode_episodes(readable(chunks, skips_bad), encoder):
        progress(n_frames)
        if latents is not None:
            staging.write(episode, _to_host(episode, latents))


def readable(chunks: Iterator[Chunk | BadEpisode], skips_bad: bool = False) -> Iterator[Chunk]:
    """The chunks of the episodes that can be read.

    Raises:
        UserError: naming the first that can't, unless such episodes are skipped.
    """
    for item in chunks:
        if isinstance(item, Chunk):
            yield item
        elif skips_bad:
            print(f"Skipped episode {item.episode}: {item.error}")
        else:
            raise UserError(
                f"{item.error}. Or leave episode {item.episode} out: --exclude_episodes={item.episode} (or "
                "--on_bad_episode=skip)"
            )


def encode_episodes(chunks: Iterator[Chunk], encoder: WorldEncoder) -> Iterator[tuple[int, int, Tensor | None]]:
    """Encode episodes chunk by chunk.

    Batches never mix episodes, so an episode's latents do not depend on which others are encoded beside it: a resumed
    run and a run on several processes give the values of a plain one.

    Args:
        chunks: Frames; the chunks of one episode in order, episodes in any order.
        encoder: The encoder, PCA attached if it has one.

    Yields:
        For each chunk, (frames encoded, episode, latents): None until the episode is complete, then all of its latents,
        (t, p * d) float16 on the encoder's device, of the frames that are encoded.
    """
    latents: dict[int, list[Tensor]] = {}
    for chunk, windows in _windows(chunks, encoder):
        parts = latents.setdefault(chunk.episode, [])
        parts.append(encoder.encode(windows).flatten(1).half())
        yield len(parts[-1]), chunk.episode, torch.cat(latents.pop(chunk.episode)) if chunk.is_last else None


def _to_host(episode: int, latents: Tensor) -> np.ndarray:
    if not torch.isfinite(latents).all():
        raise ConfigError(
            f"episode {episode}: the encoder gave latents that are not finite in float16, in which they are stored; "
            "try encoder.dtype=float32, another layer, or a PCA"
        )
    return latents.cpu().numpy()


def fit_pca(
    source: SourceDataset, encoder: WorldEncoder, usable: Sequence[int], n_frames: int, seed: int, batch_size: int,
    n_workers: int, skips_bad: bool = False,
):  # fmt: skip
    """Fit the encoder's PCA on a seeded sample of frames, spread over a seeded sample of episodes.

    Args:
        source: The source dataset.
        encoder: The encoder, without PCA.
        usable: Episodes to take it from.
        n_frames: Frames in the sample.
        seed: Seed of the sample.
        batch_size: Frames encoded at once.
        n_workers: Decoding processes.
        skips_bad: Leave out an episode that can't be read.

    Returns:
        The fitted `LatentPCA`.
    """
    rng = np.random.default_rng(seed)
    n_episodes = min(len(usable), PCA_MAX_EPISODES)
    episodes = np.sort(np.asarray(usable)[rng.choice(len(usable), n_episodes, replace=False)])
    per_episode = -(-n_frames // n_episodes)
    chosen = {int(e): rng.permutation(encoder.spec.n_encoded(source.lengths[e]))[:per_episode] for e in episodes}
    per_frame = max(1, PCA_MAX_TOKENS // sum(map(len, chosen.values())))
    samples: dict[int, list[list[Tensor]]] = {}
    chunks = readable(source.chunks(episodes, encoder.spec, batch_size, n_workers), skips_bad)
    for chunk, windows in _windows(chunks, encoder):
        n = len(next(iter(windows.values())))
        rows = np.flatnonzero(np.isin(np.arange(chunk.start, chunk.start + n), chosen[chunk.episode]))
        if not len(rows):
            continue
        parts = encoder.encode_raw({camera: w[torch.from_numpy(rows)] for camera, w in windows.items()})
        generator = torch.Generator().manual_seed(seed + chunk.episode)
        kept = [part[:, torch.randperm(part.shape[1], generator=generator)[:per_frame]].cpu() for part in parts]
        samples.setdefault(chunk.episode, []).append(kept)
    in_order = [kept for e in sorted(samples) for kept in samples[e]]
    return LatentPCA.fit([torch.cat([k.flatten(0, 1) for k in part]) for part in zip(*in_order, strict=True)],
                         encoder.spec.pca_dim, seed)  # fmt: skip


def _windows(chunks: Iterator[Chunk], encoder: WorldEncoder) -> Iterator[tuple[Chunk, dict[str, Tensor]]]:
    """Each chunk with its causal windows, (n, m, 3, h, w) per camera on the encoder's device."""
    spec = encoder.spec
    tails: dict[int, tuple[np.ndarray, dict[str, Tensor]]] = {}
    for chunk in chunks:
        frames = {camera: images.to(encoder.device, non_blocking=True) for camera, images in chunk.frames.items()}
        if spec.n_frames == 1:
            yield chunk, {camera: images.unsqueeze(1) for camera, images in frames.items()}
            continue
        # The window of a chunk's first frame reaches back into the chunk before.
        positions = chunk.positions.numpy()
        ends = positions[positions % spec.every == 0]
        if chunk.episode in tails:
            before, tail = tails.pop(chunk.episode)
            positions = np.concatenate([before, positions])
            frames = {camera: torch.cat([tail[camera], images]) for camera, images in frames.items()}
        rows = np.searchsorted(positions, window_positions(ends, spec.n_frames, spec.frame_stride))
        rows = torch.from_numpy(rows).to(encoder.device)
        if not chunk.is_last:
            kept = int(np.searchsorted(positions, ends[-1] + spec.every - (spec.window_span - 1)))
            tails[chunk.episode] = positions[kept:], {camera: images[kept:] for camera, images in frames.items()}
        yield chunk, {camera: images[rows] for camera, images in frames.items()}
