"""Any LeRobot policy with a world memory, by one declaration (docs/adding_a_policy.md).

    @world_variant(layer="model.action_head")
    class ACTWorldConfig(WorldVariantConfig, ACTConfig):
        "LeRobot's ACT, whose action head reads a world memory."

    from lerobot_policy_world_modality.policies.shared.world_variant import variant_member as __getattr__

declares the type `act_world`. LeRobot looks for `ACTWorldPolicy` and `make_act_world_pre_post_processors` in the module
of `ACTWorldConfig` (with `configuration_` replaced, where its name has that); they are made when it asks, so that
declaring a type imports no network.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from lerobot.configs import PreTrainedConfig, parser

from lerobot_policy_world_modality.policies.shared.kept_frames import keeping_frames
from lerobot_policy_world_modality.policies.shared.prophet_options import take_over_prophet
from lerobot_policy_world_modality.policies.shared.world_options import VLAWorldOptions
from world_modality_core.io.errors import ConfigError

# Fields of a policy's config that belong to a run or a machine, not to a checkpoint.
_OF_THE_RUN = {
    "input_features", "output_features", "device", "use_amp", "use_peft", "push_to_hub", "repo_id", "private", "tags",
    "license", "pretrained_path", "pretrained_revision", "compile_model", "compile_mode", "rtc_config",
}  # fmt: skip


@dataclass
class WorldVariantConfig(VLAWorldOptions):
    """Options that a policy's config gets beside its own; put it before that config."""

    # Checkpoint of the plain policy to start from (Hub id or folder). Every field of its config that you don't give
    # comes from it. Not needed again once the run has started.
    init_from: str | None = None
    # Hub revision of that checkpoint.
    init_revision: str | None = None
    # The checkpoint that this policy started from. Set in training.
    initialised_from: str | None = None

    # What `world_variant` was given, and the config of the plain policy.
    world_base: ClassVar[type[PreTrainedConfig]]
    world_layer: ClassVar[str] = ""
    world_extra: ClassVar[str] = ""
    world_wraps: ClassVar[tuple[str, ...]] = ()
    world_reads_task: ClassVar[bool] = False
    keeps_frames: ClassVar[bool] = True

    @property
    def reads_task(self) -> bool:
        return self.world_reads_task or self.world_reads_language

    def __post_init__(self) -> None:
        if self.init_from:
            self._take_over(self.init_from)
        take_over_prophet(self)
        try:
            super().__post_init__()
        except (TypeError, ValueError, NotImplementedError) as error:  # the parser would hide the first two's text
            raise ConfigError(str(error)) from error
        self.check_world()

    def _take_over(self, checkpoint: str) -> None:
        """Take every field of the plain policy's config that was not given from a checkpoint."""
        plain = PreTrainedConfig.get_choice_name(self.world_base)
        if parser.parse_arg("rename_map"):
            raise ConfigError(
                "rename_map has no effect with init_from: the policy keeps the dataset's camera names. Drop it; where "
                "an environment's names differ from the dataset's, give lerobot-eval a --rename_map"
            )
        try:
            base = PreTrainedConfig.from_pretrained(checkpoint, revision=self.init_revision)
        except Exception as error:
            raise ConfigError(
                f"init_from={checkpoint!r}: {error}. Give the Hub id or the folder of a checkpoint of type {plain!r}"
            ) from error
        if type(base) is not self.world_base:
            remedy = f"give a checkpoint of type {plain!r}"
            if isinstance(base, type(self)):
                remedy = "--policy.path goes on from it"
            raise ConfigError(f"init_from={checkpoint!r} is of type {base.type!r}, not {plain!r}; {remedy}")
        taken = {}
        for each in fields(self.world_base):
            if each.name not in _OF_THE_RUN | self._given and getattr(self, each.name) != getattr(base, each.name):
                taken[each.name] = getattr(base, each.name)
                setattr(self, each.name, taken[each.name])
        logging.info(f"init_from={checkpoint}: took over {taken or 'nothing that differs'}")


def world_variant(
    layer: str, extra: str = "", wraps: tuple[str, ...] = (), reads_task: bool = False
) -> Callable[[type], type]:
    """Declare a policy with a world memory: a decorator of its config, which registers the type `<plain type>_world`.

    Args:
        layer: Path, in the plain policy, of the layer before which its action states read the memory: called once per
            forward pass and denoising step with states (b, h, d), or (b, d, h) where it is a `Conv1d`.
        extra: LeRobot's extra that installs what the plain policy needs.
        wraps: Classes of the modules that sharded training may wrap, where the plain policy doesn't say so itself.
        reads_task: Whether the plain policy is told the task in words, so that every episode needs one.

    Raises:
        TypeError: if the config has no plain policy's behind `WorldVariantConfig`, or has one of its fields.
    """

    def declare(config_class: type) -> type:
        registered = {*PreTrainedConfig.get_known_choices().values()}
        base = next((each for each in config_class.__mro__[1:] if each in registered), None)
        if base is None:
            raise TypeError(f"{config_class.__name__}: expected bases WorldVariantConfig and a policy's config")
        if shared := {f.name for f in fields(WorldVariantConfig)} & (
            {f.name for f in fields(base)} - {f.name for f in fields(PreTrainedConfig)}
        ):
            raise TypeError(f"{base.__name__} has fields of a world's name: {', '.join(sorted(shared))}")
        config_class.world_base, config_class.world_layer = base, layer
        config_class.world_extra, config_class.world_wraps = extra, wraps
        config_class.world_reads_task = reads_task
        name = f"{PreTrainedConfig.get_choice_name(base)}_world"
        return PreTrainedConfig.register_subclass(name)(dataclass(config_class))

    return declare


def variant_member(name: str) -> Any:
    """What LeRobot looks for by name beside a declared config; a module's `__getattr__`.

    Raises:
        AttributeError: if no declared type has anything of that name.
    """
    for policy_type, config_class in PreTrainedConfig.get_known_choices().items():
        if not issubclass(config_class, WorldVariantConfig):
            continue
        if name == config_class.__name__.removesuffix("Config") + "Policy":
            return _policy_class(config_class)
        if name == f"make_{policy_type}_pre_post_processors":
            plain = PreTrainedConfig.get_choice_name(config_class.world_base)
            module = config_class.world_base.__module__.replace("configuration_", "processor_")
            return keeping_frames(getattr(importlib.import_module(module), f"make_{plain}_pre_post_processors"))
    raise AttributeError(f"no declared policy type has a {name!r}")


@functools.cache
def _policy_class(config_class: type[WorldVariantConfig]) -> type:
    from lerobot.policies import get_policy_class

    from lerobot_policy_world_modality.policies.shared.injected_policy import InjectedWorldPolicy

    plain = PreTrainedConfig.get_choice_name(config_class.world_base)
    attributes = {
        "__doc__": config_class.__doc__,
        "__module__": config_class.__module__,
        "config_class": config_class,
        "name": PreTrainedConfig.get_choice_name(config_class),
    }
    if config_class.world_wraps:
        # Accelerate asks for the first name (LeRobot 0.6.1), LeRobot for the second (0.6.2 and later).
        attributes["_no_split_modules"] = attributes["_fsdp_wrap_modules"] = list(config_class.world_wraps)
    name = config_class.__name__.removesuffix("Config") + "Policy"
    return type(name, (InjectedWorldPolicy, get_policy_class(plain)), attributes)
