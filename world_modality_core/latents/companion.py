"""The companion dataset: world latents of a source LeRobotDataset, frame for frame, as a LeRobotDataset of its own.

Written by `wm-precompute`, opened here. Beside LeRobot's own files it holds

    meta/world_modality.json           encoder spec, source fingerprint, camera shapes, content hash, quality figures
    meta/world_stats.safetensors       mean and std of the latents over all frames
    meta/world_pca.safetensors         with encoder.pca_dim > 0
    meta/world_codebook.safetensors    with tokens.n_codes > 0
"""

from __future__ import annotations

import json
import os
import re
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from huggingface_hub import is_offline_mode, snapshot_download
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.datasets.dataset_metadata import CODEBASE_VERSION
from lerobot.utils.constants import HF_LEROBOT_HOME, HF_LEROBOT_HUB_CACHE
from torch import Tensor

from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.dataset_files import data_files
from world_modality_core.io.errors import ConfigError, DamagedFileError, UserError
from world_modality_core.io.files import (
    as_dataclass,
    inside,
    open_parquet,
    read_json,
    read_tensors,
    reading,
    write_text,
)
from world_modality_core.io.first_look import missing
from world_modality_core.io.hub_transfer import HubError, downloaded_dataset, hub_errors
from world_modality_core.latents.codebook import Codebook
from world_modality_core.latents.fingerprint import SourceFingerprint, whole_fps
from world_modality_core.latents.latent_table import LATENTS, TOKENS, LatentTable, build_table
from world_modality_core.latents.pca import LatentPCA

FORMAT_VERSION = 1
INFO_FILE = "meta/world_modality.json"
STATS_FILE = "meta/world_stats.safetensors"
PCA_FILE = "meta/world_pca.safetensors"
CODEBOOK_FILE = "meta/world_codebook.safetensors"
DATA_PATTERNS = ["meta/**", "data/**"]


class CompanionError(UserError, ValueError):
    """A companion cannot be used."""


class IncompleteCompanionError(CompanionError):
    """A companion was not written to its end, or not downloaded to its end."""


class CompanionMismatchError(CompanionError):
    """A companion was made from another dataset than the one at hand."""


@dataclass
class CompanionInfo:
    """Contents of `meta/world_modality.json`.

    Attributes:
        encoder: The resolved `EncoderSpec`, as a dict.
        source: The `SourceFingerprint`, as a dict.
        request: What `wm-precompute` was asked for; the same request finds its companion finished.
        camera_shapes: Camera key -> [height, width, channels] of the source's frames.
        content_sha256: Hash of all latents and tokens.
        n_codes: Codes of the codebook, 0 without one.
        tokens_per_frame: World tokens per frame, 0 without a codebook.
        quality: The figures that `wm-precompute` prints.
        episodes: What tells each episode from any other (`episode_keys`); empty in older files.
        excluded: Episodes that have no latents: their rows are NaN.
        format_version: Version of this file's layout.
    """

    encoder: dict
    source: dict
    request: dict
    camera_shapes: dict[str, list[int]]
    content_sha256: str
    n_codes: int = 0
    tokens_per_frame: int = 0
    quality: dict = field(default_factory=dict)
    episodes: list[str] = field(default_factory=list)
    excluded: list[int] = field(default_factory=list)
    format_version: int = FORMAT_VERSION

    def write(self, root: Path) -> None:
        """Write the file into the dataset at `root`."""
        write_text(root / INFO_FILE, json.dumps(asdict(self), indent=2))

    @classmethod
    def read(cls, root: Path) -> CompanionInfo:
        """Read the file of the dataset at `root`.

        Raises:
            CompanionError: if another release wrote it.
            DamagedFileError: if it can't be read.
        """
        path = root / INFO_FILE
        raw = read_json(path, dict)
        if raw.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise CompanionError(
                f"{path}: format_version {raw['format_version']!r:.60}, expected {FORMAT_VERSION}; use the release of "
                "this package that wrote it, or write it again"
            )
        info = as_dataclass(cls, raw, path)
        # It names the cache's files.
        if not re.fullmatch("[0-9a-f]{64}", info.content_sha256):
            raise DamagedFileError(f"{path}: content_sha256 is no SHA-256; download or write it again")
        return info


