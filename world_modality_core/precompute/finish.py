"""From staged latents to the companion, and the copies of the source that go with it."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from lerobot.datasets.io_utils import load_stats
from safetensors.torch import save_file

from world_modality_core.encoders import WorldEncoder
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.hub_transfer import HubError, push_dataset
from world_modality_core.io.work_folder import write_folder
from world_modality_core.latents.codebook import Codebook
from world_modality_core.latents.companion import (
    CODEBOOK_FILE,
    INFO_FILE,
    PCA_FILE,
    STATS_FILE,
    Companion,
    CompanionInfo,
)
from world_modality_core.latents.fingerprint import SourceFingerprint, episode_keys
from world_modality_core.latents.latent_quality import RANK_SAMPLE, LatentStatistics, token_figures
from world_modality_core.latents.latent_table import LATENTS, TOKENS, ContentHash
from world_modality_core.precompute.assemble import write_derived
from world_modality_core.precompute.copied_parts import stale_parts
from world_modality_core.precompute.precompute_options import TokensConfig
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging


def finish(
    source: SourceDataset,
    encoder: WorldEncoder,
    book: Codebook | None,
    staging: Staging,
    root: Path,
    request: dict,
    tokens_config: TokensConfig,
    seed: int,
) -> None:
    """Write the companion from the staged latents of all episodes, aside, and move it into place.

    Args:
        source: The source dataset.
        encoder: The encoder, PCA attached if it has one.
        book: The codebook to use; None to fit one if `tokens_config` asks for it.
        staging: The staged latents.
        root: The companion's folder.
        request: Kept in the companion's metadata.
        tokens_config: What codebook to fit.
        seed: Seed of the samples and of the codebook.
    """
    spec, new_root = encoder.spec, staging.dataset_root
    p, d = spec.n_tokens, spec.dim
    n_frames, is_fitting = source.meta.total_frames, bool(tokens_config.n_codes)
    encoded = [episode for episode in range(source.meta.total_episodes) if staging.has(episode)]
    left_out = set(range(source.meta.total_episodes)) - set(encoded)
    excluded = sorted(left_out)
    if not encoded:
        raise ConfigError(f"{source.root}: none of its {len(excluded)} episodes could be read")
    n_encoded = int(source.lengths[encoded].sum())
    n_sampled = max(RANK_SAMPLE, tokens_config.n_samples * is_fitting)
    stats = LatentStatistics(n_encoded, p, d, n_sampled, seed, spec.every)

    def staged(episode: int) -> np.ndarray:
        latents = staging.read(episode)
        if spec.every == 1:
            return np.array(latents)
        return np.repeat(latents, spec.every, axis=0)[: source.lengths[episode]]

    for episode in encoded:
        stats.update(staged(episode))
    quality = {"latents": stats.figures()}

    if is_fitting:
        sample = torch.from_numpy(stats.sample(tokens_config.n_samples)).view(-1, p, d)
        book = Codebook.fit(sample, tokens_config.n_codes, tokens_config.per, seed)
    if book is not None:
        book = book.to(encoder.device)
    n_per_frame = book.n_per_frame(p) if book is not None else 0
    tokens = np.empty((n_frames, n_per_frame), np.int32)
    digest = ContentHash()

    def columns(episode: int) -> dict[str, np.ndarray]:
        rows = slice(*source.bounds[episode])
        if episode in left_out:
            latents = np.full((rows.stop - rows.start, p * d), np.nan, np.float16)
        else:
            latents = staged(episode)
        if book is None:
            digest.update(latents)
            return {LATENTS: latents}
        if episode in left_out:
            tokens[rows] = 0
        else:
            tokens[rows] = book.assign(torch.from_numpy(latents).view(-1, p, d)).cpu().numpy()
        digest.update(latents, tokens[rows])
        return {LATENTS: latents, TOKENS: tokens[rows].astype(np.int64)}

    count = np.array([n_encoded])
    values = {"min": stats.min, "max": stats.max, "mean": stats.mean, "std": stats.std, "count": count}
    write_derived(
        source.meta, new_root, keep=(), new_features=_features(p * d, n_per_frame), new_columns=columns,
        new_stats={LATENTS: values},
    )  # fmt: skip
    if book is not None:
        quality["tokens"] = token_figures(tokens, source.bounds[encoded], book.n_codes, spec.every)
        book.save(new_root / CODEBOOK_FILE)
    if encoder.pca is not None:
        encoder.pca.save(new_root / PCA_FILE)
    moments = {"mean": torch.from_numpy(stats.mean).float(), "std": torch.from_numpy(stats.std).float()}
    save_file(moments, new_root / STATS_FILE)
    CompanionInfo(
        encoder=spec.to_dict(),
        source=request["latents"]["source"],
        request=request,
        camera_shapes={camera: source.camera_shape(camera) for camera in spec.cameras},
        content_sha256=digest.hexdigest(),
        n_codes=book.n_codes if book is not None else 0,
        tokens_per_frame=n_per_frame,
        quality=quality,
        episodes=episode_keys(source.meta, source.bounds, spec.cameras),
        excluded=excluded,
    ).write(new_root)
    staging.publish(root)


def _features(n_values: int, n_tokens: int) -> dict[str, dict]:
    features = {LATENTS: {"dtype": "float16", "shape": (n_values,), "names": None}}
    if n_tokens:
        features[TOKENS] = {"dtype": "int64", "shape": (n_tokens,), "names": None}
    return features


def copy_root(root: Path, kind: str) -> Path:
    """Folder of a copy of the source ("merged", "stripped") that belongs to the companion at `root`."""
    return root.with_name(f"{root.name}_{kind}").resolve()


def write_merged(source: SourceDataset, companion: Companion, overwrite: bool = False) -> Path:
    """Write `<companion root>_merged`: a copy of the source that has the latents (and tokens) as features.

    Videos are hard-linked where the file system can, else copied. The result can be opened as a companion too.

    Returns:
        Its folder.

    Raises:
        ConfigError: if something else is there.
    """
    table, book = companion.table, companion.codebook
    features = _features(table.latents.shape[1], companion.info.tokens_per_frame)

    def columns(episode: int) -> dict[str, np.ndarray]:
        rows = slice(*source.bounds[episode])
        latents = {LATENTS: table.latents[rows]}
        return latents if book is None else {**latents, TOKENS: table.tokens[rows].astype(np.int64)}

    def write(root: Path) -> None:
        stats = {LATENTS: load_stats(companion.root)[LATENTS]}
        write_derived(source.meta, root, source.meta.features, features, columns, stats)
        for name in (INFO_FILE, STATS_FILE, PCA_FILE, CODEBOOK_FILE):
            if (companion.root / name).exists():
                shutil.copy(companion.root / name, root / name)

    return _write_copy("merged", source, companion, source.meta.features, overwrite, write)


def write_stripped(source: SourceDataset, companion: Companion, overwrite: bool = False) -> Path:
    """Write `<companion root>_stripped`: a copy of the source without image and video features.

    Returns:
        Its folder.

    Raises:
        ConfigError: if something else is there.
    """
    keep = set(source.meta.features) - {*source.meta.camera_keys, LATENTS, TOKENS}
    return _write_copy(
        "stripped", source, companion, keep, overwrite, lambda root: write_derived(source.meta, root, keep)
    )


def _write_copy(
    kind: str, source: SourceDataset, companion: Companion, keep: Iterable[str], overwrite: bool, write
) -> Path:
    root = copy_root(companion.root, kind)
    fingerprint = SourceFingerprint.of(source.meta)
    if root.exists() and any(root.iterdir()):
        marked = SourceFingerprint.read(root)
        if marked is None:
            raise ConfigError(f"{root} exists and is not a {kind} copy: move it away, or give another --output.root")
        if not overwrite:
            if marked != fingerprint or (kind == "merged" and CompanionInfo.read(root) != companion.info):
                raise ConfigError(f"{root} exists and was made from something else; give --overwrite to replace it")
            if stale := stale_parts(source.meta, root, keep):
                raise ConfigError(
                    f"{root} exists, and its {', '.join(stale)} are not what {source.root} has now; give --overwrite "
                    "to replace it (latents that are still right are kept)"
                )
            return root

    def write_marked(aside: Path) -> None:
        write(aside)
        fingerprint.write(aside)

    request = {"copy": kind, "source": fingerprint.to_dict(), "latents": companion.info.content_sha256}
    write_folder(root, request, write_marked)
    return root


def push(repo_id: str, root: Path, card: str, private: bool = False) -> str:
    """Upload a dataset that was written here, with its card.

    Returns:
        Its address.

    Raises:
        ConfigError: naming the remedy; what was written here stays, and the same command goes on with the upload.
    """
    try:
        return push_dataset(repo_id, root, card, private=private)
    except HubError as error:
        raise ConfigError(f"{error} (all is written in {root})") from None
