"""How well a policy foresees: world tokens, latents in one shot, latents in open loop; and how it reads its memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from lerobot_policy_world_modality.intervention.frames import Frames
from lerobot_policy_world_modality.intervention.rollout import open_loop
from lerobot_policy_world_modality.intervention.subject import Subject
from world_modality_core.prophet.losses import frame_cosine


class Foresight:
    """Sums per episode and future step of what is foreseen, beside what copying the current frame would give.

    Args:
        subject: The policy.
        frames: The frames that will be looked at.
        n_rounds: How often the Prophet predicts in a row.
    """

    def __init__(self, subject: Subject, frames: Frames, n_rounds: int):
        self._subject, self._frames, self._n_rounds = subject, frames, n_rounds
        self._rows: list[pd.DataFrame] = []

    @torch.no_grad()
    def look(self, part: np.ndarray, batch: dict) -> None:
        """Take in a preprocessed batch, whose frames have the places `part`."""
        config = self._subject.config
        if getattr(config, "uses_tokens", False):
            hits, copies, is_pad = self._tokens(batch)
            self._add("tokens", part, hits, copies, is_pad)
        elif not self._subject.has_latents:
            return
        elif self._subject.prophet is not None:
            k = config.n_future_steps
            error, copy, is_pad = self._rollout(batch)
            self._add("latents", part, error[:, :k], copy[:, :k], is_pad[:, :k])
            self._add("rollout", part, error, copy, is_pad)
        elif hasattr(self._subject.policy, "predict_latents"):
            predicted = self._subject.space.standardise(self._subject.policy.predict_latents(batch))
            steps = [config.future_stride * i for i in range(1, config.n_future_steps + 1)]
            self._add("latents", part, *self._compare(batch, predicted, steps))

    def rows(self) -> pd.DataFrame:
        """One row per kind, episode and future step: sums over frames of `value` and `copy`, and their `count`."""
        if not self._rows:
            return pd.DataFrame(columns=["kind", "episode", "step", "value", "copy", "count"])
        return pd.concat(self._rows).groupby(["kind", "episode", "step"], as_index=False).sum()

    def _tokens(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        """Share of a frame's tokens that are right, (b, k), of the head and of the current tokens; is_pad (b, k)."""
        policy, config = self._subject.policy, self._subject.config
        heard: list[Tensor] = []
        handle = policy.future_head.register_forward_hook(lambda module, args, out: heard.append(out))
        try:
            policy.forward(batch)
        finally:
            handle.remove()
        logits = heard[0].unflatten(-1, (config.tokens.n_per_frame, -1))  # (b, k, n, c)
        world_batch = self._subject.latent_reader.recorded(
            batch, self._subject.device, history=False, future=False, tokens=True
        )
        hits = (logits.argmax(-1) == world_batch.future_tokens).float().mean(-1)
        copies = (world_batch.tokens[:, None] == world_batch.future_tokens).float().mean(-1)
        return hits, copies, world_batch.future_is_pad

    def _rollout(self, batch: dict) -> tuple[Tensor, Tensor, Tensor]:
        subject = self._subject
        config, prophet = subject.config, subject.prophet
        world_batch = subject.latent_reader.recorded(batch, subject.device, history=True, future=False, tokens=False)
        predicted = open_loop(
            prophet,
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
        subject = self._subject
        latents, is_pad = subject.latent_reader.companion.table.gather(batch["index"].cpu(), offsets)
        return subject.space.standardise_rows(latents.to(subject.device)), is_pad.to(subject.device)

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
        subject: The policy.
    """

    def __init__(self, subject: Subject):
        self._modules = subject.readers
        self._shape = subject.memory_shape[:3] if subject.readers else None
        self._gates: dict[str, list[float]] = {name: [] for name in self._modules}
        self._masses: dict[str, list[Tensor]] = {name: [] for name in self._modules}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Notice every gate while plans are made."""

        def note(name: str):
            return lambda module, args, gate: self._gates[name].append(float(gate.detach().abs().mean()))

        handles = [module.gate.register_forward_hook(note(name)) for name, module in self._modules.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def look(self, n: int) -> None:
        """Note where the attention of the plan just made went; n frames were planned from."""
        for name, module in self._modules.items():
            mass = getattr(module, "last_attention_mass", None)
            if mass is not None:
                per_step = mass.view(self._shape).sum((0, 2))
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