@dataclass
class Companion:
    """An opened companion dataset.

    Attributes:
        root: Its folder.
        repo_id: Its repository id.
        spec: The resolved spec of the encoder that made it.
        pca: The encoder's PCA, or None.
        codebook: The codebook of its world tokens, or None.
        mean: (p * d,) float32 mean of the latents over all frames.
        std: (p * d,) float32 standard deviation of the latents over all frames.
        fps: Frames per second.
        source: Fingerprint of the dataset that it was made from.
        camera_shapes: Camera key -> [height, width, channels] of the source's frames.
        quality: The figures that `wm-precompute` printed.
        info: All of `meta/world_modality.json`.
        bounds: (e, 2) int64 first frame and one past the last frame of each episode.
        revision: Revision that its files were asked for.
    """

    root: Path
    repo_id: str
    spec: EncoderSpec
    pca: LatentPCA | None
    codebook: Codebook | None
    mean: Tensor
    std: Tensor
    fps: int | float
    source: SourceFingerprint
    camera_shapes: dict[str, list[int]]
    quality: dict
    info: CompanionInfo
    bounds: np.ndarray
    revision: str | None = None

    @cached_property
    def table(self) -> LatentTable:
        """The latents (and tokens) as a memory-mapped table; its flat cache is written on first use."""
        files = data_files(self.root)
        if not files or (self._is_downloaded and _n_rows(files) < self.bounds[-1, 1]):
            _download(self.repo_id, self.root, self.revision)
            files = data_files(self.root)
        return build_table(
            files,
            self.bounds,
            self._cache_dir(),
            n_values=self.spec.n_tokens * self.spec.dim,
            n_tokens=self.info.tokens_per_frame,
            content_sha256=self.info.content_sha256,
        )

    @property
    def _is_downloaded(self) -> bool:
        """Whether its files come from the Hub, so that those that an interrupted download left out can be had."""
        return self.root.parent.name == "snapshots" or (self.root / ".cache/huggingface").is_dir()

    def _cache_dir(self) -> Path:
        beside = self.root / "cache"
        if os.access(beside if beside.exists() else self.root, os.W_OK):
            return beside
        return HF_LEROBOT_HOME / "world_modality_cache" / self.info.content_sha256[:16]

    def check_source(self, ds_meta: LeRobotDatasetMetadata) -> None:
        """Check that a dataset is the one that these latents were made from, or a copy of it.

        A byte copy, a stripped copy and a merged copy pass, under any name.

        Raises:
            CompanionMismatchError: naming what differs.
        """
        found = self.source.differences(SourceFingerprint.of(ds_meta))
        marked = SourceFingerprint.read(Path(ds_meta.root))
        if found and not (marked is not None and self._is_bare_copy(ds_meta, marked)):
            raise CompanionMismatchError(
                f"the companion {self.repo_id!r} ({self.root}) was made from {self.source.repo_id!r}, and the dataset "
                f"{ds_meta.repo_id!r} ({ds_meta.root}) is not that dataset or a copy of it: {'; '.join(found)}. "
                "Give the companion of this dataset, or write one with wm-precompute"
            )

    def _is_bare_copy(self, ds_meta: LeRobotDatasetMetadata, marked: SourceFingerprint) -> bool:
        # A stripped copy of a dataset of images alone keeps nothing to compare: its mark says where it comes from.
        own = SourceFingerprint.of(ds_meta)
        return not own.content and marked.to_dict() == self.source.to_dict() and not _lengths_differ(own, self.source)


