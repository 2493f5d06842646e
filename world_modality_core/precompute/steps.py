"""What `wm-precompute` does, in the order of its steps."""

from __future__ import annotations

import shlex
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from lerobot.utils.constants import ACTION, OBS_IMAGES, OBS_STATE, OBS_STR

from world_modality_core.encoders import WorldEncoder, make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.dataset_files import data_files
from world_modality_core.io.devices import check_device
from world_modality_core.io.episode_lists import parse_episodes
from world_modality_core.io.errors import ConfigError, UserError
from world_modality_core.io.files import check_room
from world_modality_core.io.hub_transfer import check_upload
from world_modality_core.io.option_differences import option_differences
from world_modality_core.io.processes import join_processes, wait_for_everyone
from world_modality_core.io.progress import Progress
from world_modality_core.latents.companion import (
    INFO_FILE,
    Companion,
    CompanionInfo,
    default_root,
    open_companion,
    partial_root,
)
from world_modality_core.latents.fingerprint import SourceFingerprint, episode_keys
from world_modality_core.latents.latent_quality import format_quality
from world_modality_core.latents.latent_table import LATENTS
from world_modality_core.latents.pca import LatentPCA
from world_modality_core.precompute.cards import companion_card, copy_card, known_license
from world_modality_core.precompute.copied_parts import stale_parts
from world_modality_core.precompute.encode import find_batch_size, fit_pca, stage_latents
from world_modality_core.precompute.finish import copy_root, finish, push, write_merged, write_stripped
from world_modality_core.precompute.precompute_options import PrecomputeConfig
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.precompute.staging import Staging

# Its weights ship inside a package and it runs on a CPU.
DEFAULT_FAMILY = "efficientnet_lite0"


def precompute(cfg: PrecomputeConfig) -> Path:
    """Write the companion of a dataset, or finish the one that a killed run left.

    Under `accelerate launch` the episodes are spread over the processes; the first one does the rest.

    Returns:
        The companion's folder.

    Raises:
        ConfigError: before any work, if it cannot be done as asked for.
    """
    check_device(cfg.device)
    state, device = join_processes(cfg.device)
    name = cfg.dataset.repo_id or Path(cfg.dataset.root).name
    source = SourceDataset(name, cfg.dataset.root, cfg.dataset.revision, cfg.tolerance_s)
    fingerprint = SourceFingerprint.of(source.meta)
    reused = _open_reused(cfg.reuse_from) if cfg.reuse_from else None
    encoder = _build_encoder(cfg, source, reused, device)
    repo_id = cfg.output.repo_id or f"{source.meta.repo_id}_world_{encoder.spec.family}"
    if cfg.merge and LATENTS in source.meta.features:
        raise ConfigError(
            f"merge=true: {source.meta.repo_id!r} ({source.root}) has {LATENTS!r} already, it is a merged copy itself; "
            "merge into the dataset that it was made from"
        )
    if cfg.push_to_hub and not cfg.dry_run:
        check_upload(repo_id, "push_to_hub=true: ")
    # A link is followed: the folder that it leads to is replaced as a whole, and unfinished work lies beside that one.
    root = (Path(cfg.output.root) if cfg.output.root else default_root(repo_id)).resolve()
    excluded = sorted(parse_episodes(cfg.exclude_episodes, [len(source.lengths)], "exclude_episodes")[0] or ())
    if len(excluded) == len(source.lengths):
        raise ConfigError(f"exclude_episodes={cfg.exclude_episodes!r} leaves none of {len(source.lengths)} episodes")
    request = _request(cfg, fingerprint, encoder.spec, reused) | ({"excluded": excluded} if excluded else {})
    is_finished = _check_output(root, source, request, cfg)
    staging = Staging(partial_root(root))
    _check_codes(cfg, source, encoder.spec)
    n_bytes = _bytes_to_write(cfg, source, encoder.spec, root, is_finished) - staging.n_bytes(request["latents"])
    remedy = "or make the latents smaller with encoder.pca_dim or a coarser encoder.pooling"
    check_room(root, n_bytes, f"name an output.root on another disk, {remedy}")
    if state.is_main_process:
        print(_plan(cfg, source, encoder, device, root, n_bytes))
    if cfg.dry_run:
        return root
    wait_for_everyone(state)  # nobody writes before everybody has looked
    if is_finished and state.is_main_process:
        staging.remove(request["latents"])  # left by a run that was killed at its very end
    if not is_finished:
        _encode(cfg, source, encoder, reused, staging, root, request, excluded, state)
    if state.is_main_process:
        companion = open_companion(repo_id, root)
        print(format_quality(companion.quality, companion.fps))
        if companion.info.excluded:
            print(f"Without latents: episodes {companion.info.excluded}; leave them out of training")
        use = shlex.join([f"--policy.companion.repo_id={repo_id}", f"--policy.companion.root={root}"])
        print(f"Companion: {root}\n  use it with {use}")
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
    wait_for_everyone(state)
    return root


