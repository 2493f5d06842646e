"""The folder of a trained Prophet: what wm-prophet writes and what policies start from.

    config.json          windows, Prophet's options, encoder spec, language, and how it was trained
    model.safetensors    prophet.*  the network;  space.*  the latents' standardisation and PCA;
                         state.mean, state.std  of the robot's state, if the Prophet reads it
    curve.jsonl          loss and skill over training
    state/               for going on with a run that was cut off

A checkpoint of a policy that has a Prophet can be read in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from world_modality_core.configs import LanguageConfig, ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.io.files import as_dataclass, inside, read_json, read_tensors, reading

FORMAT_VERSION = 1
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CURVE_FILE = "curve.jsonl"
# LeRobot's standardisation divides by std + this.
_LEROBOT_EPS = 1e-8


@dataclass
class ProphetWeights:
    """What a policy copies.

    Attributes:
        prophet: State dict of the `Prophet`.
        mean: (p, d) mean of the latents' entries.
        std: (p, d) what they are divided by.
        state_shift: (s,) subtracted from the robot's state before the Prophet reads it; None if it doesn't.
        state_scale: (s,) what the state is divided by after that.
    """

    prophet: dict[str, Tensor]
    mean: Tensor
    std: Tensor
    state_shift: Tensor | None = None
    state_scale: Tensor | None = None


@dataclass
class ProphetCheckpoint:
    """A Prophet on disk, its weights not read yet.

    Attributes:
        folder: Where it is.
        n_obs_steps: History frames, t.
        history_stride: Frames between two of them.
        n_future_steps: Future frames, k.
        future_stride: Frames between two of them.
        prophet: Its options, `d_model` set.
        encoder: The resolved spec of its latents.
        language: The sentence encoder, if `prophet.use_language`.
        is_of_policy: Whether the folder is a policy's checkpoint.
    """

    folder: Path
    n_obs_steps: int
    history_stride: int
    n_future_steps: int
    future_stride: int
    prophet: ProphetConfig
    encoder: EncoderSpec
    language: LanguageConfig
    is_of_policy: bool

    @classmethod
    def read(cls, folder: str | Path, field: str) -> ProphetCheckpoint:
        """Read the config of a checkpoint.

        Args:
            folder: What wm-prophet wrote, or a policy's checkpoint (`.../pretrained_model`).
            field: The option that named the folder, for messages.

        Raises:
            ConfigError: if there is no Prophet in the folder.
        """
        folder = Path(folder)
        try:
            config = read_json(folder / CONFIG_FILE, dict)
        except (OSError, DamagedFileError) as error:
            raise ConfigError(
                f"{field}={str(folder)!r}: no Prophet can be read there ({error}); give the output_dir of wm-prophet, "
                "or a policy's folder `checkpoints/last/pretrained_model`"
            ) from error
        if not isinstance(config.get("prophet"), dict) or not (folder / WEIGHTS_FILE).is_file():
            raise ConfigError(
                f"{field}={str(folder)!r} is of type {config.get('type')!r} and has no Prophet with weights; give the "
                "output_dir of wm-prophet (trained at least up to its first save), or the checkpoint of a world_F, "
                "smolvla_world or qwen_world_fplus"
            )
        if config.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
            raise ConfigError(
                f"{field}={str(folder)!r}: format_version {config['format_version']}, expected {FORMAT_VERSION}; train "
                "it again, or use the release of this package that wrote it"
            )
        path = folder / CONFIG_FILE
        config["n_obs_steps"] = config.get("n_history_steps", config.get("n_obs_steps"))
        names = ("n_obs_steps", "history_stride", "n_future_steps", "future_stride")
        for name in names:
            if type(config.get(name)) is not int or config[name] < 1:
                raise ConfigError(f"{field}: {path} says {name}={config.get(name)!r:.60}; expected a number from 1 up")
        return cls(
            folder,
            **{name: config[name] for name in names},
            prophet=_known(ProphetConfig, config["prophet"], path),
            encoder=_known(EncoderSpec, config.get("encoder"), path),
            language=_known(LanguageConfig, config.get("language"), path),
            is_of_policy=config.get("type") != "prophet",
        )

    def weights(self) -> ProphetWeights:
        """Read the weights.

        Raises:
            ConfigError: if the checkpoint doesn't tell how the Prophet's states are normalised.
            DamagedFileError: if a file is damaged.
        """
        tensors = read_tensors(self.folder / WEIGHTS_FILE)
        root = "" if any(name.startswith("prophet.") for name in tensors) else "world."
        prophet = {
            name.removeprefix(f"{root}prophet."): value
            for name, value in tensors.items()
            if name.startswith(f"{root}prophet.")
        }
        if not prophet:
            raise ConfigError(f"{self.folder / WEIGHTS_FILE} holds no Prophet (an adapter alone can't be read)")
        needed = [f"{root}space.mean", f"{root}space.std"]
        if self.prophet.use_state and not self.is_of_policy:
            needed += ["state.mean", "state.std"]
        if missing := [name for name in needed if name not in tensors]:
            raise DamagedFileError(f"{self.folder / WEIGHTS_FILE} has no {missing[0]}; take a copy that is whole")
        weights = ProphetWeights(prophet, tensors[f"{root}space.mean"], tensors[f"{root}space.std"])
        if self.prophet.use_state and self.is_of_policy:
            weights.state_shift, weights.state_scale = self._state_of_processor()
        elif self.prophet.use_state:
            weights.state_shift, weights.state_scale = tensors["state.mean"], tensors["state.std"]
        return weights

    def _state_of_processor(self) -> tuple[Tensor, Tensor]:
        """Shift and scale of the states in a policy's preprocessor."""
        file = self.folder / "policy_preprocessor.json"
        with reading(file, "a processor of LeRobot", "take a copy that is whole"):
            steps = read_json(file, dict)["steps"] if file.is_file() else []
            normalizers = [
                (
                    inside(self.folder, step["state_file"], f"{file}: state_file"),
                    step["config"]["norm_map"].get("STATE"),
                )
                for step in steps
                if step.get("registry_name") == "normalizer_processor" and "state_file" in step
            ]
        for state_file, mode in normalizers:
            if not state_file.is_file():
                raise DamagedFileError(f"{file} names {state_file.name[:100]!r}, which is not there")
            stats = read_tensors(state_file)
            if mode == "MEAN_STD" and {f"{OBS_STATE}.mean", f"{OBS_STATE}.std"} <= set(stats):
                return stats[f"{OBS_STATE}.mean"], stats[f"{OBS_STATE}.std"] + _LEROBOT_EPS
        raise ConfigError(
            f"{file} doesn't tell mean and std of {OBS_STATE}, which this Prophet reads; give the folder of wm-prophet"
        )


def lerobot_state_scale(stats: dict[str, dict[str, Tensor]]) -> tuple[Tensor, Tensor]:
    """(s,) shift and (s,) scale by which LeRobot's processors normalise the states of a dataset (MEAN_STD)."""
    state = {name: torch.as_tensor(stats[OBS_STATE][name]).float() for name in ("mean", "std")}
    return state["mean"], state["std"] + _LEROBOT_EPS


def _known(cls, values: object, path: Path):
    """A config from a JSON object, without what a newer release may have added."""
    names = {each.name for each in fields(cls)}
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name in names}
    return as_dataclass(cls, values, path)