def _lengths_differ(a: SourceFingerprint, b: SourceFingerprint) -> bool:
    return (a.total_frames, a.fps, a.episode_lengths_sha256) != (b.total_frames, b.fps, b.episode_lengths_sha256)


def default_root(repo_id: str) -> Path:
    """Where LeRobot keeps a local dataset that was given no root.

    Raises:
        ConfigError: if the id leads out of that folder.
    """
    return inside(HF_LEROBOT_HOME, repo_id, "repo_id")


def partial_root(root: Path) -> Path:
    """Where `wm-precompute` keeps what it has of a companion that is not finished."""
    return root.with_name(root.name + ".partial")


def open_companion(repo_id: str = "", root: str | Path | None = None, revision: str | None = None) -> Companion:
    """Open a companion dataset, local or from the Hub. Its latents are read on first use of `.table`.

    Args:
        repo_id: Repository id; may be empty if `root` is given.
        root: Local folder; LeRobot's default folder or the Hub if not given.
        revision: Hub revision (branch, tag or commit).

    Raises:
        IncompleteCompanionError: if it was not written or downloaded to its end.
        CompanionError: if it is not a companion, its parts do not belong together, or neither name nor root is given.
        HubError: if it is not here and can't be had from the Hub.
    """
    if not repo_id and root is None:
        raise CompanionError("companion.repo_id and companion.root are empty: give the one that wm-precompute wrote")
    local = Path(root) if root is not None else default_root(repo_id)
    if not (local / "meta/info.json").exists():
        if partial_root(local).exists():
            raise IncompleteCompanionError(
                f"the companion {str(local)!r} is incomplete: wm-precompute was interrupted (its work so far is in "
                f"{str(partial_root(local))!r}). Run the same wm-precompute command again to finish it"
            )
        if not repo_id:
            raise IncompleteCompanionError(
                f"companion.root={str(local)!r}: there is no dataset; write it with wm-precompute, or give "
                "companion.repo_id to download it"
            )
        if root is None and is_offline_mode():
            root = downloaded_dataset(repo_id, revision)
    meta = _open_metadata(repo_id or local.name, root, revision)
    base = Path(meta.root)
    if not (base / INFO_FILE).exists() and LATENTS in meta.features:
        raise CompanionError(
            f"{meta.repo_id!r} ({base}) has {LATENTS}, but no {INFO_FILE}: a tool that edits datasets wrote it, and "
            "left out what a companion is known by. Edit the source dataset instead, and write its companion with "
            "wm-precompute --reuse_from=OLD_COMPANION, which copies the latents of episodes that it holds already"
        )
    if not (base / INFO_FILE).exists():
        raise CompanionError(
            f"{meta.repo_id!r} ({base}) has no {INFO_FILE}: it is a plain dataset, not a companion. "
            f"Write its companion with wm-precompute --dataset.repo_id={meta.repo_id}"
        )
    return _load(meta, base, revision)


def _open_metadata(repo_id: str, root: str | Path | None, revision: str | None) -> LeRobotDatasetMetadata:
    local = Path(root) if root is not None else default_root(repo_id)
    # What is here and can't be read is damaged.
    remedy = "download or write the dataset again"
    is_here = (local / "meta/info.json").exists()
    damage = reading(local / "meta", "a LeRobotDataset's metadata", remedy) if is_here else nullcontext()
    try:
        with damage, hub_errors(repo_id, revision):
            return LeRobotDatasetMetadata(repo_id, root=root, revision=revision)
    except HubError as error:
        if root is None or is_here:
            raise
        raise CompanionError(
            f"companion.root={str(root)!r}: {missing(root)}; and it can't be downloaded there: {error}. Name "
            "the folder that wm-precompute wrote with --policy.companion.root, or --companion.root"
        ) from error
    except (RuntimeError, FileNotFoundError) as error:
        # A repository of something else: without the tag, or without the files, of a LeRobotDataset.
        raise CompanionError(
            f"{repo_id!r} (root={root and str(root)!r}, revision={revision!r}) can't be read as a LeRobotDataset "
            f"({type(error).__name__}): name a companion that wm-precompute wrote, and a revision that it has"
        ) from error