def _open_reused(name: str) -> Companion:
    try:
        return open_companion(root=name) if Path(name).exists() else open_companion(name)
    except (UserError, OSError) as error:
        raise ConfigError(f"reuse_from={name!r}: {error}") from error


def _build_encoder(cfg: PrecomputeConfig, source: SourceDataset, reused: Companion | None, device) -> WorldEncoder:
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
        "latents": {"source": fingerprint.to_dict(), "encoder": spec.to_dict(), "pca": pca},
        "tokens": tokens,
    }


def _check_output(root: Path, source: SourceDataset, request: dict, cfg: PrecomputeConfig) -> bool:
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
    if stale := stale_parts(source.meta, root, ()):
        raise ConfigError(
            f"output.root={str(root)!r} exists, and its {', '.join(stale)} are not what the source has now. Give "
            "--overwrite to write it again: its latents are kept, nothing is encoded anew"
        )
    return True


def _check_codes(cfg: PrecomputeConfig, source: SourceDataset, spec: EncoderSpec) -> None:
    n_frames = source.meta.total_frames
    n_vectors = min(n_frames, cfg.tokens.n_samples) * (spec.n_tokens if cfg.tokens.per == "token" else 1)
    if cfg.tokens.n_codes > n_vectors:
        raise ConfigError(
            f"tokens.n_codes={cfg.tokens.n_codes}: the sample of {min(n_frames, cfg.tokens.n_samples)} frames has "
            f"{n_vectors} vectors to fit them on; use at most that many codes (or raise tokens.n_samples)"
        )


def _bytes_to_write(
    cfg: PrecomputeConfig, source: SourceDataset, spec: EncoderSpec, root: Path, is_finished: bool
) -> int:
    """Bytes of the companion and its copies, without what is there already; unfinished work counts as not there."""
    latents = source.meta.total_frames * spec.n_tokens * spec.dim * 2
    n_bytes = 0 if is_finished else 3 * latents  # staged, in the companion, and in the flat cache that training makes
    data = sum(path.stat().st_size for path in data_files(source.root)) if cfg.merge or cfg.strip_images else 0
    for is_asked, kind, size in ((cfg.merge, "merged", data + latents), (cfg.strip_images, "stripped", data)):
        copy = copy_root(root, kind)
        if not is_asked or (copy.exists() and not cfg.overwrite):
            continue
        n_bytes += size
        if kind == "merged" and source.root.stat().st_dev != _existing(root).stat().st_dev:  # else they are linked
            n_bytes += sum(path.stat().st_size for path in (source.root / "videos").rglob("*.mp4"))
    return n_bytes


def _existing(path: Path) -> Path:
    return next(folder for folder in path.absolute().parents if folder.exists())


def _plan(cfg, source: SourceDataset, encoder: WorldEncoder, device, root: Path, n_bytes: int) -> str:
    spec = encoder.spec
    cameras = "" if cfg.encoder.cameras else " (all of the dataset's; choose with --encoder.cameras)"
    if not cfg.encoder.cameras and (others := sorted(set(source.meta.camera_keys) - set(spec.cameras))):
        cameras = f" (all in colour; {', '.join(others)}: not of 3 channels, or depth, is left out)"
    tokens = f"{cfg.tokens.n_codes} codes per {cfg.tokens.per}" if cfg.tokens.n_codes else "none"
    tokens = f"those of {cfg.reuse_from}" if cfg.reuse_from else tokens
    return "\n".join([
        f"Source     {source.meta.repo_id} ({source.root}): {source.meta.total_frames} frames in "
        f"{source.meta.total_episodes} episodes, {source.meta.fps} fps",
        *_foreign_keys(source),
        f"Cameras    {', '.join(spec.cameras)}{cameras}",
        f"Encoder    {spec.family} {spec.model_id}, {spec.pooling}, {spec.height_px} x {spec.width_px} px, "
        f"{spec.n_frames} frame(s), {spec.dtype}, on {device}"
        + (f", every {spec.every} frames" if spec.every > 1 else ""),
        f"Latents    {spec.n_tokens} tokens x {spec.dim} per frame, float16"
        + (f", by PCA from {spec.raw_dims}" if spec.pca_dim else "")
        + (f", as {cfg.reuse_from}" if cfg.reuse_from else ""),
        f"Tokens     {tokens}",
        f"Output     {root}, at most {_mb(max(0, n_bytes))} more",
    ])  # fmt: skip


