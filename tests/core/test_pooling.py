"""Pooling and windows, on values that say where they come from."""

import pytest
import torch

from world_modality_core.encoders.pooling import LayerFeatures, pool
from world_modality_core.encoders.spec import parse_pooling
from world_modality_core.encoders.windows import causal_windows
from world_modality_core.io.errors import ConfigError


def tagged(n: int = 2, d: int = 3, rows: int = 4, cols: int = 6) -> LayerFeatures:
    """Features whose value is 1000 * frame + 100 * channel + 10 * row + column."""
    axes = torch.meshgrid(*(torch.arange(k, dtype=torch.float32) for k in (n, d, rows, cols)), indexing="ij")
    patches = sum(scale * axis for scale, axis in zip((1000, 100, 10, 1), axes, strict=True))
    return LayerFeatures(patches, cls=-patches[:, :, 0, 0])


def pooled(pooling: str, features: LayerFeatures) -> torch.Tensor:
    (part,) = parse_pooling(pooling)
    tokens = pool(features, part)
    assert tokens.shape[1] == part.n_tokens and tokens.dtype == torch.float32
    return tokens


def test_cls_and_mean():
    features = tagged()
    assert torch.equal(pooled("cls", features)[:, 0], features.cls)
    # The mean row is 1.5 and the mean column 2.5.
    expected = torch.tensor([[17.5, 117.5, 217.5], [1017.5, 1117.5, 1217.5]])
    torch.testing.assert_close(pooled("mean", features)[:, 0], expected)
    torch.testing.assert_close(pooled("grid:1x1", features), pooled("mean", features))


def test_grid_cells_are_in_reading_order():
    tokens = pooled("grid:2x3", tagged())
    # Cell (i, j) averages rows 2i, 2i+1 and columns 2j, 2j+1.
    expected = torch.tensor([10 * (2 * i + 0.5) + 2 * j + 0.5 for i in range(2) for j in range(3)])
    for frame in range(2):
        for channel in range(3):
            torch.testing.assert_close(tokens[frame, :, channel], expected + 1000 * frame + 100 * channel)


def test_a_grid_that_does_not_divide_is_adaptive():
    tokens = pooled("grid:3x4", tagged())
    # Row cells of 4 patches in 3: {0,1}, {1,2}, {2,3}; column cells of 6 in 4: {0,1}, {1,2}, {3,4}, {4,5}.
    expected = torch.tensor([10 * row + col for row in (0.5, 1.5, 2.5) for col in (0.5, 1.5, 3.5, 4.5)])
    torch.testing.assert_close(tokens[1, :, 2], expected + 1200)


def test_s2d_keeps_every_patch_of_a_cell():
    tokens = pooled("s2d:2x3", tagged())
    assert tokens.shape == (2, 6, 2 * 2 * 3)
    for frame in range(2):
        for i in range(2):
            for j in range(3):
                expected = [
                    1000 * frame + 100 * channel + 10 * (2 * i + row) + 2 * j + col
                    for row in range(2)
                    for col in range(2)
                    for channel in range(3)
                ]
                assert tokens[frame, 3 * i + j].tolist() == expected


@pytest.mark.parametrize(
    "pooling, message",
    [
        ("s2d:3x3", "4x6 patches of layer -1 do not divide into 3x3"),
        ("s2d:2x4", "do not divide into 2x4"),
        ("grid:5x5", "only 4x6 patches"),
        ("s2d:8x12", "only 4x6 patches"),
    ],
)
def test_cells_that_do_not_fit_are_refused(pooling, message):
    with pytest.raises(ConfigError, match=message):
        pooled(pooling, tagged())


def test_cls_without_a_class_token_is_refused():
    with pytest.raises(ConfigError, match="no class token"):
        pooled("cls", LayerFeatures(torch.zeros(1, 2, 3, 3)))


@pytest.mark.parametrize("m, stride", [(1, 1), (1, 3), (2, 1), (3, 2), (4, 5)])
def test_windows_end_at_their_frame_and_repeat_the_first(m, stride):
    frames = torch.arange(6.0)[:, None, None, None].expand(6, 3, 2, 2)
    windows = causal_windows(frames, m, stride)
    assert windows.shape == (6, m, 3, 2, 2)
    for t in range(6):
        expected = [max(0, t - i * stride) for i in reversed(range(m))]
        assert windows[t, :, 0, 0, 0].tolist() == expected


def test_windows_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        causal_windows(torch.zeros(2, 3, 4, 4), 0, 1)
    with pytest.raises(ValueError, match="at least 1"):
        causal_windows(torch.zeros(2, 3, 4, 4), 2, 0)
    with pytest.raises(ValueError, match=r"expected \(t, c, h, w\)"):
        causal_windows(torch.zeros(2, 1, 3, 4, 4), 2, 1)
