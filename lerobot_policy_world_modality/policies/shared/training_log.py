"""What a training run logs beside its losses: gradient norms, and a JSON Lines file for those without wandb."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from world_modality_core.io.errors import ConfigError
from world_modality_core.io.files import parse_json
from world_modality_core.prophet.logged_values import LoggedValues


class TrainingLog:
    """The values of the current step, and the means that go to the metrics file.

    Args:
        path: JSON Lines file to append to; None writes none.
        every: Optimiser steps that one line averages over.
    """

    def __init__(self, path: str | None, every: int):
        if path is not None:
            _check_is_log(Path(path))
        self.path, self.every = path, every
        self._values: LoggedValues | None = None
        self._is_watching = False
        self._names: list[str] = []
        self._total: Tensor | None = None
        self._n = 0

    def take(self, values: LoggedValues) -> None:
        """Remember the values of a training step, so that its gradient norms can join them."""
        self._values = values

    def watch(self, modules: dict[str, nn.Module]) -> None:
        """Log gradient norms (before clipping, of this process) from the first step on, when all modules are in place.

        Args:
            modules: Name in `grad_norm_<name>` -> module.
        """
        if self._is_watching:
            return
        self._is_watching = True
        for name, module in modules.items():
            parameters = [p for p in module.parameters() if p.requires_grad]
            if not parameters:
                continue

            def log_norm(grads: Sequence[Tensor | None], name: str = name) -> None:
                present = [grad for grad in grads if grad is not None]
                if self._values is not None and present:
                    norm = torch.stack(torch._foreach_norm(present)).norm()
                    self._values.add({f"grad_norm_{name}": norm})

            torch.autograd.graph.register_multi_grad_hook(parameters, log_norm)

    def write(self, step: int) -> None:
        """Count an optimiser step; append a line when one is due (process 0 only)."""
        if self.path is None or self._values is None:
            return
        names, stacked = self._values.keys(), self._values.stacked()
        if self._total is None or self._names != names:
            self._total, self._n, self._names = torch.zeros_like(stacked), 0, names
        self._total += stacked
        self._n += 1
        if step % self.every or int(os.environ.get("RANK", "0")) != 0:
            return
        means = (self._total / self._n).tolist()
        Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a") as file:
            file.write(json.dumps({"step": step} | dict(zip(names, means, strict=True))) + "\n")
        self._total = None


def _check_is_log(path: Path) -> None:
    """Refuse to append to a file that is no log of a training: a checkpoint of somebody else's may name any.

    Raises:
        ConfigError: naming the file.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        first = file.readline(1 << 16)
    try:
        is_log = not first.endswith(b"\n") or "step" in parse_json(first)  # a kill may have torn the only line
    except (ValueError, TypeError):
        is_log = False
    if not is_log:
        raise ConfigError(
            f"policy.metrics_file={str(path)!r} exists and is no log of a training: name another file, and "
            "don't go on from this checkpoint if you didn't name that one"
        )
