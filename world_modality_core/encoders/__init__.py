"""World encoders: frozen networks that turn camera frames into world latents (docs/encoders.md)."""

from importlib import import_module

_HOMES = {
    "LayerFeatures": "pooling",
    "WorldEncoder": "base",
    "encoder_families": "registry",
    "make_world_encoder": "registry",
    "register_encoder": "registry",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    # On first use: options (`spec`) are read without torch, whose import takes seconds.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
