"""Loading a frozen transformer from the Hub or a local folder, and reading its layers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor, nn

from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.first_look import check_weights


def load_pretrained(spec: EncoderSpec, model_types: dict[str, str], **overrides) -> tuple[nn.Module, str | None]:
    """Load a transformers model, from safetensors only and without running any code of the model's repository.

    Args:
        spec: Names model_id and revision.
        model_types: The transformers class that reads each accepted `model_type` of a config.
        overrides: Config fields to replace.

    Returns:
        The model, float32, on the CPU, and its revision: the commit of a Hub model, the hash of the weight files of a
        local folder.

    Raises:
        ConfigError: if the model is of another type, a local folder's weights are not those of spec.revision, or the
            model is not at hand; the message says how to get it.
    """
    import transformers

    folder = Path(spec.model_id)
    check_weights("encoder.model_id", spec.model_id, spec.revision)
    revision = _folder_revision(folder) if folder.is_dir() else None
    if revision is not None and spec.revision not in (None, revision):
        raise ConfigError(
            f"encoder.revision={spec.revision!r}: the weights in encoder.model_id={spec.model_id!r} hash to "
            f"{revision!r}; they were changed, or are another model's"
        )
    hub = {} if revision else {"revision": spec.revision}
    with _explained(spec):
        config = transformers.AutoConfig.from_pretrained(spec.model_id, trust_remote_code=False, **hub)
    if config.model_type not in model_types:
        raise ConfigError(
            f"encoder.model_id={spec.model_id!r} is a {config.model_type!r} model; family {spec.family!r} reads "
            f"{sorted(model_types)}"
        )
    for name, value in overrides.items():
        setattr(config, name, value)
    model_class = getattr(transformers, model_types[config.model_type])
    with _explained(spec):
        model = model_class.from_pretrained(
            spec.model_id, config=config, trust_remote_code=False, use_safetensors=True, dtype="float32", **hub
        )
    return model, revision or getattr(config, "_commit_hash", None)


def image_statistics(
    spec: EncoderSpec, revision: str | None, fallback: tuple[tuple[float, ...], tuple[float, ...]]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Read image_mean and image_std from the model's preprocessor config; `fallback` where the model has none."""
    from transformers.utils import cached_file

    hub = {} if Path(spec.model_id).is_dir() else {"revision": revision or spec.revision}
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        with _explained(spec):
            path = cached_file(spec.model_id, name, _raise_exceptions_for_missing_entries=False, **hub)
        if path is not None:
            config = json.loads(Path(path).read_text())
            if "image_mean" in config and "image_std" in config:
                return tuple(config["image_mean"]), tuple(config["image_std"])
    return fallback


@contextmanager
def captured(modules: dict[int, nn.Module]) -> Iterator[dict[int, Tensor]]:
    """Record what some modules return during a forward pass, without keeping every hidden state as
    `output_hidden_states` would.

    Args:
        modules: The modules to listen to, by any key.

    Yields:
        A dict that the forward pass fills with each module's (first) output under its key.
    """
    outputs: dict[int, Tensor] = {}

    def keep(key: int) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor | tuple) -> None:
            outputs[key] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [module.register_forward_hook(keep(key)) for key, module in modules.items()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _explained(spec: EncoderSpec) -> Iterator[None]:
    """Say which field was at fault, and what to do, where transformers cannot find a model."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        revision = f" --revision {spec.revision}" if spec.revision else ""
        raise ConfigError(
            f"encoder.model_id={spec.model_id!r}: cannot load it ({reason}). Fetch it once with `hf download "
            f"{spec.model_id}{revision}` on a machine with a network and the same HF_HOME, or give the path of a "
            "folder that holds config.json and model.safetensors"
        ) from error


def _folder_revision(folder: Path) -> str:
    """Hash the weight files of a local model, so that a changed folder is noticed as a changed Hub commit is."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"
