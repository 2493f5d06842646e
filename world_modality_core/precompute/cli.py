"""`wm-precompute`: the command, its options, and the order of its steps.

wm-precompute --dataset.repo_id=lerobot/pusht --encoder.family=dinov2 --tokens.n_codes=1024
"""
# No `from __future__ import annotations`: LeRobot's parser reads the annotation of `precompute` as a class.

import os
import shutil
import sys
from dataclasses import asdict, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from lerobot.configs import parser
from tqdm import tqdm

from world_modality_core.encoders import WorldEncoder, make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.commands import command_errors
from world_modality_core.io.dataset_files import data_files
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.hub import HubError, check_upload
from world_modality_core.io.option_differences import option_differences
from world_modality_core.latents.companion import (
    INFO_FILE,
    Companion,
    CompanionInfo,
    default_root,
    open_companion,
    partial_root,
)
from world_modality_core.latents.fingerprint import SourceFingerprint
from world_modality_core.latents.latent_quality import format_quality
from world_modality_core.latents.pca import LatentPCA
from world_modality_core.precompute.cards import companion_card, copy_card, known_license
from world_modality_core.precompute.encode import fit_pca, stage_latents
from world_modality_core.precompute.finish import finish, push, write_merged, write_stripped
from world_modality_core.precompute.source import Source
from world_modality_core.precompute.staging import Staging

# Its weights ship inside a package and it runs on a CPU.
DEFAULT_FAMILY = "efficientnet_lite0"


@dataclass
class SourceConfig:
    """The dataset to read."""

    # Repository id of the source dataset.
    repo_id: str = ""
    # Its local folder; LeRobot's default folder, or the Hub, if not given.
    root: str | None = None
    # Its Hub revision: branch, tag or commit.
    revision: str | None = None


@dataclass
class OutputConfig:
    """The companion to write."""

    # Repository id of the companion; <source>_world_<family> if not given.
    repo_id: str = ""
    # Its local folder; LeRobot's default folder if not given.
    root: str | None = None


@dataclass
class TokensConfig:
    """World tokens."""

    # Codes of the codebook; 0 for no tokens.
    n_codes: int = 0
    # One token for all of a frame, or one for each of its latent's tokens.
    per: Literal["frame", "token"] = "frame"
    # Frames in the seeded sample that the codebook is fitted on.
    n_samples: int = 65536


@dataclass
class PrecomputeConfig:
    """Options of `wm-precompute`."""

    dataset: SourceConfig = field(default_factory=SourceConfig)
    output: OutputConfig = field(default_factory=OutputConfig)
    # The encoder; without --encoder.family the embedded one, without --encoder.cameras all of the dataset's.
    encoder: EncoderSpec = field(default_factory=EncoderSpec)
    tokens: TokensConfig = field(default_factory=TokensConfig)
    # Folder or repository id of a companion whose encoder, PCA and codebook to use, as fine-tuning needs; then no
    # --encoder and no --tokens options.
    reuse_from: str | None = None
    # Also write <output root>_merged: a copy of the source that has the latents as features.
    merge: bool = False
    # Also write <output root>_stripped: a copy of the source without its images.
    strip_images: bool = False
    # Upload what was written.
    push_to_hub: bool = False
    # Make the uploaded repositories private.
    private: bool = False
    # Throw away a companion, or unfinished latents, that another request left in the output folder.
    overwrite: bool = False
    # Print what would be done, and stop.
    dry_run: bool = False
    # Frames encoded at once.
    batch_size: int = 64
    # Decoding processes, for each encoding process; 0 decodes and encodes in turn.
    num_workers: int = field(default_factory=lambda: max(1, min(8, (os.cpu_count() or 1) - 1)))
    # "cpu", "cuda", "cuda:1", ...; the best one at hand if not given.
    device: str | None = None
    # Frames in the seeded sample that the PCA is fitted on.
    pca_n_frames: int = 2048
    # Seed of the samples and of the codebook.
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.dataset.repo_id and not self.dataset.root:
            raise ConfigError("dataset.repo_id and dataset.root are both empty: name the dataset to read")
        for name, low in (("batch_size", 1), ("num_workers", 0), ("pca_n_frames", 1)):
            if getattr(self, name) < low:
                raise ConfigError(f"{name}={getattr(self, name)}: expected at least {low}")
        if self.reuse_from and (self.encoder != EncoderSpec() or self.tokens != TokensConfig()):
            raise ConfigError(
                f"reuse_from={self.reuse_from!r} brings its encoder and codebook: leave out --encoder and --tokens"
            )
        if self.tokens.n_codes < 0 or self.tokens.n_codes == 1:
            raise ConfigError(f"tokens.n_codes={self.tokens.n_codes}: expected 0 (none) or at least 2")