def _load(meta: LeRobotDatasetMetadata, base: Path, revision: str | None) -> Companion:
    info = CompanionInfo.read(base)
    path = base / INFO_FILE
    try:
        spec, source = as_dataclass(EncoderSpec, info.encoder, path), as_dataclass(SourceFingerprint, info.source, path)
    except ConfigError as error:  # of the spec, which doesn't know where it is from
        raise CompanionError(f"{path}: {error}; download or write it again") from error
    if not spec.is_resolved:
        raise CompanionError(f"{path}: its encoder spec names no latents; download or write it again")
    wanted = [STATS_FILE] + [PCA_FILE] * bool(spec.pca_dim) + [CODEBOOK_FILE] * bool(info.n_codes)
    missing = [name for name in wanted if not (base / name).exists()]
    if missing or meta.total_frames != source.total_frames:
        raise IncompleteCompanionError(
            f"the companion {meta.repo_id!r} ({base}) is incomplete: missing {missing}, {meta.total_frames} of "
            f"{source.total_frames} frames. Download it again, or write it again with wm-precompute --overwrite"
        )
    pca = LatentPCA.load(base / PCA_FILE) if spec.pca_dim else None
    if pca is not None and pca.sha256 != spec.pca_sha256:
        raise CompanionError(f"{base / PCA_FILE} is not the PCA of this companion's encoder spec; write it again")
    with reading(base / "meta", "a LeRobotDataset's metadata", "download or write the dataset again"):
        shape = tuple(meta.features.get(LATENTS, {}).get("shape", ()))
        episodes = meta.episodes.with_format("numpy", columns=["dataset_from_index", "dataset_to_index"])[:]
        bounds = np.stack([episodes["dataset_from_index"], episodes["dataset_to_index"]], axis=1)
    if shape != (spec.n_tokens * spec.dim,) or (TOKENS in meta.features) != bool(info.n_codes):
        raise CompanionError(
            f"{base}: features {LATENTS} of shape {shape} and tokens: {TOKENS in meta.features} do not fit its "
            f"{INFO_FILE} ({spec.n_tokens} tokens of {spec.dim}, {info.n_codes} codes); write it again"
        )
    stats = read_tensors(base / STATS_FILE, ("mean", "std"))
    if any(stats[name].shape != shape for name in ("mean", "std")):
        raise CompanionError(f"{base / STATS_FILE} is not of latents {shape[0]} wide; download or write it again")
    return Companion(
        root=base,
        repo_id=meta.repo_id,
        spec=spec,
        pca=pca,
        codebook=Codebook.load(base / CODEBOOK_FILE) if info.n_codes else None,
        mean=stats["mean"],
        std=stats["std"],
        fps=whole_fps(meta),
        source=source,
        camera_shapes=info.camera_shapes,
        quality=info.quality,
        info=info,
        bounds=bounds,
        revision=revision,
    )


def _n_rows(files: list[Path]) -> int:
    return sum(open_parquet(file).metadata.num_rows for file in files)


def _download(repo_id: str, root: Path, revision: str | None) -> None:
    """Fetch the data files of a companion whose metadata LeRobot fetched into `root`."""
    is_snapshot = root.parent.name == "snapshots"
    with hub_errors(repo_id, revision):
        snapshot_download(
            repo_id,
            repo_type="dataset",
            # A tag of LeRobot's, like the one that its metadata was fetched by.
            revision=root.name if is_snapshot else revision or CODEBASE_VERSION,
            **({"cache_dir": HF_LEROBOT_HUB_CACHE} if is_snapshot else {"local_dir": root}),
            allow_patterns=DATA_PATTERNS,
        )