def _foreign_keys(source: SourceDataset) -> list[str]:
    """What to say of features that LeRobot's policies would not see under their names."""
    cameras = [key for key in source.meta.camera_keys if not key.startswith(f"{OBS_STR}.")]
    wanted = {key: f"{OBS_IMAGES}.{key}" for key in cameras} | {
        key: name
        for key, name in {"state": OBS_STATE, "actions": ACTION}.items()
        if key in source.meta.features and name not in source.meta.features
    }
    if not wanted:
        return []
    names = ", ".join(f"{key} -> {name}" for key, name in wanted.items())
    return [
        f"Keys       LeRobot's policies read no features of these names; rename them before training: {names}",
        "           (the companion goes on to fit: it is matched by content)",
    ]


def _mb(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:,.1f} MB"


def _companion_at(root: Path) -> Companion | None:
    """The companion that is to be replaced, if it can be read."""
    try:
        return open_companion(root=root) if (root / INFO_FILE).exists() else None
    except (UserError, OSError):
        return None


def _pca_of(root: Path, request: dict) -> LatentPCA | None:
    """The PCA of a companion that is written again for something else than its latents."""
    old = _companion_at(root)
    return old.pca if old is not None and old.info.request["latents"] == request["latents"] else None


def _keep_latents(source: SourceDataset, spec: EncoderSpec, staging: Staging, olds: list[Companion]) -> None:
    """Stage the latents of the episodes that an older companion holds already, by the same encoder."""
    missing = [e for e in range(source.meta.total_episodes) if not staging.has(e)]
    if not olds or not missing:
        return
    keys = episode_keys(source.meta, source.bounds, spec.cameras)
    n = 0
    for old in olds:
        held = [(key, e) for e, key in enumerate(old.info.episodes) if key and e not in old.info.excluded]
        known = {key: old.bounds[e] for key, e in held}
        for e in [e for e in missing if keys[e] in known and not staging.has(e)]:
            staging.write(e, np.array(old.table.latents[slice(*known[keys[e]], spec.every)]))
            n += 1
    print(
        f"Latents of {n} of {source.meta.total_episodes} episodes are taken from {', '.join(str(o.root) for o in olds)}"
    )


def _encode(
    cfg: PrecomputeConfig, source: SourceDataset, encoder: WorldEncoder, reused: Companion | None, staging: Staging,
    root: Path, request: dict, excluded: list[int], state: PartialState,
) -> None:  # fmt: skip
    """Encode all episodes that are not staged yet, then write the companion."""
    skips_bad = cfg.on_bad_episode == "skip"
    usable = np.setdiff1d(np.arange(source.meta.total_episodes), excluded)
    batch_size = cfg.batch_size
    if not batch_size:
        sizes = {camera: tuple(source.camera_shape(camera)[:2]) for camera in encoder.spec.cameras}
        batch_size = find_batch_size(encoder, sizes, int(encoder.spec.n_encoded(source.lengths.max())))
        if state.is_main_process:
            print(f"Batch size {batch_size}")
    lock = staging.begin(request["latents"], cfg.overwrite) if state.is_main_process else None
    try:
        if encoder.spec.pca_dim and encoder.pca is None:
            if state.is_main_process and not staging.pca_path.exists():
                pca = _pca_of(root, request)
                if pca is None:
                    pca = fit_pca(
                        source, encoder, usable, cfg.pca_n_frames, cfg.seed, batch_size, cfg.num_workers, skips_bad
                    )
                pca.save(staging.pca_path)
            wait_for_everyone(state)
            encoder.attach_pca(LatentPCA.load(staging.pca_path))
        wait_for_everyone(state)
        if state.is_main_process:
            olds = [old for old in (_companion_at(root), reused) if old and not old.spec.differences(encoder.spec)]
            _keep_latents(source, encoder.spec, staging, olds)
        wait_for_everyone(state)
        mine = usable[state.process_index :: state.num_processes].tolist()
        missing = [e for e in mine if not staging.has(e)]
        total, left = (int(encoder.spec.n_encoded(source.lengths[some]).sum()) for some in (mine, missing))
        of = f" (process 0 of {state.num_processes})" if state.num_processes > 1 else ""
        with Progress(f"Encoding{of}", total, "frames", total - left, state.is_main_process) as progress:
            stage_latents(source, encoder, staging, missing, batch_size, cfg.num_workers, progress.update, skips_bad)
        wait_for_everyone(state)
        if state.is_main_process:
            finish(source, encoder, reused and reused.codebook, staging, root, request, cfg.tokens, cfg.seed)
    finally:
        if lock is not None:
            lock.release()
