"""Rollout history: the same windows as training reads, each frame encoded once, environments kept apart."""

import numpy as np
import pytest
import torch

from world_modality_core.encoders.windows import causal_windows
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.latents.latent_table import LatentTable

CAMERAS = ["observation.image", "observation.image2"]
N_ENVS = 2


class TaggingEncoder:
    """A stand-in for a world encoder whose latent is the mean brightness of each camera and window frame."""

    def __init__(self):
        self.calls = []

    def encode(self, frames):
        self.calls.append(frames[CAMERAS[0]].shape[0])
        return torch.stack([frames[camera].flatten(2).mean(-1) for camera in CAMERAS], dim=1)  # (n, p=v, d=m)


def frame(step):
    """Brightness 10 * step + environment; the second camera is 500 brighter."""
    images = torch.ones(N_ENVS, 3, 2, 2) * (10.0 * step + torch.arange(N_ENVS)).view(-1, 1, 1, 1)
    return {CAMERAS[0]: images, CAMERAS[1]: images + 500}


def history(t=3, stride=1, m=1, window_stride=1, every=1):
    return FrameHistory(CAMERAS, t, stride, m, window_stride, every=every)


@pytest.mark.parametrize(
    ("stride", "m", "window_stride", "every"),
    [(1, 1, 1, 1), (2, 1, 1, 1), (1, 3, 1, 1), (2, 2, 3, 1), (2, 1, 1, 2), (6, 1, 1, 3), (4, 2, 3, 4)],
)
def test_live_history_equals_the_gather_from_a_table(tmp_path, stride, m, window_stride, every):
    n_steps, t = 12, 3
    clip = torch.stack([frame(step)[CAMERAS[0]] for step in range(n_steps)], dim=1)  # (env, T, c, h, w)
    rows = []
    for env in range(N_ENVS):
        windows = causal_windows(clip[env], m, window_stride)
        latents = TaggingEncoder().encode({CAMERAS[0]: windows, CAMERAS[1]: windows + 500}).flatten(1)
        rows.append(latents[torch.arange(n_steps) // every * every])
    table = torch.cat(rows).half().numpy()
    np.save(tmp_path / "table.npy", table)
    bounds = np.array([[0, n_steps], [n_steps, 2 * n_steps]])
    table = LatentTable(tmp_path / "table.npy", None, bounds)

    live, encoder = history(t, stride, m, window_stride, every), TaggingEncoder()
    for step in range(n_steps):
        live.append(frame(step))
        latents, is_pad = live.latents(encoder)
        index = torch.tensor([step, n_steps + step])
        expected, expected_is_pad = table.gather(index, [-i * stride for i in reversed(range(t))])
        torch.testing.assert_close(latents.flatten(2), expected.float())
        assert torch.equal(is_pad, expected_is_pad)
    assert live.n_encoded == -(-n_steps // every)


def test_only_what_a_replan_needs_is_encoded_and_each_frame_once():
    live, encoder = history(t=4), TaggingEncoder()
    for step in range(40):
        live.append(frame(step))
        if step % 10 == 0:
            live.latents(encoder)
    assert encoder.calls == [1 * N_ENVS] + [4 * N_ENVS] * 3  # one batch per re-plan
    assert live.n_encoded / 40 <= 0.4
    overlapping = history(t=4)
    for step in range(40):
        overlapping.append(frame(step))
        overlapping.latents(encoder)
    assert overlapping.n_encoded == 40


def test_clear_starts_a_new_episode():
    live, encoder = history(), TaggingEncoder()
    for step in range(5):
        live.append(frame(step))
    live.latents(encoder)
    live.clear()
    live.append(frame(7))
    latents, is_pad = live.latents(encoder)
    assert is_pad.tolist() == [[True, True, False]] * N_ENVS
    assert (latents[0, :, 0] == 70).all()
    live.clear()
    live.append({camera: image[:1] for camera, image in frame(0).items()})  # another number of environments
    assert live.latents(encoder)[0].shape[0] == 1


def test_what_is_wrong_is_named():
    live = history()
    with pytest.raises(ValueError, match="observation.image2.*rename_map"):
        live.append({CAMERAS[0]: torch.zeros(1, 3, 2, 2)})
    live.append(frame(0))
    with pytest.raises(ValueError, match="number of environments changed from 2 to 1"):
        live.append({camera: image[:1] for camera, image in frame(1).items()})


def test_a_frame_that_comes_late_takes_its_place_and_one_that_is_too_old_leaves_it_empty():
    live, encoder = FrameHistory(CAMERAS, 3, 5, 1, 1, tolerance=2), TaggingEncoder()
    for step in (100, 110, 106):  # wanted: 100, 105, 110
        live.append(frame(step), step)
    latents, is_pad = live.latents(encoder)
    assert latents[0, :, 0, 0].tolist() == [1000, 1060, 1100] and not is_pad.any()
    live.append(frame(150), 150)
    latents, is_pad = live.latents(encoder)
    assert is_pad[0].tolist() == [True, True, False] and latents[0, -1, 0, 0] == 1500
    assert live.needed([106, 110, 140, 150, 154, 156], 160) == [3, 4]  # nearest to 150 and 155
    with pytest.raises(ValueError, match="step=110 is long before step 150"):
        live.append(frame(110), 110)


def test_by_a_clock_every_nth_step_counts_from_the_first_frame():
    live, encoder = FrameHistory(CAMERAS, 2, 4, 1, 1, tolerance=1, every=4), TaggingEncoder()
    for step in (103, 105, 106, 107, 110):
        live.append(frame(step), step)
        latents, is_pad = live.latents(encoder)
        assert latents[0, -1, 0, 0] == (1030 if step < 107 else 1070) and is_pad[0].tolist() == [step < 107, False]
    assert live.n_encoded == 2 and live.needed([103, 105, 106, 107, 110], 112) == [3, 4]
