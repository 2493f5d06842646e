"""The estimate: what it counts is what is sent."""

from __future__ import annotations

import math

import pytest

from coc_tools.config import KeyframesConfig, PricesConfig
from coc_tools.cost import estimate, image_sizes
from tests.coc.helpers import builder_of
from world_modality_core.io.errors import ConfigError


@pytest.mark.parametrize(
    "options",
    [
        {"kind": "start_mid_end"},
        {"kind": "uniform", "n_frames": 15, "n_per_sheet": 6, "n_columns": 4},
        {"n_frames": 13},
        {"n_frames": 4, "use_sheets": False},
        {"n_frames": 2, "frame_width_px": 100},
    ],
)
def test_images_are_counted_as_they_are_sent(reader, options):
    builder, config = builder_of(reader, **options), KeyframesConfig(**options)
    prices = PricesConfig(input_per_million=2.0, output_per_million=3.0, px_per_token_side=28, tokens_per_reply=500)
    requests = [builder.build(reader[episode]) for episode in range(4)]
    images = [shown for request in requests for shown in request.images]
    shown_per_camera = [n_frames(request, reader) for request in requests]
    expected = [size for n in shown_per_camera for _ in reader.cameras for size in image_sizes(n, 32, 32, config)]
    assert [shown.image.size[::-1] for shown in images] == expected
    found = estimate(reader, range(4), reader.cameras, config, "x" * 400, prices)
    assert found.n_images == len(images) and found.n_episodes == 4
    assert found.n_frames == sum(len(shown.timestamps) for shown in images)
    tokens = sum(math.ceil(s.image.width / 28) * math.ceil(s.image.height / 28) for s in images)
    assert found.n_input_tokens == tokens + 4 * (100 + 150) and found.n_output_tokens == 2000
    assert found.money == pytest.approx((found.n_input_tokens * 2 + 2000 * 3) / 1e6)


def n_frames(request, reader) -> int:
    """Frames of one camera that a request shows."""
    return sum(len(shown.timestamps) for shown in request.images if shown.camera == reader.cameras[0])


def test_without_images_or_prices(reader):
    free = estimate(reader, [0, 1], [], KeyframesConfig(), "x", PricesConfig())
    assert (free.n_images, free.n_input_tokens, free.money) == (0, 0, 0.0)
    unknown = estimate(reader, [0], reader.cameras, KeyframesConfig(), "x", PricesConfig())
    assert unknown.money is None and "unknown" in str(unknown)
    with pytest.raises(ConfigError, match="give both or neither"):
        PricesConfig(input_per_million=1.0)
