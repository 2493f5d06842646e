"""Frames of a running rollout, and the latents made of them when a re-plan asks.

Only frames that a re-plan needs are encoded, in one batch, each once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from world_modality_core.encoders import WorldEncoder
from world_modality_core.io.errors import ObservationError
from world_modality_core.latents.past_frames import choose_past, most_moved, movement, n_most_moved


class FrameHistory:
    """The last frames of b environments that step together.

    Environments stay apart by their place on the batch axis; `clear` starts new episodes for all of them.

    Args:
        cameras: Feature keys of the images, in the encoder's order.
        n_history: Latents in a history, t.
        stride: Steps between two latents of a history.
        n_window: Frames that one latent is made of, m.
        window_stride: Steps between two of these frames.
        tolerance: Steps by which a frame may miss its place in a history, where frames come irregularly (`append` is
            told their steps); a place that no frame comes near to is padding.
        past: Frames, stride and choice of the past that is kept, see `past_frames`; None for none.
        every: Steps between two frames that are encoded, which divides the strides: a history ends at the last of them.
    """

    def __init__(
        self,
        cameras: list[str],
        n_history: int,
        stride: int,
        n_window: int,
        window_stride: int,
        tolerance: int = 0,
        past: tuple[int, int, str] | None = None,
        every: int = 1,
    ):
        self.cameras = cameras
        self.n_history, self.stride = n_history, stride
        self.n_window, self.window_stride = n_window, window_stride
        self.tolerance, self._past, self.every = tolerance, past, every
        self._span = (n_history - 1) * stride + (n_window - 1) * window_stride + every
        self.clear()

    def clear(self) -> None:
        """Forget everything: a new episode starts."""
        self._frames: dict[int, dict[str, Tensor]] = {}  # by step, oldest first
        self._latents: dict[int, Tensor] = {}
        self._candidates: list[int] = []  # steps that the past may still be made of, oldest first
        self._moved: list[Tensor] = []  # (b,) of the first of them, as many as are encoded
        self._start: int | None = None  # step of the first frame
        self._is_irregular = False
        self.n_encoded = 0  # frames encoded per environment since the last `clear`, for logs and tests

    @property
    def now(self) -> int:
        """Step of the newest frame; -1 before the first."""
        return next(reversed(self._frames), -1)

    def append(self, batch: dict[str, Tensor], step: int | None = None) -> None:
        """Remember the current frame of every camera.

        Args:
            batch: Observation with each camera's image (b, c, h, w), uint8 or float in [0, 1].
            step: When this frame was taken, in steps; by default one step after the last frame. A caller that shows
                frames irregularly (a policy server) must say it, and may show one late. A frame of the same step is
                replaced.

        Raises:
            ObservationError: if a camera is missing.
            ValueError: if the number of environments changed without `clear`, or time went back by more than a history.
        """
        missing = [camera for camera in self.cameras if camera not in batch]
        if missing:
            images = sorted(key for key in batch if key.startswith("observation.image"))
            raise ObservationError(
                f"the observation has no {missing}, which the policy's world encoder reads; it has {images}. "
                'Rename with --rename_map=\'{"theirs": "ours"}\', or train on a companion of these cameras'
            )
        frame = {camera: batch[camera] for camera in self.cameras}
        now = self.now
        if self._frames:
            n_before, n = (len(some[self.cameras[0]]) for some in (self._frames[now], frame))
            if n != n_before:
                raise ValueError(
                    f"the number of environments changed from {n_before} to {n} within an episode; call policy.reset() "
                    "first"
                )
        self._is_irregular |= step is not None
        step = now + 1 if step is None else step
        self._start = step if self._start is None else self._start
        oldest = now - self._span + 1 - self.tolerance
        if self._frames and step < oldest:
            raise ValueError(
                f"step={step} is long before step {now}, which was seen already; call policy.reset() first"
            )
        if step <= now:  # a window of a frame that was encoded may hold this one
            self._latents = {at: latent for at, latent in self._latents.items() if at < step}
            self._moved = self._moved[: sum(at < step for at in self._candidates)]
        oldest += max(0, step - now)
        if self._past is not None and self._is_due(step):
            self._candidates.append(step)
        if self._waiting:
            oldest = min(oldest, self._waiting[0] - (self.n_window - 1) * self.window_stride - self.tolerance)
        if self._past is not None:  # a late frame may have any candidate since then encoded again, of its whole window
            oldest -= (self.n_window - 1) * self.window_stride
        frames = self._frames | {step: frame}
        self._frames = {at: frames[at] for at in sorted(frames) if at >= oldest}

    def needed(self, seen: Sequence[int], now: int) -> list[int]:
        """Which frames a plan at step `now` needs, for a caller that doesn't append all that it sees.

        Args:
            seen: Steps of the frames that the caller saw before, oldest first.
            now: Step of the plan.

        Returns:
            Places in `seen`, oldest first: what is nearest to each place of the history, all that the past would have
            kept, had each frame been appended, and what their windows are made of.
        """
        steps = [*seen, now]
        start = steps[0] if self._start is None else self._start
        chosen = {_nearest(steps, step) for step in self._wanted(now, start)}
        chosen |= {start} if self._start is None else set()
        if self._past is not None:
            stride = self._past[1]
            last = (self._candidates[-1] - start) // stride if self._candidates else -1
            for step in steps:
                if (step - start) // stride > last:
                    last = (step - start) // stride
                    chosen.add(step)
        windows = {_nearest(steps, end - j * self.window_stride) for end in chosen for j in range(self.n_window)}
        return [i for i, step in enumerate(seen) if step in windows]

    def adopt(self, other: FrameHistory) -> None:
        """Take over the latents that another history of the same frames has made by an encoder of the same spec."""
        if other.now == self.now:
            self._latents = other._latents | self._latents

    def latents(self, encoder: WorldEncoder) -> tuple[Tensor, Tensor]:
        """Latents of the history that ends at the current frame.

        Frames before the start of the episode are padded as in training: the first latent, flagged.

        Args:
            encoder: The encoder that made the companion.

        Returns:
            Latents (b, t, p, d) fp16-rounded fp32, as a companion stores them, oldest first, and is_pad (b, t).
        """
        wanted = self._wanted(self.now, self._start)
        steps = [_nearest(self._frames, step) for step in wanted]
        self._encode([step for step in sorted({*steps, *self._waiting}) if step not in self._latents], encoder)
        if self._past is not None:
            self._measure_past()
            self._drop_past()
        kept = {step for step in self._latents if step > self.now - self._span} | {*steps, *self._candidates}
        self._latents = {step: latent for step, latent in self._latents.items() if step in kept}
        latents = torch.stack([self._latents[step] for step in steps], dim=1)
        slack = self.tolerance if self._is_irregular else 0
        missed = [abs(step - at) > slack for step, at in zip(wanted, steps, strict=True)]
        is_pad = torch.tensor(missed, device=latents.device)
        return latents, is_pad.expand(len(latents), -1)

    def past(self) -> tuple[Tensor, Tensor, Tensor]:
        """The past of the current frame, after `latents`.

        Returns:
            Latents (b, n, p, d), is_pad (b, n) and age (b, n) in steps, as `past_frames` chooses them.
        """
        n, _, select = self._past
        any_latent = next(iter(self._latents.values()))
        b, device = len(any_latent), any_latent.device
        n_seen = sum(step < self.now for step in self._candidates)
        moved = torch.stack(self._moved, dim=1)
        chosen, is_pad = choose_past(moved, torch.full((b,), n_seen, device=device), n, select)
        latents = torch.stack([self._latents[step] for step in self._candidates], dim=1)  # (b, j, p, d)
        age = self.now - torch.tensor(self._candidates, device=device)[chosen]
        rows = torch.arange(b, device=device)[:, None]
        return latents[rows, chosen], is_pad, age.masked_fill(is_pad, 0)

    def _wanted(self, now: int, start: int) -> list[int]:
        """Steps of the history of a plan at step `now` of an episode whose first frame is `start`, oldest first."""
        last = now - (now - start) % self.every
        return [last - i * self.stride for i in reversed(range(self.n_history))]

    @property
    def _waiting(self) -> list[int]:
        """Candidates that are not encoded yet, oldest first."""
        return self._candidates[len(self._moved) :]

    def _is_due(self, step: int) -> bool:
        """Whether a frame is the first at or after its place in the past."""
        if not self._candidates:
            return True
        first, stride = self._start, self._past[1]
        return (step - first) // stride > (self._candidates[-1] - first) // stride

    def _measure_past(self) -> None:
        """Measure how far the latent moved at candidates that were encoded just now."""
        for step in [*self._waiting]:
            latent = self._latents[step].flatten(1)
            i = len(self._moved)
            before = self._latents[self._candidates[i - 1]].flatten(1) if i else None
            first = torch.full((len(latent),), float("inf"), device=latent.device)
            self._moved.append(first if before is None else movement(latent, before))

    def _drop_past(self) -> None:
        """Drop candidates that nothing which comes will let in again: a past costs the same however long it is."""
        n, _, select = self._past
        late = self._span + self.tolerance if self._is_irregular else 0
        n_settled = sum(step < self.now - late for step in self._candidates[: len(self._moved)])
        n_moved = n_most_moved(n, select)
        newest = max(n - n_moved, 1)  # at least the last, from which the next one's movement is measured
        if n_settled <= n + newest:
            return
        moved = torch.stack(self._moved[:n_settled], dim=1)
        kept = {*most_moved(moved, n_moved).flatten().tolist(), *range(n_settled - newest, len(self._candidates))}
        self._candidates = [step for i, step in enumerate(self._candidates) if i in kept]
        self._moved = [value for i, value in enumerate(self._moved) if i in kept]

    def _encode(self, steps: list[int], encoder: WorldEncoder) -> None:
        if not steps:
            return
        windows = {}
        for camera in self.cameras:
            clips = [
                torch.stack(
                    [
                        self._frames[_nearest(self._frames, step - i * self.window_stride)][camera]
                        for i in reversed(range(self.n_window))
                    ],
                    dim=1,
                )  # (b, m, c, h, w)
                for step in steps
            ]
            windows[camera] = torch.cat(clips)
        latents = encoder.encode(windows).half().float()  # as the companion stores them
        for step, latent in zip(steps, latents.chunk(len(steps)), strict=True):
            self._latents[step] = latent
        self.n_encoded += len(steps)


def _nearest(steps: Iterable[int], wanted: int) -> int:
    """Of two as near the first."""
    return min(steps, key=lambda at: abs(at - wanted))
