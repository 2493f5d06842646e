"""Logged values that cost a training step no wait for the accelerator."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor


class LoggedValues:
    """0-d tensors that turn into floats when somebody reads them, all in one transfer.

    LeRobot's trainer reads a policy's output after its own `loss.item()`, when the device has nothing left to do; to
    build floats inside `forward` would make it wait in the middle of a step instead.

    Reads like a mapping of floats, but is no `Mapping`: under mixed precision accelerate rebuilds every mapping that a
    `forward` returns, value by value.
    """

    def __init__(self, values: Mapping[str, Tensor] | None = None, floats: Mapping[str, float] | None = None):
        self._known = dict(floats or {})  # values that upstream has turned into floats already
        self._tensors: dict[str, Tensor] = {}
        self._floats: dict[str, float] | None = None
        self.add(values or {})

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add values that become known later in the step, such as gradient norms; ignored once read."""
        if self._floats is None:
            self._tensors.update({name: value.detach() for name, value in values.items()})

    def stacked(self) -> Tensor:
        """All values as one tensor (n,), fp32, on their device, in the order of the keys."""
        stacked = [value.float().reshape(()) for value in self._tensors.values()]
        device = stacked[0].device if stacked else None
        known = torch.tensor(list(self._known.values()), dtype=torch.float32).to(device, non_blocking=True)
        return torch.cat([known, torch.stack(stacked)]) if stacked else known

    def __getitem__(self, name: str) -> float:
        if self._floats is None:
            self._floats = dict(zip(self.keys(), self.stacked().tolist(), strict=True)) | self._known
        return self._floats[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def keys(self) -> list[str]:
        return [*self._known, *self._tensors]

    def items(self) -> list[tuple[str, float]]:
        return [(name, self[name]) for name in self.keys()]

    def __len__(self) -> int:
        return len(self.keys())

    def __repr__(self) -> str:
        return f"LoggedValues({dict(self.items())})"
