"""How good forecasts are (world tokens, latents in one shot and in open loop), and how a policy reads its memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lerobot_policy_world_modality.intervention.examined_policy import ExaminedPolicy
from lerobot_policy_world_modality.intervention.frames import Frames
from lerobot_policy_world_modality.intervention.rollout import open_loop
from lerobot_policy_world_modality.policies.shared.memory_filling import future_mass
from world_modality_core.prophet.losses import frame_cosine


class ForecastScores:
    """Sums per episode and future step of how good forecasts are, beside what copying the current frame would give.

    Args:
        examined: The policy.
        frames: The frames that will be looked at.
        n_rounds: How often the Prophet predicts in a row.
    """

    def __init__(self, examined: ExaminedPolicy, frames: Frames, n_rounds: int):
        self._examined, self._frames, self._n_rounds = examined, frames, n_rounds
        self._rows: list[pd.DataFrame] = []

    @torch.no_grad()
    def look(self, part: np.ndarray, batch: dict) -> None:
        """Take in a preprocessed batch, whose frames have the places `part`."""
        host, config = self._examined.host, self._examined.host.config
        if config.needs_tokens:
            self._add("tokens", part, *self._tokens(batch))
        elif not self._examined.has_latents:
            return
        elif host.world.prophet is not None:
            k = config.n_future_steps
            error, copy, is_pad = self._rollout(batch)
            self._add("latents", part, error[:, :k], copy[:, :k], is_pad[:, :k])
            self._add("rollout", part, error, copy, is_pad)
        elif config.needs_future:
            predicted = host.world.space.standardise(host.predict_latents(batch))
            steps = [config.future_stride * i for i in range(1, config.n_future_steps + 1)]
            self._add("latents", part, *self._compare(batch, predicted, steps))

    def rows(self) -> pd.DataFrame:
        """One row per kind, episode and future step: sums over frames of `value` and `copy`, and their `count`."""
        if not self._rows:
            return pd.DataFrame(columns=["kind", "episode", "step", "value", "copy", "count"])
        return pd.concat(self._rows).groupby(["kind", "episode", "step"], as_index=False).sum()

    def _tokens(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Share of a frame's tokens that are right, (b, k), of the head and of the current tokens; is_pad (b, k)."""
        host = self._examined.host
        world_batch = host.recorded_batch(batch)
        hits = (host.predict_tokens(batch) == world_batch.future_tokens).float().mean(-1)
        copies = (world_batch.tokens[:, None] == world_batch.future_tokens).float().mean(-1)
        return hits, copies, world_batch.future_is_pad

    def _rollout(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        host = self._examined.host
        config, world_batch = host.config, host.recorded_batch(batch, everything=True)
        predicted = open_loop(
            host.world.prophet,
            world_batch,
            lambda offsets: self._recorded(batch, offsets),
            config.history_stride,
            config.future_stride,
            self._n_rounds,
        )
        steps = [config.future_stride * i for i in range(1, predicted.shape[1] + 1)]
        return self._compare(batch, predicted, steps)

    def _compare(self, batch: dict, predicted: Tensor, offsets: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        """1 - cosine to the recorded latents, (b, k), of the prediction and of the current frame; is_pad (b, k)."""
        latents, is_pad = self._recorded(batch, [0, *offsets])
        current, real = latents[:, :1], latents[:, 1:]
        return 1 - frame_cosine(predicted, real), 1 - frame_cosine(current, real), is_pad[:, 1:]

    def _recorded(self, batch: dict, offsets: list[int]) -> tuple[Tensor, Tensor]:
        examined = self._examined
        latents, is_pad = examined.host.latent_reader.companion.table.gather(batch["index"].cpu(), offsets)
        return examined.space.standardise_rows(latents.to(examined.device)), is_pad.to(examined.device)

    def _add(self, kind: str, part: np.ndarray, value: Tensor, copy: Tensor, is_pad: Tensor) -> None:
        steps = value.shape[1]
        keep = ~is_pad.cpu().numpy().ravel()
        rows = {
            "episode": np.repeat(self._frames.episode[part], steps),
            "step": np.tile(np.arange(1, steps + 1), len(part)),
            "value": value.cpu().double().numpy().ravel(),
            "copy": copy.cpu().double().numpy().ravel(),
            "count": np.ones(len(part) * steps, np.int64),
        }
        frame = pd.DataFrame(rows)[keep].groupby(["episode", "step"], as_index=False).sum()
        self._rows.append(frame.assign(kind=kind))


class Readers:
    """How wide the gates are open and where the attention goes, per module that reads the memory, over many plans.

    Args:
        examined: The policy.
    """

    def __init__(self, examined: ExaminedPolicy):
        self._modules = examined.readers
        self._shape = examined.host.memory_shape if examined.readers else None
        self._gates: dict[str, list[float]] = {name: [] for name in self._modules}
        self._masses: dict[str, list[Tensor]] = {name: [] for name in self._modules}

    def look(self, n: int) -> None:
        """Note the gates and where the attention of the plan just made went; n frames were planned from."""
        for name, reader in self._modules.items():
            self._gates[name].append(float(reader.last_sample_gate.mean()))
            if reader.last_attention_mass is not None:
                per_step = future_mass(reader.last_attention_mass, self._shape)
                self._masses[name].append(n * per_step.double().cpu())

    def values(self) -> dict[str, dict]:
        """By module: `gate`, the mean |tanh(gate)|, and `attention_mass` (k,), the share that each future step gets."""
        found = {}
        for name, gates in self._gates.items():
            masses = self._masses[name]
            mass = sum(masses) / sum(masses).sum() if masses and float(sum(masses).sum()) > 0 else None
            found[name] = {
                "gate": float(np.mean(gates)) if gates else None,
                "attention_mass": None if mass is None else mass.tolist(),
            }
        return found
