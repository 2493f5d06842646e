"""The companion of a training run: opened, and held against the dataset and the policy's config."""

from __future__ import annotations

from dataclasses import replace

from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_policy_world_modality.policies.shared.training_data import check_training_data
from lerobot_policy_world_modality.policies.shared.world_options import WorldOptions
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.latents.companion import Companion, open_companion
from world_modality_core.latents.fingerprint import SourceFingerprint


def open_world(config: WorldOptions, dataset_meta: LeRobotDatasetMetadata | None) -> Companion | None:
    """Settle what of the world a policy's config leaves open, from the companion where a dataset is given.

    Args:
        config: The policy's config; its encoder and what else comes from the companion is filled in.
        dataset_meta: Metadata of the dataset that is trained on; None at evaluation.

    Returns:
        The companion; None at evaluation, and for a policy without a world.

    Raises:
        ConfigError: if the dataset can't be trained on.
        ValueError: if the companion doesn't fit, or nothing tells the shape of the latents.
    """
    if dataset_meta is not None:
        check_training_data(config, dataset_meta, config.reads_task)
        config.take_rate(float(dataset_meta.fps))
    if not config.has_world:
        return None
    if dataset_meta is not None:
        companion = open_training_companion(config, dataset_meta)
        config.encoder = policy_spec(config, companion)
        config.take_companion(companion)
        return companion
    if not config.encoder.is_resolved:
        raise ValueError(
            f"{config.type} without a checkpoint or a dataset does not know its world latents' shape; load it with "
            "--policy.path=CHECKPOINT, or train it with lerobot-train and --policy.companion.root=FOLDER"
        )
    return None


def check_encoder(chosen: EncoderSpec, companion: EncoderSpec) -> None:
    """Refuse a companion whose latents are not those that the policy's config asks for.

    Args:
        chosen: The policy's spec: of a checkpoint (resolved), or what the user typed (some fields).
        companion: The companion's.

    Raises:
        ValueError: naming the fields that differ.
    """
    if chosen.is_resolved:
        wrong = chosen.differences(companion)
    else:  # only what was typed counts
        typed = {line.split(":")[0] for line in chosen.differences(EncoderSpec())}
        wrong = [line for line in chosen.differences(companion) if line.split(":")[0] in typed]
    if wrong:
        raise ValueError(
            "policy.encoder is not the encoder of the companion dataset (policy != companion): "
            + "; ".join(wrong)
            + ". Precompute a companion with the policy's encoder, or leave policy.encoder empty to take the other's; "
            "cameras that --rename_map renames are renamed for the companion by --policy.companion.rename_map"
        )


def open_training_companion(config: WorldOptions, dataset_meta: LeRobotDatasetMetadata) -> Companion:
    """Open the companion of a training run and hold it against dataset and config.

    Args:
        config: The policy's config.
        dataset_meta: Metadata of the dataset that is trained on.

    Returns:
        The companion.

    Raises:
        ValueError: if no companion is named, it is of another dataset or of another encoder, or its episodes are too
            short for the future that is asked for.
    """
    named = config.companion
    if not named.repo_id and not named.root:
        raise ValueError(
            f"{config.type} needs the world latents of {dataset_meta.repo_id!r}. Make them with "
            f"`wm-precompute --dataset.repo_id={dataset_meta.repo_id} ...`, then name the companion with "
            "--policy.companion.root=FOLDER or --policy.companion.repo_id=ID"
        )
    companion = open_companion(repo_id=named.repo_id, root=named.root, revision=named.revision)
    companion.check_source(dataset_meta)
    # Cameras that were renamed in the dataset since.
    renamed = companion.source.renamed(companion.spec.cameras, SourceFingerprint.of(dataset_meta))
    named.rename_map = renamed | named.rename_map
    if config.encoder.is_set:
        check_encoder(config.encoder, policy_spec(config, companion))
    if config.needs_tokens and companion.codebook is None:
        raise ValueError(
            f"{config.type} needs world tokens, but companion {companion.root} has none; write them with "
            "`wm-precompute ... --tokens.n_codes=1024`"
        )
    strides = {"history_stride": config.history_stride} if config.n_history > 1 else {}
    if config.needs_future or config.needs_tokens:
        strides["future_stride"] = config.future_stride
    if config.n_past:
        strides["memory.past.stride"] = config.memory.past.stride
    companion.spec.check_strides(strides)
    longest = int((companion.table.bounds[:, 1] - companion.table.bounds[:, 0]).max())
    if config.n_future_steps * config.future_stride >= longest:
        raise ValueError(
            f"n_future_steps={config.n_future_steps} with future_stride={config.future_stride} looks "
            f"{config.n_future_steps * config.future_stride} frames ahead, but the longest episode of companion "
            f"{companion.root} has {longest}; lower one of them"
        )
    return companion


def policy_spec(config: WorldOptions, companion: Companion) -> EncoderSpec:
    """The companion's encoder spec, with its cameras named as the policy names them (`companion.rename_map`).

    Raises:
        ValueError: if the map renames a camera that the companion doesn't have.
    """
    names, spec = config.companion.rename_map, companion.spec
    unknown = sorted(set(names) - set(spec.cameras))
    if unknown:
        raise ValueError(
            f"companion.rename_map renames {unknown}, but companion {companion.root} has the cameras {spec.cameras}"
        )
    return replace(spec, cameras=[names.get(camera, camera) for camera in spec.cameras])
