"""What the files of a checkpoint may name: nothing that comes with a file runs.

LeRobot builds a checkpoint's processors from JSON, and imports whatever class a step of theirs names. Commands that
open a checkpoint get its folder from `open_checkpoint`, which reads those files first, as data.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from contextlib import suppress
from glob import escape
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig, parser
from lerobot.processor import ProcessorStep, ProcessorStepRegistry
from lerobot.utils.constants import POLICY_POSTPROCESSOR_DEFAULT_NAME, POLICY_PREPROCESSOR_DEFAULT_NAME

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import check_own, inside, read_json
from world_modality_core.io.hub_transfer import own_files
from world_modality_core.studies.evidence.checkpoint import checkpoint_folder

ADAPTER_CONFIG = "adapter_config.json"
PROCESSOR_FILES = (f"{POLICY_PREPROCESSOR_DEFAULT_NAME}.json", f"{POLICY_POSTPROCESSOR_DEFAULT_NAME}.json")

# How the names of LeRobot's plugins begin; LeRobot imports the package of that name (`register_third_party_plugins`).
_PLUGINS = (
    "lerobot_robot_", "lerobot_camera_", "lerobot_teleoperator_", "lerobot_policy_", "lerobot_env_",
)  # fmt: skip

# Of LeRobot: what loads models with `trust_remote_code=True`, from wherever a checkpoint says.
RUNS_REMOTE_CODE = (
    "lerobot.policies.gaussian_actor.",
    "lerobot.policies.groot.",
    "lerobot.policies.pi0_fast.",
    "lerobot.policies.wall_x.",
    "lerobot.processor.hil_processor.RewardClassifierProcessorStep",
    "lerobot.processor.tokenizer_processor.ActionTokenizerProcessorStep",
    "lerobot.rewards.",
)


def is_typed(option: str) -> bool:
    """Whether this process's command line switches an option on. What a file says does not count.

    Args:
        option: Its name without dashes, for instance "policy.trust_remote_code".
    """
    return (parser.parse_arg(option) or "").lower() == "true"


def open_checkpoint(name: str | Path, revision: str | None = None) -> Path:
    """Find a checkpoint, local or on the Hub, and check what its files name before anything is built from them.

    Args:
        name: Folder or Hub id.
        revision: Hub revision.

    Returns:
        Its folder. Build from there: what the Hub has may be something else a moment later.

    Raises:
        ConfigError: if there is none, or it names code that isn't installed or files of other folders.
    """
    folder = checkpoint_folder(name, revision)
    check_checkpoint(folder)
    return folder


def checkpoint_files(folder: Path) -> list[str]:
    """Names of the files that a checkpoint is made of.

    Raises:
        HubError: if one is a link.
    """
    names = {"config.json", "train_config.json", "model.safetensors", ADAPTER_CONFIG, "adapter_model.safetensors"}
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            names |= {step["state_file"] for step in read_json(folder / name)["steps"] if "state_file" in step}
    return own_files(folder, [*PROCESSOR_FILES, *map(escape, names)])


def check_checkpoint(folder: Path) -> None:
    """Refuse a checkpoint whose files name code that isn't installed, or files of other folders.

    Raises:
        ConfigError: naming the file and what it names.
    """
    config = read_json(folder / "config.json", dict)
    known = PreTrainedConfig.get_known_choices()
    config_class = known.get(config["type"]) if isinstance(config.get("type"), str) else None
    if config_class is not None:  # else LeRobot says which types there are
        _refuse_remote_code(config_class, f"{folder / 'config.json'}: type {config['type']!r}")
    if (folder / ADAPTER_CONFIG).is_file():
        _check_adapter(folder)
    for name in PROCESSOR_FILES:
        if (folder / name).is_file():
            _check_processor(folder / name, config_class)


def _check_adapter(folder: Path) -> None:
    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(f"{folder} has an adapter without adapter_model.safetensors; weights in pickles are not read")
    if read_json(folder / ADAPTER_CONFIG, dict).get("megatron_config"):  # PEFT imports `megatron_core`
        raise ConfigError(f"{folder / ADAPTER_CONFIG}: megatron_config names a module to import; take it out")


def _check_processor(file: Path, config_class: type | None) -> None:
    steps = read_json(file, dict).get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise ConfigError(f"{file} is no processor of LeRobot: it has no list of steps; take a copy that is whole")
    for i, step in enumerate(steps):
        where = f"{file}, step {i}"
        named = step.get("registry_name", step.get("class"))
        cls = _registered(named, config_class) if "registry_name" in step else _installed(named)
        if cls is None:
            raise ConfigError(
                f"{where} names {named!r:.200}, which is no processor step of LeRobot or of an installed plugin: "
                "nothing that a file names is imported. Install the plugin that has it, or don't use this checkpoint"
            )
        _refuse_remote_code(cls, f"{where}: {named}")
        if "state_file" in step:
            state = inside(file.parent, step["state_file"], f"{where}: state_file")
            if state.suffix != ".safetensors":
                raise ConfigError(f"{where}: state_file={step['state_file']!r:.200} is no file of safetensors")
            check_own(state, file.parent)


def _registered(name: Any, config_class: type | None) -> type | None:
    """The step of a registered name; a policy type's own are registered where LeRobot looks for its processors."""
    for each in (config_class, getattr(config_class, "world_base", None)):  # a variant's are those of its plain policy
        if name not in ProcessorStepRegistry.list() and each is not None:
            with suppress(ImportError):
                importlib.import_module(each.__module__.replace("configuration_", "processor_"))
    return ProcessorStepRegistry.get(name) if name in ProcessorStepRegistry.list() else None


def _installed(name: Any) -> type | None:
    """The step of a dotted name, if it is LeRobot's or a plugin's; nothing else is imported."""
    if not isinstance(name, str):
        return None
    plugins = {distribution.metadata["Name"] or "" for distribution in importlib.metadata.distributions()}
    packages = {"lerobot", *(plugin for plugin in plugins if plugin.startswith(_PLUGINS))}
    module, _, attribute = name.rpartition(".")
    if module.partition(".")[0] not in packages:
        return None
    try:
        cls = getattr(importlib.import_module(module), attribute, None)
    except ImportError:
        return None
    return cls if isinstance(cls, type) and issubclass(cls, ProcessorStep) else None


def _refuse_remote_code(cls: type, what: str) -> None:
    if f"{cls.__module__}.{cls.__qualname__}".startswith(RUNS_REMOTE_CODE) and not is_typed("trust_remote_code"):
        raise ConfigError(
            f"{what} runs code of the repositories that the checkpoint names; if you trust them, wm-eval takes it with "
            "--trust_remote_code"
        )
