"""Which episodes a checkpoint never saw, as far as what lies beside its weights can tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from lerobot.configs.train import TrainPipelineConfig
from lerobot.datasets.factory import make_train_eval_datasets

from lerobot_policy_world_modality.compatibility import excluded_episodes
from lerobot_policy_world_modality.hub.trusted_files import open_checkpoint
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import checked, read_json
from world_modality_core.latents.companion import default_root
from world_modality_core.latents.fingerprint import SourceFingerprint
from world_modality_core.precompute.precompute_options import SourceConfig
from world_modality_core.studies.evidence.checkpoint import TRAIN_CONFIG, checkpoint_hash, training_seed


class _TrainedOn(TypedDict):
    """What is taken for granted of a checkpoint's `train_config.json`."""

    repo_id: str
    root: str | None
    revision: str | None


@dataclass
class Checkpoint:
    """A checkpoint's folder and what it says about its training.

    Attributes:
        name: As it was typed.
        folder: Where it lies.
        sha256: Hash of its weights and its config.
        trained_on: The training dataset's repo_id and root; None if it has no `train_config.json`.
        train_seed: Seed of the training run, if known.
    """

    name: str
    folder: Path
    sha256: str
    trained_on: SourceConfig | None
    train_seed: int | None

    @classmethod
    def open(cls, name: str, revision: str | None = None) -> Checkpoint:
        """Find a checkpoint, local or on the Hub.

        Raises:
            ConfigError: if it has no weights, or its files name code or other folders.
        """
        folder, trained_on = open_checkpoint(name, revision), None
        if (folder / TRAIN_CONFIG).exists():
            path = folder / TRAIN_CONFIG
            dataset = checked(_TrainedOn, read_json(path, dict).get("dataset"), path)
            trained_on = SourceConfig(dataset["repo_id"], dataset["root"], dataset["revision"])
        return cls(name, folder, checkpoint_hash(folder), trained_on, training_seed(folder))

    def training_episodes(self, dataset: SourceConfig, n_episodes: int) -> tuple[set[int] | None, str]:
        """Which episodes of a dataset the checkpoint was trained on, and how that is known.

        Returns:
            The episodes, None if that is unknown; and a sentence.
        """
        if self.trained_on is None:
            return None, f"the checkpoint has no {TRAIN_CONFIG}, so the episodes that it was trained on are unknown"
        given, trained = _original(dataset), _original(self.trained_on)
        if dataset.repo_id != self.trained_on.repo_id and given != trained:
            if not _is_local(self.trained_on):
                return None, (
                    f"{dataset.repo_id!r} is not the dataset that the checkpoint was trained on "
                    f"({self.trained_on.repo_id!r}), which isn't here to tell whether the two are copies of another"
                )
            return set(), f"{dataset.repo_id!r} is not what the checkpoint was trained on ({self.trained_on.repo_id!r})"
        config = TrainPipelineConfig.from_pretrained(self.folder)
        named, eval_split = config.dataset.episodes, config.dataset.eval_split
        how = f"dataset.episodes={'all' if named is None else f'{len(named)} of them'}, dataset.eval_split={eval_split}"
        if excluded := excluded_episodes(config.dataset):
            how += f", dataset.exclude_episodes={excluded}"
        trained = set(range(n_episodes) if named is None else named).difference(excluded)
        if eval_split > 0:
            config.dataset.repo_id, config.dataset.root = dataset.repo_id, dataset.root
            config.dataset.revision, config.dataset.streaming = dataset.revision, False
            trained = make_train_eval_datasets(config)[0].episodes
        return {int(episode) for episode in trained}, f"its {TRAIN_CONFIG}: {how}"


def _root(dataset: SourceConfig) -> Path:
    return Path(dataset.root) if dataset.root else default_root(dataset.repo_id)


def _is_local(dataset: SourceConfig) -> bool:
    return (_root(dataset) / "meta/info.json").exists()


def _original(dataset: SourceConfig) -> str:
    """The dataset that this one is, or is marked as a copy of."""
    mark = SourceFingerprint.read(_root(dataset))
    return dataset.repo_id if mark is None else mark.repo_id


def choose_episodes(
    checkpoint: Checkpoint, dataset: SourceConfig, n_episodes: int, wanted: Sequence[int] | None, allow_training: bool
) -> tuple[list[int], str]:
    """The episodes to test on: those asked for, else all that training didn't see.

    Args:
        checkpoint: The checkpoint.
        dataset: Where the episodes are.
        n_episodes: How many the dataset has.
        wanted: Episodes that the user named.
        allow_training: Take episodes that training saw, too.

    Returns:
        The episodes, ascending, and a sentence that says what they are to the checkpoint.

    Raises:
        ConfigError: if there is none, or one was trained on.
    """
    unknown = sorted(set(wanted or []) - set(range(n_episodes)))
    if unknown:
        raise ConfigError(f"episodes={unknown}: {dataset.repo_id!r} has the episodes 0 to {n_episodes - 1}")
    trained, how = checkpoint.training_episodes(dataset, n_episodes)
    remedy = (
        "; hold some back in training (--dataset.eval_split or --dataset.episodes), name others with --episodes, or "
        "give --allow_training_episodes to test on them nevertheless"
    )
    if trained is None:
        if wanted is None and not allow_training:
            raise ConfigError(how + "; name --episodes that it wasn't, or give --allow_training_episodes")
        episodes = list(range(n_episodes)) if wanted is None else sorted(set(wanted))
        return episodes, f"it is not known whether training saw them: {how}"
    candidates = set(range(n_episodes)) if wanted is None else set(wanted)
    seen = sorted(candidates & trained)
    if not allow_training:
        if wanted is not None and seen:
            raise ConfigError(f"episodes={seen} were trained on ({how}){remedy}")
        candidates -= trained
        if not candidates:
            raise ConfigError(f"all {n_episodes} episodes of {dataset.repo_id!r} were trained on ({how}){remedy}")
        return sorted(candidates), f"training saw none of them ({how})"
    return sorted(candidates), f"training saw {len(seen)} of them ({how})"
