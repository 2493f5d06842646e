"""Timing of things that take turns on one device, and what they wait for."""

from __future__ import annotations

import contextlib
import statistics
import time
import warnings
from collections.abc import Callable

import torch


def synchronise(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def autocast(device: str, dtype: torch.dtype | None = torch.bfloat16):
    """What accelerate does in training with mixed precision."""
    is_cuda = device.startswith("cuda")
    return torch.autocast(torch.device(device).type, dtype) if is_cuda and dtype else contextlib.nullcontext()


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Wall time of some work, the device's included."""
    synchronise(device)
    start = time.perf_counter()
    work()
    synchronise(device)
    return 1e3 * (time.perf_counter() - start)


def in_turn(
    works: dict[str, Callable[[], object]], device: str, repeats: int, warm_up: int = 3
) -> dict[str, list[float]]:
    """Milliseconds of each, taking turns, so that what slows the machine slows all."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(warm_up + repeats):
        for name in works if repeat % 2 else reversed(works):
            value = milliseconds(works[name], device)
            if repeat >= warm_up:
                taken[name].append(value)
    return taken


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(100 * share) - 1]


def waits(work: Callable[[], object]) -> int:
    """Times that the host waits for a CUDA device in some work, as torch's sync debug mode counts them."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            work()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(each.message) for each in found)


def peak_gib(work: Callable[[], object]) -> float:
    """Most GPU memory that was allocated in some work, what was there before included."""
    torch.cuda.reset_peak_memory_stats()
    work()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() / 2**30
