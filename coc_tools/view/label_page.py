"""What a page of labels shows of each episode, and the page itself."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np
from PIL import Image

from coc_tools.episodes import Episode
from coc_tools.schema import EpisodeLabel, LabelStep
from world_modality_core.io.quoting import quoted


@dataclass(frozen=True)
class Frame:
    """A picture of the filmstrip: its time (s), and itself as a data URI."""

    time_s: float
    uri: str


@dataclass(frozen=True)
class Block:
    """A step on the timeline.

    Attributes:
        number: from 1, as in the list of steps.
        left, width: per cent of the episode.
        row: 0, or higher where steps overlap.
        step: the step.
    """

    number: int
    left: float
    width: float
    row: int
    step: LabelStep


@dataclass(frozen=True)
class Lane:
    """One label set's view of an episode.

    Attributes:
        name: of the label set.
        label: None if it has none of this episode.
        blocks: its steps.
        n_rows: rows that they need.
    """

    name: str
    label: EpisodeLabel | None
    blocks: list[Block]
    n_rows: int


@dataclass(frozen=True)
class Card:
    """One episode of the page.

    Attributes:
        episode: its index.
        task: its instruction.
        length_s: its length.
        n_frames: frames of the recording.
        frames: the filmstrip, evenly over the episode.
        curve: points "x,y x,y ..." of the gripper in a box of 100 by 100, y down; "" without a signal.
        lanes: one per label set.
        ticks: (per cent, text) of the time axis.
    """

    episode: int
    task: str
    length_s: float
    n_frames: int
    frames: list[Frame]
    curve: str
    lanes: list[Lane]
    ticks: list[tuple[float, str]]


def make_card(
    episode: Episode,
    label_sets: Mapping[str, Mapping[int, EpisodeLabel]],
    camera: str | None,
    n_frames: int,
    frame_width_px: int,
    gripper: np.ndarray | None,
    gripper_range: tuple[float, float],
) -> Card:
    """Collect what the page shows of an episode.

    Args:
        episode: the episode.
        label_sets: name -> labels by episode.
        camera: of the filmstrip; None for none.
        n_frames: pictures of the filmstrip.
        frame_width_px: their width.
        gripper: (t,) signal, or None.
        gripper_range: values that are drawn at the bottom and the top.
    """
    n = min(n_frames, episode.n_frames)
    # The middle of each n-th of the episode, so that a picture stands above its own time.
    positions = [int((k + 0.5) * episode.n_frames / n) for k in range(n)] if camera else []
    frames = [
        Frame(position / episode.fps, picture_uri(image, frame_width_px))
        for position, image in zip(positions, episode.frames(camera, positions) if positions else [], strict=True)
    ]
    return Card(
        episode=episode.index,
        task=episode.task,
        length_s=episode.length_s,
        n_frames=episode.n_frames,
        frames=frames,
        curve=curve_points(gripper, *gripper_range) if gripper is not None else "",
        lanes=[make_lane(name, labels.get(episode.index), episode.length_s) for name, labels in label_sets.items()],
        ticks=time_ticks(episode.length_s),
    )


def make_lane(name: str, label: EpisodeLabel | None, length_s: float) -> Lane:
    """Place a label's steps on the timeline, overlapping ones below each other."""
    blocks: list[Block] = []
    ends: list[float] = []  # per row, where its last step ends
    for number, step in enumerate(label.steps if label else [], start=1):
        # A hundredth of a second of overlap is rounding.
        row = next((k for k, end in enumerate(ends) if step.start_s >= end - 0.01), len(ends))
        ends[row:] = [step.end_s, *ends[row + 1 :]]
        left = min(100.0, 100 * step.start_s / length_s)
        width = min(100 - left, 100 * (step.end_s - step.start_s) / length_s)
        blocks.append(Block(number, round(left, 3), round(width, 3), row, step))
    return Lane(name, label, blocks, max(1, len(ends)))


def curve_points(signal: Sequence[float] | np.ndarray, low: float, high: float) -> str:
    """SVG points of a signal in a box of 100 by 100; each frame is a level from its own time to the next one's."""
    span = high - low or 1.0
    heights = 95 - 90 * (np.asarray(signal, dtype=float) - low) / span
    edges = np.linspace(0, 100, len(heights) + 1)
    points = [(x, y) for k, y in enumerate(heights) for x in (edges[k], edges[k + 1])]
    return " ".join(f"{x:.2f},{y:.1f}" for x, y in points)


def time_ticks(length_s: float) -> list[tuple[float, str]]:
    """(per cent, text) of round times, four to ten of them."""
    raw = length_s / 8
    unit = 10.0 ** np.floor(np.log10(raw))
    every = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    digits = max(0, -int(np.floor(np.log10(every) + 1e-9)))
    times = np.arange(0, length_s * 0.97, every)
    return [(round(100 * float(t) / length_s, 3), f"{t:.{digits}f} s") for t in times]


def picture_uri(image: Image.Image, width_px: int) -> str:
    """An image as a WebP data URI, no wider than asked."""
    if image.width > width_px:
        image = image.resize((width_px, max(1, round(image.height * width_px / image.width))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(str(text).encode()).digest()).decode()


def render(title: str, note: str, names: Sequence[str], cards: Iterable[Card]) -> Iterator[str]:
    """The page in pieces, so that it never has to be in memory as a whole.

    Args:
        title: heading.
        note: a line below it.
        names: of the label sets.
        cards: read one at a time.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["sha256"] = _sha256
    page = environment.get_template("page.html.jinja")
    return map(quoted, page.generate(title=title, note=note, names=names, cards=cards))
