"""LeRobotDatasets: companions, copies that wm-precompute or coc-label made, recordings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.language import LANGUAGE_EVENTS, LANGUAGE_PERSISTENT

from coc_tools.language_rows import labels_by_index
from wm_tools.verify.faults import Faults
from world_modality_core.io.dataset_files import data_files, first_bad_frame
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import STATS_FILE, Companion, open_companion
from world_modality_core.latents.fingerprint import SOURCE_FILE, SourceFingerprint
from world_modality_core.latents.latent_quality import LatentStatistics
from world_modality_core.latents.latent_table import LATENTS, TOKENS, read_content
from world_modality_core.precompute.copied_parts import stale_parts
from world_modality_core.precompute.source import SourceDataset, open_metadata

# Of what training reads as vectors.
_VECTORS = ("action", "observation.state")
_LABELS = {LANGUAGE_PERSISTENT, LANGUAGE_EVENTS}


def check_companion(root: Path, source: Path | None, faults: Faults) -> str:
    """A companion, or a merged copy: the dataset, and every latent against the hash that was taken of them."""
    companion = open_companion(root=root)
    facts = check_dataset(root, source, faults)
    with faults.noted():
        _check_latents(companion, faults)
    if source is not None:
        with faults.noted():
            companion.check_source(open_metadata(source.name, source))
    return f"{facts}, latents {companion.info.content_sha256[:16]}"


def _check_latents(companion: Companion, faults: Faults) -> None:
    spec, bounds, info = companion.spec, companion.bounds, companion.info
    n_frames, width = int(bounds[-1, 1]), spec.n_tokens * spec.dim
    stats, n_bad = LatentStatistics(n_frames, spec.n_tokens, spec.dim, 1, 0), 0
    rows = read_content(data_files(companion.root), n_frames, width, info.tokens_per_frame, info.content_sha256)
    for latents, tokens in rows:
        n_bad += int((~np.isfinite(latents)).any(axis=1).sum())
        if not n_bad:
            stats.update(latents)
        if tokens is not None and len(tokens) and not (0 <= tokens.min() and tokens.max() < info.n_codes):
            faults.add(f"{companion.root}: {TOKENS} are none of {info.n_codes} codes; write it again")
    if n_bad:
        faults.add(f"{companion.root}: {LATENTS} is NaN or Inf in {n_bad} frames; write it again")
        return
    for name, found in (("mean", companion.mean), ("std", companion.std)):
        wanted = torch.from_numpy(getattr(stats, name)).float()
        if not torch.allclose(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max())):
            faults.add(f"{companion.root / STATS_FILE}: {name} is not that of the latents; download or write it again")


def check_dataset(root: Path, source: Path | None, faults: Faults) -> str:
    """A dataset: what `meta/` says against the frames, and the first and last pictures of each episode."""
    dataset = SourceDataset(root.name, str(root))
    meta = dataset.meta
    for name in _VECTORS:
        if meta.features.get(name, {}).get("dtype", "").startswith("float"):
            with faults.noted():
                if bad := first_bad_frame(root, name, meta.features[name]["shape"]):
                    faults.add(f"{root}: {bad}")
    with faults.noted():
        dataset.check_ends()
    facts = f"{meta.total_episodes} episodes, {meta.total_frames} frames"
    if LANGUAGE_PERSISTENT in meta.features:
        with faults.noted():
            facts += f", {labels_by_index(meta).n_rows} rows of labels"
    if source is not None:
        with faults.noted():
            _check_copy(meta, source, faults)
    return facts


def _check_copy(meta: LeRobotDatasetMetadata, source: Path, faults: Faults) -> None:
    """A copy, a companion or a labelled dataset against the dataset that it was made from, as that is now."""
    original, root = open_metadata(source.name, source), Path(meta.root)
    own, marked = SourceFingerprint.of(original), SourceFingerprint.read(root)
    for difference in marked.differences(own) if marked else []:
        faults.add(f"{root / SOURCE_FILE}: it was made from something else than {source}: {difference}")
    keep = set(original.features) & set(meta.features)
    if not keep:
        raise ConfigError(f"{root} and {source} have no feature in common: name the dataset that it was made from")
    stale = [name for name in stale_parts(original, root, keep) if name not in _LABELS]
    if stale:
        faults.add(f"{root}: its {', '.join(stale)} are not what {source} has now; make it again from there")
