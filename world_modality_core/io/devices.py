"""Whether a device that was asked for is there, before anything is built on it."""

from __future__ import annotations

import re

from world_modality_core.io.errors import ConfigError


def check_device(device: str | None, option: str = "device", is_needed: bool = True) -> None:
    """Refuse a device that has no such name, or that this machine lacks. Only "cuda" needs torch to be imported.

    Args:
        device: "cpu", "cuda", "cuda:1", "mps" or "xpu"; None for the best at hand.
        option: What the message calls it.
        is_needed: Whether it must be there; else only the name is looked at.

    Raises:
        ConfigError: naming option, value and remedy.
    """
    if device is None:
        return
    named = re.fullmatch(r"(cpu|cuda|mps|xpu)(?::(\d+))?", device)
    if named is None:
        raise ConfigError(f"{option}={device!r}: no such device; expected cpu, cuda, cuda:1 (the second), mps or xpu")
    if named[1] == "cuda" and is_needed:
        import torch

        n = torch.cuda.device_count()
        if int(named[2] or 0) >= n:
            raise ConfigError(
                f"{option}={device!r}: torch sees {n} CUDA devices on this machine; use {option}=cpu, or let "
                "`wm-doctor --device=cuda` say what is missing"
            )