def precompute(cfg: PrecomputeConfig) -> Path:
    """Write the companion of a dataset, or finish the one that a killed run left.

    Under `accelerate launch` the episodes are spread over the processes; the first one does the rest.

    Returns:
        The companion's folder.

    Raises:
        ConfigError: before any work, if it cannot be done as asked for.
    """
    # Processes wait for the first one while it writes, which takes as long as it takes.
    state = PartialState(cpu=cfg.device == "cpu", timeout=timedelta(days=7))
    device = state.device if state.num_processes > 1 or cfg.device is None else cfg.device
    source = Source(cfg.dataset.repo_id or Path(cfg.dataset.root).name, cfg.dataset.root, cfg.dataset.revision)
    fingerprint = SourceFingerprint.of(source.meta)
    reused = _open_reused(cfg.reuse_from) if cfg.reuse_from else None
    encoder = _build_encoder(cfg, source, reused, device)
    repo_id = cfg.output.repo_id or f"{source.meta.repo_id}_world_{encoder.spec.family}"
    if cfg.push_to_hub and not cfg.dry_run:
        _check_upload(repo_id)
    root = Path(cfg.output.root) if cfg.output.root else default_root(repo_id)
    request = _request(cfg, fingerprint, encoder.spec, reused)
    is_finished = _check_output(root, source, request, cfg)
    n_bytes = _check_sizes(cfg, source, encoder.spec, root)
    if state.is_main_process:
        print(_plan(cfg, source, encoder, device, root, n_bytes))
    if cfg.dry_run:
        return root
    state.wait_for_everyone()  # nobody writes before everybody has looked
    if is_finished and state.is_main_process:
        Staging(partial_root(root)).remove(request["latents"])  # left by a run that was killed at its very end
    if not is_finished:
        _encode(cfg, source, encoder, reused, root, request, state)
    if state.is_main_process:
        companion = open_companion(repo_id, root)
        print(format_quality(companion.quality))
        print(f"Companion: {root}\n  use it with --policy.companion.repo_id={repo_id} --policy.companion.root={root}")
        written = [(repo_id, root)]
        if cfg.merge:
            written.append((f"{repo_id}_merged", write_merged(source, companion, cfg.overwrite)))
        if cfg.strip_images:
            written.append((f"{repo_id}_stripped", write_stripped(source, companion, cfg.overwrite)))
        for name, folder in written[1:]:
            print(f"{name.rsplit('_', 1)[1].capitalize()} copy of the source: {folder}")
        if cfg.push_to_hub:
            license = known_license(source.root)
            for name, folder in written:
                kind = name.removeprefix(f"{repo_id}_") if name != repo_id else ""
                card = copy_card(kind, companion, name, license) if kind else companion_card(companion, name, license)
                print(f"Uploaded {push(name, folder, card, cfg.private)}")
    state.wait_for_everyone()
    return root


def _check_upload(repo_id: str) -> None:
    try:
        check_upload(repo_id)
    except HubError as error:
        raise ConfigError(f"push_to_hub=true: {error}") from None


def _open_reused(name: str) -> Companion:
    try:
        return open_companion(root=name) if Path(name).exists() else open_companion(name)
    except (UserError, OSError) as error:
        raise ConfigError(f"reuse_from={name!r}: {error}") from error


def _build_encoder(cfg: PrecomputeConfig, source: Source, reused: Companion | None, device) -> WorldEncoder:
    wanted = reused.spec if reused else replace(cfg.encoder, family=cfg.encoder.family or DEFAULT_FAMILY)
    spec = replace(wanted, cameras=source.cameras(wanted.cameras))
    return make_world_encoder(spec, reused.pca if reused else None, device)


def _request(
    cfg: PrecomputeConfig, fingerprint: SourceFingerprint, spec: EncoderSpec, reused: Companion | None
) -> dict:
    """All that the companion's values depend on: the latents' part ("latents") and the tokens' part."""
    pca = {"n_frames": cfg.pca_n_frames, "seed": cfg.seed} if spec.pca_dim and not spec.pca_sha256 else None
    tokens = {**asdict(cfg.tokens), "seed": cfg.seed} if cfg.tokens.n_codes else None
    if reused is not None and reused.codebook is not None:
        tokens = {"codebook_sha256": reused.codebook.sha256}
    return {
        "latents": {"source": fingerprint.to_dict(), "encoder": asdict(spec), "pca": pca},
        "tokens": tokens,
    }


def _check_output(root: Path, source: Source, request: dict, cfg: PrecomputeConfig) -> bool:
    """Whether the companion asked for is there already.

    Raises:
        ConfigError: if something else is there.
    """
    if root.resolve() == source.root.resolve():
        raise ConfigError(f"output.root={str(root)!r} is the source dataset itself; name another folder")
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    if not (root / INFO_FILE).exists():
        raise ConfigError(f"output.root={str(root)!r} exists and is not a companion; name another folder")
    if cfg.overwrite:
        return False
    found = option_differences(CompanionInfo.read(root).request, request)
    if found:
        raise ConfigError(
            f"output.root={str(root)!r} exists and is the companion of another request ("
            f"{'; '.join(found)}). Give --overwrite to replace it, or another --output.root"
        )
    return True


