"""What a policy's checkpoint is on the Hub: its own card, and nothing of the disk that it was trained on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import draccus
from huggingface_hub import ModelCard
from lerobot.configs import PreTrainedConfig
from lerobot.configs.train import TrainPipelineConfig

from lerobot_policy_world_modality.compatibility import write_card_by
from lerobot_policy_world_modality.hub.model_card import CardFacts, companion_at_hand, gate_values, policy_card
from lerobot_policy_world_modality.policies.shared.world_options import WorldOptions
from world_modality_core.io.hub_transfer import HUB_PREFIX, hub_errors
from world_modality_core.studies.evidence.checkpoint import label_of

if TYPE_CHECKING:
    from lerobot.datasets import LeRobotDatasetMetadata
    from torch import Tensor

    from world_modality_core.latents.companion import Companion

# Fields that name a folder or file of the run: nobody else has it, and what is on the Hub goes by its repo_id.
_OF_THE_DISK = ("root", "metrics_file", "jsonl", "pretrained_path", "output_dir", "checkpoint_path", "resume")
# Fields that keep saying what a run started from.
_STARTS = ("initialised_from", "trunk_initialised_from")
# Fields that name weights that loading needs.
_WEIGHTS = ("model_id", "vlm_backbone", "vlm_model_name", "tokenizer_name", "base_model_name_or_path")


def local_paths(node: Any) -> Iterator[tuple[Any, str, str]]:
    """(owner, field, value) of every field of a config, or of its JSON, that holds the name of a folder or file here.

    Args:
        node: A config dataclass, or the dictionary of one.
    """
    fields = node if isinstance(node, dict) else vars(node) if is_dataclass(node) else {}
    for name, value in list(fields.items()):
        if isinstance(value, str | Path):
            known = name in _OF_THE_DISK + _STARTS + _WEIGHTS
            # A dataset's or companion's root is of the disk, be it there or not.
            if known and (name == "root" or _is_local(str(value))):
                yield node, name, str(value)
        else:
            yield from local_paths(value)


def _is_local(value: str) -> bool:
    return bool(value) and not value.startswith(HUB_PREFIX) and (Path(value).is_absolute() or Path(value).exists())


def needed_weights(*nodes: Any) -> list[str]:
    """Weights that configs name and that lie on this disk only, as "field=value"."""
    return [f"{name}={value}" for node in nodes for _, name, value in local_paths(node) if name in _WEIGHTS]


def forget_disk(node: Any) -> list[tuple[Any, str, Any]]:
    """Take the names of folders and files here out of a config, or of its JSON.

    Weights that loading needs stay: without their name the checkpoint would be no more loadable, and say less.

    Returns:
        (owner, field, value before) of what was changed.
    """
    changed = []
    for owner, name, value in local_paths(node):
        if name in _WEIGHTS:
            continue
        changed.append((owner, name, owner[name] if isinstance(owner, dict) else getattr(owner, name)))
        _set(owner, name, label_of(value) if name in _STARTS else None)
    return changed


def _set(owner: Any, name: str, value: Any) -> None:
    if isinstance(owner, dict):
        owner[name] = value
    else:
        setattr(owner, name, value)


@contextmanager
def without_disk(*configs: Any) -> Iterator[None]:
    """Configs as they are uploaded, for as long as that takes."""
    changed = [change for config in configs for change in forget_disk(config)]
    try:
        yield
    finally:
        for owner, name, value in reversed(changed):
            _set(owner, name, value)


class OnHub:
    """A mixin for a LeRobot policy: `push_to_hub` with the card of `model_card`, and without paths of this disk."""

    config: PreTrainedConfig

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str | None:
        """Upload weights and config: the first of what LeRobot's trainer uploads from 0.6.2 on.

        Raises:
            HubError: naming the remedy.
        """
        # `trained_card` is asked for next, and sees the config alone.
        gates, needs = gate_values(self.state_dict()), needed_weights(self.config)
        self.config.__dict__["_card_facts"] = CardFacts(repo_id, gates, companion=self._companion(), needs=needs)
        with without_disk(self.config), hub_errors(repo_id, uploads=True, again="upload the checkpoint with wm-push"):
            return super().push_to_hub(repo_id, **kwargs)

    def _companion(self) -> Companion | None:
        return getattr(getattr(self, "latent_reader", None), "companion", None) or companion_at_hand(self.config)

    def push_model_to_hub(
        self,
        cfg: TrainPipelineConfig,
        peft_model: Any = None,
        state_dict: dict[str, Tensor] | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
    ) -> None:
        """Upload weights, configs and card; 0.6.1's trainer calls this at its end, later ones for EMA weights.

        Raises:
            HubError: naming the remedy. The checkpoint is on the disk: `wm-push` uploads it later.
        """
        base = getattr(peft_model, "peft_config", None) and peft_model.active_peft_config.base_model_name_or_path
        # A sharded policy's own tensors can't be read by one process: the gathered ones are given.
        gates = gate_values(self.state_dict() if state_dict is None else state_dict)
        adapter = {"base_model_name_or_path": base} if base else {}
        self.config.__dict__["_card_facts"] = CardFacts(
            self.config.repo_id, gates, companion=self._companion(), adapter_of=base,
            needs=needed_weights(self.config, adapter),
        )  # fmt: skip
        again = f"upload the checkpoint, which is in {cfg.output_dir}/checkpoints/last/pretrained_model, with wm-push"
        with without_disk(self.config, cfg), hub_errors(self.config.repo_id, uploads=True, again=again):
            super().push_model_to_hub(cfg, peft_model, state_dict, dataset_meta)

    def generate_model_card(
        self,
        dataset_repo_id: str,
        model_type: str,
        license: str | None,
        tags: list[str] | None,
        cfg: TrainPipelineConfig | None = None,
        dataset_meta: LeRobotDatasetMetadata | None = None,
    ) -> ModelCard:
        """The card; see LeRobot's `PreTrainedPolicy.generate_model_card`."""
        facts = self.config.__dict__.get("_card_facts") or CardFacts(
            self.config.repo_id or model_type, gate_values(self.state_dict()), needs=needed_weights(self.config)
        )
        facts.license, facts.tags = license, list(tags or [])
        facts.train = {"dataset": {"repo_id": dataset_repo_id}} if cfg is None else draccus.encode(cfg)
        return ModelCard(policy_card(self.config, facts))


def trained_card(config: PreTrainedConfig, train: TrainPipelineConfig | None) -> ModelCard:
    """The card that the end of a training uploads. The training config is uploaded next: it forgets this disk too."""
    facts = config.__dict__.get("_card_facts")
    if facts is None:  # an adapter: LeRobot uploads it without a method of the policy
        base = str(config.pretrained_path) if train is not None and train.peft is not None else None
        needs = needed_weights(config, {"base_model_name_or_path": base} if base else {})
        facts = CardFacts(config.repo_id or config.type, adapter_of=base, needs=needs)
    facts.license, facts.tags = config.license, list(config.tags or [])
    if train is not None:
        forget_disk(train)
        facts.train = draccus.encode(train)
    return ModelCard(policy_card(config, facts))


write_card_by(lambda config: isinstance(config, WorldOptions), trained_card)
