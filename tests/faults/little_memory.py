"""Encode frames with little address space left: a command of test_memory.py, for a process that ran no other test."""

from __future__ import annotations

import re
import resource
import sys

import numpy as np
import torch

from world_modality_core.encoders import make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.commands import command_errors

N, CAMERA = 8, "observation.image"


def make_encoder(size: int):
    return make_world_encoder(
        EncoderSpec("efficientnet_lite0", cameras=[CAMERA], height_px=size, width_px=size, pooling="grid:2x2")
    )


def make_frames(size: int) -> dict[str, torch.Tensor]:
    return {CAMERA: torch.randint(0, 256, (N, 3, size, size), generator=torch.Generator().manual_seed(0)).byte()}


def main() -> None:
    """Arguments: megabytes left, size of frames and where the latents go. Prints the batch size that fits."""
    megabytes, size, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    encoder, frames = make_encoder(size), make_frames(384)
    limit = int(re.search(r"VmSize:\s+(\d+)", open("/proc/self/status").read())[1]) * 1024 + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with command_errors("wm-x"):
        first, second = encoder.encode(frames), encoder.encode(frames)
    assert torch.equal(first, second)
    np.save(path, first.half().numpy())
    print(encoder._fits)
