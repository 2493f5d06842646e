"""Choosing the frames of an episode that a model is shown.

`start_mid_end` is the seed's choice. `events` looks for the moments where something changes: the gripper opens or
closes, the robot comes to a stop, the world latents turn. What is left of the budget fills the widest gaps, so that
every part of the episode is seen.
"""

from __future__ import annotations

import numpy as np

from coc_tools.config import KeyframesConfig
from coc_tools.episodes import Episode, SignalDimension

# Part of its range that a gripper signal must cross to count as opening or closing: noise in the middle is no change.
_HYSTERESIS = 0.2
# A stop is a minimum of speed below this share of the episode's median speed.
_STOP = 0.5


def n_keyframes(n_frames: int, config: KeyframesConfig) -> int:
    """How many frames `keyframes` chooses from an episode of `n_frames` frames."""
    return min(n_frames, 3 if config.kind == "start_mid_end" else config.n_frames)


def keyframes(
    episode: Episode,
    config: KeyframesConfig,
    gripper: SignalDimension | None = None,
    latents: np.ndarray | None = None,
) -> list[int]:
    """Choose the frames to show.

    Args:
        episode: The episode.
        config: Kind and number.
        gripper: Which signal is the gripper's; None for no events of the gripper.
        latents: (t, p * d) world latents of the episode, if there are any.

    Returns:
        Positions in the episode, increasing, `n_keyframes(episode.n_frames, config)` of them.
    """
    t, n = episode.n_frames, n_keyframes(episode.n_frames, config)
    if config.kind != "events" or n < 3:
        return evenly(t, n)
    chosen = {0, t - 1}
    for moments in _events(episode, gripper, latents):
        for position in moments:
            if len(chosen) < n:
                chosen.add(int(position))
    while len(chosen) < n:
        positions = sorted(chosen)
        widths = np.diff(positions)
        widest = int(np.argmax(widths))
        chosen.add(positions[widest] + int(widths[widest]) // 2)
    return sorted(chosen)


def evenly(t: int, n: int) -> list[int]:
    """n positions of t, the first and the last among them, evenly spread; n must not exceed t."""
    return sorted({round(x) for x in np.linspace(0, t - 1, n)}) if n > 1 else [0]


def _events(episode: Episode, gripper: SignalDimension | None, latents: np.ndarray | None) -> list[list[int]]:
    """Moments of change, most telling kind first, within a kind the strongest first."""
    found = [gripper_changes(episode.signal(gripper))] if gripper else []
    if latents is not None:
        found.append(change_points(latents))
    motion = episode.state if episode.state is not None else episode.action
    found.append(stops(motion))
    return found


def gripper_changes(signal: np.ndarray) -> list[int]:
    """Positions where a gripper signal (t,) crosses the middle of its range for good; [] for a signal that is flat."""
    if np.ptp(signal) < 1e-3:
        return []
    middle, margin = (signal.max() + signal.min()) / 2, _HYSTERESIS * np.ptp(signal)
    side = np.where(signal > middle + margin / 2, 1, np.where(signal < middle - margin / 2, -1, 0))
    changes, current = [], 0
    for position, value in enumerate(side):
        if value and value != current:
            if current:
                changes.append(position)
            current = value
    return changes


def stops(motion: np.ndarray | None) -> list[int]:
    """Local minima of speed that lie well below the usual speed, slowest first; motion is (t, s)."""
    if motion is None or len(motion) < 5:
        return []
    scale = motion.std(axis=0)
    speed = np.linalg.norm(np.diff(motion[:, scale > 0], axis=0) / scale[scale > 0], axis=1)
    speed = np.convolve(np.pad(speed, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    slow = [
        i
        for i in range(1, len(speed) - 1)
        if speed[i] <= speed[i - 1] and speed[i] < speed[i + 1] and speed[i] < _STOP * np.median(speed)
    ]
    return sorted(slow, key=lambda i: speed[i])


def change_points(latents: np.ndarray, half_window: int = 3) -> list[int]:
    """Frames between unlike stretches of latents (t, p * d), the greatest change first.

    The change at frame i is the distance between the mean latents of the `half_window` frames before it and from it on;
    local maxima above the mean change count.
    """
    t = len(latents)
    if t < 2 * half_window + 1:
        return []
    total = np.concatenate([np.zeros((1, latents.shape[1])), np.cumsum(latents, axis=0, dtype=np.float64)])
    means = (total[half_window:] - total[:-half_window]) / half_window  # means[i] is over frames i, ..., i + w - 1
    change = np.linalg.norm(means[half_window:] - means[:-half_window], axis=1)  # change[i] is at frame i + w
    peaks = [
        i
        for i in range(1, len(change) - 1)
        if change[i] >= change[i - 1] and change[i] > change[i + 1] and change[i] > change.mean()
    ]
    return [i + half_window for i in sorted(peaks, key=lambda i: -change[i])]
