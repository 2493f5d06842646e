"""What a run costs, before it starts: images, tokens and, given prices, money.

Tokens of images follow from their size as vision-language models of the Qwen family count them: one per square of
`prices.px_per_token_side` pixels. Text is taken as four characters a token. Retries are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coc_tools.config import KeyframesConfig, PricesConfig
from coc_tools.episodes import EpisodeReader
from coc_tools.keyframes import n_keyframes

_CHARACTERS_PER_TOKEN = 4
# The block of data of an episode: task, times, a few earlier annotations.
_DATA_TOKENS = 150


@dataclass
class Estimate:
    """What a run will need.

    Attributes:
        n_episodes: Episodes to label.
        n_frames: Frames that are read.
        n_images: Images that are sent.
        n_input_tokens: Tokens read by the model.
        n_output_tokens: Tokens written by it.
        money: Their price, or None without prices.
    """

    n_episodes: int
    n_frames: int
    n_images: int
    n_input_tokens: int
    n_output_tokens: int
    money: float | None

    def __str__(self) -> str:
        money = "unknown (give prices.input_per_million and prices.output_per_million)"
        money = money if self.money is None else f"about {self.money:,.2f}"
        return "\n".join([
            f"Episodes   {self.n_episodes:,} to label",
            f"Images     {self.n_images:,} of {self.n_frames:,} frames",
            f"Tokens     about {self.n_input_tokens:,} in, {self.n_output_tokens:,} out, without retries",
            f"Money      {money}",
        ])  # fmt: skip


def estimate(
    reader: EpisodeReader,
    episodes: Sequence[int],
    cameras: Sequence[str],
    keyframes: KeyframesConfig,
    prompt: str,
    prices: PricesConfig,
) -> Estimate:
    """Estimate a run from the dataset's metadata; no frame is decoded.

    Args:
        reader: The dataset.
        episodes: Episodes to label.
        cameras: Cameras that are shown; none for a backend without images.
        keyframes: Which frames.
        prompt: Text of the prompt.
        prices: Prices and token sizes.
    """
    per_camera = {camera: reader.frame_size(camera) for camera in cameras}
    n_frames = n_images = image_tokens = 0
    lengths = reader.lengths()
    for episode in episodes:
        n = n_keyframes(int(lengths[episode]), keyframes)
        for height, width in per_camera.values():
            sizes = image_sizes(n, height, width, keyframes)
            n_frames, n_images = n_frames + n, n_images + len(sizes)
            image_tokens += sum(
                math.ceil(h / prices.px_per_token_side) * math.ceil(w / prices.px_per_token_side) for h, w in sizes
            )
    text = math.ceil(len(prompt) / _CHARACTERS_PER_TOKEN) + _DATA_TOKENS
    n_input = image_tokens + text * len(episodes) if cameras else 0
    n_output = prices.tokens_per_reply * len(episodes) if cameras else 0
    money = None if cameras else 0.0
    if prices.input_per_million is not None:
        money = (n_input * prices.input_per_million + n_output * prices.output_per_million) / 1e6
    return Estimate(len(episodes), n_frames, n_images, n_input, n_output, money)


def image_sizes(n: int, height: int, width: int, config: KeyframesConfig) -> list[tuple[int, int]]:
    """(height, width) of each image that n frames of one camera are sent as."""
    if not config.use_sheets:
        return [(height, width)] * n
    per_sheet = min(config.n_per_sheet, n)
    columns = min(config.n_columns, per_sheet)
    tile = max(1, round(height * config.frame_width_px / width))
    sheet = (tile * math.ceil(per_sheet / columns), config.frame_width_px * columns)
    return [sheet] * math.ceil(n / per_sheet)
