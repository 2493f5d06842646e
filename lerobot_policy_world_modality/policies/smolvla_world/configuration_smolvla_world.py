"""Configuration of smolvla_world: LeRobot's SmolVLA, and a world memory that its action path reads."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, fields

from lerobot.configs import PreTrainedConfig, parser
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_policy_world_modality.policies.shared.prophet_options import take_over_prophet
from lerobot_policy_world_modality.policies.shared.world_options import VLAWorldOptions
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import as_folder

# Fields of SmolVLA's config that belong to a run or a machine, not to a checkpoint.
_OF_THE_RUN = {
    "input_features", "output_features", "device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags",
    "license", "pretrained_path", "pretrained_revision", "compile_model", "compile_mode", "rtc_config",
}  # fmt: skip


@dataclass
class FusionConfig:
    """Where the action path reads the memory. Any combination; none at all is the baseline E0."""

    # F1: at the expert's output states, before `action_out_proj`.
    f1: bool = True
    # F2: at the expert's input embeddings.
    f2: bool = False
    # F3a: memory tokens in the prefix. Runs the language model and the expert a second time.
    f3a: bool = False
    # F3b: the prefix (images, prompt, state) cross-attends to the memory.
    f3b: bool = False

    @property
    def names(self) -> list[str]:
        """The fusions that are on."""
        return [f.name for f in fields(self) if getattr(self, f.name)]


@PreTrainedConfig.register_subclass("smolvla_world")
@dataclass
class SmolVLAWorldConfig(VLAWorldOptions, SmolVLAConfig):
    """SmolVLA's config, and the world memory's."""

    # SmolVLA checkpoint to start from (Hub id or folder). Every field of SmolVLA's config that you don't give comes
    # from it. Not needed again once the run has started.
    init_from: str | None = None
    # Hub revision of that checkpoint.
    init_revision: str | None = None
    # The checkpoint that this policy started from. Set in training.
    initialised_from: str | None = None
    # Where the memory is read.
    fusion: FusionConfig = field(default_factory=FusionConfig)

    def __post_init__(self) -> None:
        if self.init_from:
            self._take_over(self.init_from)
        take_over_prophet(self)
        self.vlm_model_name = as_folder(self.vlm_model_name)
        try:
            super().__post_init__()
        except (TypeError, ValueError, NotImplementedError) as error:  # the parser would hide the first two's text
            raise ConfigError(str(error)) from error
        self.check_world()

    def _take_over(self, checkpoint: str) -> None:
        """Take every field of SmolVLA's config that was not given from a checkpoint."""
        if parser.parse_arg("rename_map"):
            raise ConfigError(
                "rename_map has no effect with init_from: the policy keeps the dataset's camera names. Drop it; where "
                "an environment's names differ from the dataset's, give lerobot-eval a --rename_map"
            )
        try:
            base = PreTrainedConfig.from_pretrained(checkpoint, revision=self.init_revision)
        except Exception as error:
            raise ConfigError(
                f"init_from={checkpoint!r}: {error}. Give the Hub id or the folder of a SmolVLA checkpoint, for "
                "instance lerobot/smolvla_base"
            ) from error
        if type(base) is not SmolVLAConfig:
            remedy = "--policy.path goes on from it" if isinstance(base, type(self)) else "give a SmolVLA checkpoint"
            raise ConfigError(f"init_from={checkpoint!r} is of type {base.type!r}, not 'smolvla'; {remedy}")
        taken = {}
        for each in fields(SmolVLAConfig):
            if each.name not in _OF_THE_RUN | self._given and getattr(self, each.name) != getattr(base, each.name):
                taken[each.name] = getattr(base, each.name)
                setattr(self, each.name, taken[each.name])
        logging.info(f"init_from={checkpoint}: took over {taken or 'nothing that differs'}")

    @property
    def reads_memory(self) -> bool:
        return bool(self.fusion.names)
