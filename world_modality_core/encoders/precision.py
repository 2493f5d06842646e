"""Which arithmetic latents are made with, whatever the process around them is set to."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32() -> Iterator[None]:
    """Compute float32 as float32: without TF32, which keeps 10 of its 23 bits of mantissa.

    lerobot-train and evaluation allow TF32 for products, cuDNN uses it for convolutions unless switched off, and a
    latent must not depend on who asked for it. Also a decorator.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [switch.allow_tf32 for switch in switches]
    try:
        for switch in switches:
            switch.allow_tf32 = False
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.allow_tf32 = value