def _check_sizes(cfg: PrecomputeConfig, source: Source, spec: EncoderSpec, root: Path) -> int:
    """Bytes that will be written.

    Raises:
        ConfigError: if the disk has less, or there are more codes than vectors.
    """
    n_frames, width = source.meta.total_frames, spec.n_tokens * spec.dim
    n_vectors = min(n_frames, cfg.tokens.n_samples) * (spec.n_tokens if cfg.tokens.per == "token" else 1)
    if cfg.tokens.n_codes > n_vectors:
        raise ConfigError(
            f"tokens.n_codes={cfg.tokens.n_codes}: the sample of {min(n_frames, cfg.tokens.n_samples)} frames has "
            f"{n_vectors} vectors to fit them on; use at most that many codes (or raise tokens.n_samples)"
        )
    latents = n_frames * width * 2
    n_bytes = 3 * latents  # staged, in the companion, and in the flat cache that training makes
    if cfg.merge or cfg.strip_images:
        data = sum(path.stat().st_size for path in data_files(source.root))
        n_bytes += cfg.merge * (data + latents) + cfg.strip_images * data
    if cfg.merge:
        n_bytes += sum(path.stat().st_size for path in (source.root / "videos").rglob("*.mp4"))
    parent = next(folder for folder in root.absolute().parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if n_bytes > free:
        raise ConfigError(
            f"output.root={str(root)!r}: {_gb(n_bytes)} are needed and {_gb(free)} are free on that disk; name a "
            "folder on another one, or make the latents smaller with encoder.pca_dim or a coarser encoder.pooling"
        )
    return n_bytes


def _plan(cfg, source: Source, encoder: WorldEncoder, device, root: Path, n_bytes: int) -> str:
    spec = encoder.spec
    cameras = "" if cfg.encoder.cameras else " (all of the dataset's; choose with --encoder.cameras)"
    tokens = f"{cfg.tokens.n_codes} codes per {cfg.tokens.per}" if cfg.tokens.n_codes else "none"
    tokens = f"those of {cfg.reuse_from}" if cfg.reuse_from else tokens
    return "\n".join([
        f"Source     {source.meta.repo_id} ({source.root}): {source.meta.total_frames} frames in "
        f"{source.meta.total_episodes} episodes, {source.meta.fps} fps",
        f"Cameras    {', '.join(spec.cameras)}{cameras}",
        f"Encoder    {spec.family} {spec.model_id}, {spec.pooling}, {spec.height_px} x {spec.width_px} px, "
        f"{spec.n_frames} frame(s), {spec.dtype}, on {device}",
        f"Latents    {spec.n_tokens} tokens x {spec.dim} per frame, float16"
        + (f", by PCA from {spec.raw_dims}" if spec.pca_dim else "")
        + (f", as {cfg.reuse_from}" if cfg.reuse_from else ""),
        f"Tokens     {tokens}",
        f"Output     {root}, at most {_gb(n_bytes)}",
    ])  # fmt: skip


def _gb(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.2f} GB"


def _encode(
    cfg: PrecomputeConfig, source: Source, encoder: WorldEncoder, reused: Companion | None, root: Path, request: dict,
    state: PartialState,
) -> None:  # fmt: skip
    """Encode all episodes that are not staged yet, then write the companion."""
    staging = Staging(partial_root(root))
    lock = staging.begin(request["latents"], cfg.overwrite) if state.is_main_process else None
    try:
        if encoder.spec.pca_dim and encoder.pca is None:
            if state.is_main_process and not staging.pca_path.exists():
                fit_pca(source, encoder, cfg.pca_n_frames, cfg.seed, cfg.batch_size, cfg.num_workers).save(
                    staging.pca_path
                )
            state.wait_for_everyone()
            encoder.attach_pca(LatentPCA.load(staging.pca_path))
        state.wait_for_everyone()
        mine = list(range(state.process_index, source.meta.total_episodes, state.num_processes))
        missing = [e for e in mine if not staging.has(e)]
        total, left = int(source.lengths[mine].sum()), int(source.lengths[missing].sum())
        of = f" (process 0 of {state.num_processes})" if state.num_processes > 1 else ""
        with tqdm(
            total=total, initial=total - left, desc=f"Encoding{of}", unit="frame", smoothing=0.05,
            disable=not state.is_main_process,
        ) as bar:  # fmt: skip
            stage_latents(source, encoder, staging, missing, cfg.batch_size, cfg.num_workers, bar.update)
        state.wait_for_everyone()
        if state.is_main_process:
            finish(source, encoder, reused and reused.codebook, staging, root, request, cfg.tokens, cfg.seed)
    finally:
        if lock is not None:
            lock.release()


def main() -> None:
    """Console script `wm-precompute`."""
    flags = {f"--{name}" for name, f in PrecomputeConfig.__dataclass_fields__.items() if f.type is bool}
    # LeRobot's parser wants --merge=true; a bare --merge means the same.
    following = [*sys.argv[2:], "--"]
    sys.argv[1:] = [
        f"{arg}=true" if arg in flags and after.startswith("--") else arg
        for arg, after in zip(sys.argv[1:], following, strict=False)
    ]
    with command_errors("wm-precompute"):
        parser.wrap()(precompute)()
        PartialState().destroy_process_group()


if __name__ == "__main__":
    main()
