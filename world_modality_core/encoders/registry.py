"""Encoder families by name."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from world_modality_core.io.errors import ConfigError

if TYPE_CHECKING:  # options are checked before anything heavy is imported
    import torch

    from world_modality_core.encoders.base import WorldEncoder
    from world_modality_core.encoders.spec import EncoderSpec
    from world_modality_core.latents.pca import LatentPCA

_FAMILIES: dict[str, type[WorldEncoder]] = {}
# Modules of this package that register themselves, imported when they are asked for.
_BUILT_IN = {name: f"{__package__}.{name}" for name in ("dinov2", "efficientnet_lite0", "vjepa2")}


def register_encoder(family: str) -> Callable[[type[WorldEncoder]], type[WorldEncoder]]:
    """Enter a `WorldEncoder` subclass under a family name, for `--encoder.family=<name>`.

    Raises:
        ValueError: if another class already has the name.
    """

    def enter(cls: type[WorldEncoder]) -> type[WorldEncoder]:
        known = _FAMILIES.get(family)
        taken = _BUILT_IN.get(family) or (known and f"{known.__module__}.{known.__qualname__}")
        if taken and cls.__module__ != taken and f"{cls.__module__}.{cls.__qualname__}" != taken:
            raise ValueError(f"encoder family {family!r} is already {taken}")
        _FAMILIES[family] = cls
        return cls

    return enter


def encoder_families() -> list[str]:
    """The names of all families: this package's, and those that were registered."""
    return sorted({*_BUILT_IN, *_FAMILIES})


def check_family(family: str) -> None:
    """Refuse a family that nobody registered.

    Raises:
        ConfigError: naming it, and those that there are.
    """
    if family not in encoder_families():
        raise ConfigError(
            f"encoder.family={family!r}: expected one of {encoder_families()}; a family of your own is registered by "
            "importing its module first, e.g. with --encoder.discover_packages_path=<package> (docs/encoders.md)"
        )


def make_world_encoder(
    spec: EncoderSpec, pca: LatentPCA | None = None, device: str | torch.device = "cpu"
) -> WorldEncoder:
    """Build the frozen encoder that a spec describes.

    Args:
        spec: The spec, resolved or not; the encoder's own `spec` is resolved.
        pca: The fitted PCA where `spec.pca_dim` is set; None to fit one on `encode_raw`.
        device: Where to compute.

    Returns:
        The encoder.

    Raises:
        ConfigError: if the family is unknown, the spec does not fit it, a package is missing or the weights are not at
            hand.
    """
    check_family(spec.family)
    if spec.family not in _FAMILIES:
        import_module(_BUILT_IN[spec.family])
    return _FAMILIES[spec.family](spec, pca=pca, device=device)
