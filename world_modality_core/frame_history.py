"""Frames of a running rollout, and the latents made of them when a re-plan asks.

Only frames that a re-plan needs are encoded, in one batch, each once.
"""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from world_modality_core.encoders import WorldEncoder


class FrameHistory:
    """The last frames of b environments that step together.

    Environments stay apart by their place on the batch axis; `clear` starts new episodes for all of them.

    Args:
        cameras: Feature keys of the images, in the encoder's order.
        n_history: Latents in a history, t.
        stride: Steps between two latents of a history.
        n_window: Frames that one latent is made of, m.
        window_stride: Steps between two of these frames.
    """

    def __init__(self, cameras: list[str], n_history: int, stride: int, n_window: int, window_stride: int):
        self.cameras = cameras
        self.n_history, self.stride = n_history, stride
        self.n_window, self.window_stride = n_window, window_stride
        span = (n_history - 1) * stride + (n_window - 1) * window_stride + 1
        self._frames: deque[dict[str, Tensor]] = deque(maxlen=span)
        self.clear()

    def clear(self) -> None:
        """Forget everything: a new episode starts."""
        self._frames.clear()
        self._latents: dict[int, Tensor] = {}
        self._n_seen = 0
        self.n_encoded = 0  # frames encoded per environment since the last `clear`, for logs and tests

    def append(self, batch: dict[str, Tensor]) -> None:
        """Remember the current frame of every camera.

        Args:
            batch: Observation with each camera's image (b, c, h, w), uint8 or float in [0, 1].

        Raises:
            ValueError: if a camera is missing, or the number of environments changed without `clear`.
        """
        missing = [camera for camera in self.cameras if camera not in batch]
        if missing:
            images = sorted(key for key in batch if key.startswith("observation.image"))
            raise ValueError(
                f"the observation has no {missing}, which the policy's world encoder reads; it has {images}. "
                'Rename with --rename_map=\'{"theirs": "ours"}\', or train on a companion of these cameras'
            )
        frame = {camera: batch[camera] for camera in self.cameras}
        if self._frames and len(frame[self.cameras[0]]) != len(self._frames[-1][self.cameras[0]]):
            raise ValueError(
                f"the number of environments changed from {len(self._frames[-1][self.cameras[0]])} to "
                f"{len(frame[self.cameras[0]])} within an episode; call policy.reset() first"
            )
        self._frames.append(frame)
        self._n_seen += 1

    def latents(self, encoder: WorldEncoder) -> tuple[Tensor, Tensor]:
        """Latents of the history that ends at the current frame.

        Frames before the start of the episode are padded as in training: the first latent, flagged.

        Args:
            encoder: The encoder that made the companion.

        Returns:
            Latents (b, t, p, d) fp16-rounded fp32, as a companion stores them, oldest first, and is_pad (b, t).
        """
        now = self._n_seen - 1
        wanted = [now - i * self.stride for i in reversed(range(self.n_history))]
        steps = [max(step, 0) for step in wanted]
        self._encode([step for step in sorted(set(steps)) if step not in self._latents], encoder)
        self._latents = {step: latent for step, latent in self._latents.items() if step in steps}
        latents = torch.stack([self._latents[step] for step in steps], dim=1)
        is_pad = torch.tensor([step < 0 for step in wanted], device=latents.device)
        return latents, is_pad.expand(len(latents), -1)

    def _encode(self, steps: list[int], encoder: WorldEncoder) -> None:
        if not steps:
            return
        oldest = self._n_seen - len(self._frames)
        windows = {}
        for camera in self.cameras:
            clips = [
                torch.stack(
                    [
                        self._frames[max(step - i * self.window_stride, 0) - oldest][camera]
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
