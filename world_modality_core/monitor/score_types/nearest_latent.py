"""How far the world is from everything that successful episodes showed, in this phase and in any."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from world_modality_core.monitor.score_types.score import View


class LatentBank(nn.Module):
    """Latents of successful episodes, by task and phase.

    Args:
        n_tasks: Tasks.
        n_phases: Phases of an episode, f.
        n_kept: Latents of each task and phase at most.
        width: p * d.
    """

    def __init__(self, n_tasks: int, n_phases: int, n_kept: int, width: int):
        super().__init__()
        self.register_buffer("latents", torch.zeros(n_tasks, n_phases, n_kept, width, dtype=torch.float16))
        self.register_buffer("count", torch.zeros(n_tasks, n_phases, dtype=torch.int64))

    def keep(self, task: int, phase: int, latents: Tensor) -> None:
        """Fill a task's phase from (n, p, d) standardised latents, drawn evenly if there are too many."""
        if len(latents) > self.latents.shape[2]:
            latents = latents[torch.linspace(0, len(latents) - 1, self.latents.shape[2]).round().long()]
        self.latents[task, phase, : len(latents)] = latents.flatten(1).half()
        self.count[task, phase] = len(latents)

    def distances(self, task: int, latents: Tensor) -> Tensor:
        """(b, f) root mean square distance of (b, p, d) latents to the nearest one of each phase; inf where none is."""
        kept, rows = self.latents[task].float(), latents.flatten(1).float()
        # Exact, not by the matrix product, whose rounding depends on what else is in the batch.
        apart = torch.cdist(rows, kept, compute_mode="donot_use_mm_for_euclid_dist")  # (f, b, n)
        absent = torch.arange(kept.shape[1], device=kept.device) >= self.count[task][:, None, None]
        return apart.masked_fill(absent, torch.inf).amin(-1).T / rows.shape[1] ** 0.5


class NearestLatent:
    """Distance to the nearest latent of a successful episode: at this phase, and (a baseline) at any.

    Args:
        bank: Those latents.
    """

    names = ("nearest_in_phase", "nearest")
    uncombined = ("nearest",)

    def __init__(self, bank: LatentBank):
        self.bank = bank

    def __call__(self, view: View) -> Tensor:
        """(b, 2)."""
        now = view.latents[view.tick]
        found = now.new_empty(len(now), 2, dtype=torch.float32)
        for task in view.task.unique().tolist():
            rows = view.task == task
            apart = self.bank.distances(task, now[rows])
            here = apart.gather(1, view.phase[rows, None])
            found[rows] = torch.cat([here, apart.amin(1, keepdim=True)], dim=1)
        return found
