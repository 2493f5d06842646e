"""A guard where frames are born: a renderer that went blank or froze stops the run instead of spoiling it.

A lost OpenGL context raises nothing: MuJoCo draws into nowhere and hands out zeros, or whatever was in memory, in a
tenth of the usual time, and a policy that cannot see fails every episode without a word. Two signs are certain enough
to stop on:

* blank: no colour channel varies over the image by `MIN_CONTRAST` levels or more. Of 15,000 frames
  of all 50 tasks the flattest spans 175.
* frozen: the image is bit for bit what it was while the hand has since travelled `min_motion_m` or more. A robot at
  rest, or one that moves by less than two pixels' worth, is never reported.
"""

from __future__ import annotations

import os

import numpy as np

from world_modality_core.io.errors import UserError

MIN_CONTRAST = 8
"""Levels of 255. A constant image has 0; the flattest frame of all 50 tasks, at 32 px, has 175."""

VIEW_WIDTH_M = 1.28
"""About what the image spans at the robot's distance in the stock camera, so that two pixels at 128 px are 2 cm."""

REMEDY = (
    "The OpenGL context of this renderer was lost or destroyed. Start a fresh process (one process per task if it "
    "comes back), keep each environment in the thread that made it, and try the other offscreen renderer "
    "(MUJOCO_GL=egl or MUJOCO_GL=osmesa). Frames since the last good one must not be used."
)


class BlankFrameError(UserError, RuntimeError):
    """A frame without contrast came out of a renderer."""


class FrozenFrameError(UserError, RuntimeError):
    """A renderer repeated a frame, bit for bit, while the robot moved."""


class FrameGuard:
    """Checks each frame of one environment against the robot's motion.

    Args:
        task: the task's name, for the messages.
        min_motion_m: how far the hand must have travelled for a repeated image to be a fault, in metres. None: two
            pixels' worth at the size of the frame.
    """

    def __init__(self, task: str, min_motion_m: float | None = None):
        self.task = task
        self.min_motion_m = min_motion_m
        self.start_episode()

    def start_episode(self) -> None:
        """Forget the last frame: a reset may show the same scene from the same pose."""
        self._frame: np.ndarray | None = None
        self._position: np.ndarray | None = None

    def check(self, frame: np.ndarray, position: np.ndarray, step: int) -> None:
        """Accept a frame or raise.

        Args:
            frame: (height, width, 3) uint8 as the policy will see it.
            position: (3,) the hand's position in metres when the frame was rendered.
            step: steps since the reset, for the messages.

        Raises:
            BlankFrameError: no channel has any contrast.
            FrozenFrameError: the very image of an earlier frame, while the hand moved on.
        """
        sample = frame[::2, ::2].reshape(-1, frame.shape[-1])
        contrast = int(np.ptp(sample, axis=0).max())
        if contrast < MIN_CONTRAST:
            raise BlankFrameError(
                f"{self._where(step)}: blank frame (its values span {contrast} of 255 levels; {MIN_CONTRAST} is the "
                f"least that counts as a picture). {REMEDY}"
            )
        if self._frame is None or not np.array_equal(frame, self._frame):
            self._frame, self._position = frame.copy(), np.array(position, dtype=np.float64)
            return
        moved_m = float(np.linalg.norm(position - self._position))
        limit_m = self.min_motion_m or 2 * VIEW_WIDTH_M / min(frame.shape[:2])
        if moved_m >= limit_m:
            raise FrozenFrameError(
                f"{self._where(step)}: frozen frame (the image is identical, bit for bit, although the hand has moved "
                f"{moved_m:.3f} m since it was first seen; {limit_m:.3f} m is the limit). {REMEDY}"
            )

    def _where(self, step: int) -> str:
        return f"task {self.task}, step {step}, MUJOCO_GL={os.environ.get('MUJOCO_GL') or '(unset)'}"
