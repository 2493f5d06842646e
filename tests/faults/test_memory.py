"""An encoder whose batch does not fit into memory: halved and said once, with the same latents; or refused by name."""

import re
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.faults.commands import run
from world_modality_core.encoders import base, make_world_encoder
from world_modality_core.encoders.spec import EncoderSpec
from world_modality_core.io.commands import command_errors

CAMERA, SIZE, N = "observation.image", 384, 8
FRAMES = {CAMERA: torch.randint(0, 256, (N, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(0)).byte()}


@pytest.fixture(scope="module")
def encoder():
    spec = EncoderSpec(family="efficientnet_lite0", cameras=[CAMERA], height_px=SIZE, width_px=SIZE, pooling="grid:2x2")
    return make_world_encoder(spec)


@pytest.fixture(scope="module")
def latents(encoder):
    return encoder.encode(FRAMES).half().numpy()


def address_space() -> int:
    return int(re.search(r"VmSize:\s+(\d+)", open("/proc/self/status").read())[1]) << 10


def encode_with(encoder, megabytes: int, path):
    """A command that encodes all frames, with so much address space left."""

    def main():
        # What other tests of this process left free in its heap would be used before the limit counts.
        held, before = [], address_space()
        while address_space() == before:
            held.append(torch.empty(1 << 20, dtype=torch.uint8))
        limit = address_space() + (megabytes << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        with command_errors("wm-x"):
            first, second = encoder.encode(FRAMES), encoder.encode(FRAMES)
        assert torch.equal(first, second)
        np.save(path, first.half().numpy())
        print(encoder._fits)

    return main


def test_a_batch_that_does_not_fit_is_halved_until_it_does(encoder, latents, tmp_path):
    done = run(encode_with(encoder, 160, tmp_path / "l.npy"), log=tmp_path / "log")
    assert done.status == 0, done.err[-3000:]
    assert int(done.out) in (1, 2, 4)  # positive control: it did not fit
    assert done.err.count("need more memory than cpu has; going on with fewer") == 1
    # Another batch size sums in another order: equal to what float16, in which latents are stored, can tell.
    found = np.load(tmp_path / "l.npy")
    assert np.mean(found == latents) > 0.99
    np.testing.assert_allclose(found.astype(float), latents.astype(float), rtol=2e-3, atol=1e-4)


def test_where_one_frame_does_not_fit_it_is_told(encoder, monkeypatch, tmp_path):
    monkeypatch.setattr(encoder, "spec", replace(encoder.spec, height_px=4096, width_px=4096))  # 200 MB a frame
    done = run(encode_with(encoder, 100, tmp_path / "l.npy"), log=tmp_path / "log")
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
