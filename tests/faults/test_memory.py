"""An encoder whose batch does not fit into memory: halved and said once, with the same latents; or refused by name."""

import numpy as np
import pytest
import torch

from tests.faults.commands import run
from tests.faults.little_memory import N, make_encoder, make_frames
from world_modality_core.encoders import base

SIZE = 384
FRAMES = make_frames(SIZE)


@pytest.fixture(scope="module")
def encoder():
    return make_encoder(SIZE)


@pytest.fixture(scope="module")
def latents(encoder):
    return encoder.encode(FRAMES).half().numpy()


def encode_with(megabytes, size, tmp_path):
    """Encode in a process of its own: what other tests left free in this heap would be used before a limit counts."""
    words = str(megabytes), str(size), str(tmp_path / "l.npy")
    return run("little_memory:main", *words, log=tmp_path / "log")


def test_a_batch_that_does_not_fit_is_halved_until_it_does(latents, tmp_path):
    done = encode_with(160, SIZE, tmp_path)
    assert done.status == 0, done.err[-3000:]
    assert int(done.out) in (1, 2, 4)  # positive control: it did not fit
    assert done.err.count("need more memory than cpu has; going on with fewer") == 1
    # Another batch size sums in another order: equal to what float16, in which latents are stored, can tell.
    found = np.load(tmp_path / "l.npy")
    assert np.mean(found == latents) > 0.99
    np.testing.assert_allclose(found.astype(float), latents.astype(float), rtol=2e-3, atol=1e-4)


def test_where_one_frame_does_not_fit_it_is_told(tmp_path):
    done = encode_with(100, 4096, tmp_path)  # 200 MB a frame
    assert done.status == 1 and not (tmp_path / "l.npy").exists()
    assert done.told.startswith("wm-x: encoder.height_px=4096, encoder.width_px=4096: a single frame needs more memory")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to"), MemoryError()])
def test_what_is_halved(encoder, latents, monkeypatch, error):
    """As an accelerator reports it: batches of the caller's size, of which at most three frames fit."""
    monkeypatch.setattr(base, "_CPU_CHUNK", N)
    monkeypatch.setattr(encoder, "_fits", None)
    pooled, sizes = encoder._pooled, []

    def at_most_three(images):
        sizes.append(len(images))
        if len(images) > 3:
            raise error
        return pooled(images)

    monkeypatch.setattr(encoder, "_pooled", at_most_three)
    found = encoder.encode(FRAMES).half().numpy()
    assert sizes == [8, 4, *[2] * 4]
    np.testing.assert_allclose(found.astype(float), latents.astype(float), rtol=2e-3, atol=1e-4)
    assert encoder.encode(FRAMES).shape[0] == N and sizes[6:] == [2] * 4  # remembered


def test_other_errors_are_not_halved(encoder, monkeypatch):
    def broken(images):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(encoder, "_pooled", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        encoder.encode(FRAMES)
