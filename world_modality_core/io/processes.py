"""Processes that `accelerate launch` started on one job, and the device of each."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
from accelerate import PartialState


def join_processes(device: str | None) -> tuple[PartialState, torch.device | str]:
    """Join the job's other processes, if there are any.

    They wait for one another, and for nothing else, through the CPU: NCCL would not let two of them share a GPU.

    Args:
        device: The device that the user asked for, or None.

    Returns:
        The processes, and this one's device: of several, each takes one GPU in turn unless one was named ("cuda:1").
    """
    is_alone = int(os.environ.get("WORLD_SIZE", 1)) == 1
    # Processes wait for the first one while it writes, which takes as long as it takes.
    state = PartialState(cpu=device == "cpu" or not is_alone, timeout=timedelta(days=7))
    if is_alone or (device or "cuda") != "cuda" or not torch.cuda.is_available():
        return state, device or state.device
    return state, torch.device("cuda", state.local_process_index % torch.cuda.device_count())


def wait_for_everyone(state: PartialState) -> None:
    """Wait until all processes are here. Accelerate's own would name a GPU for each process, which there may not be."""
    if state.num_processes > 1:
        torch.distributed.barrier()
