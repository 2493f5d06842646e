"""Charts as inline SVG: written by hand, so that they are small, follow the page's colours and hold readable text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

# Colours are CSS classes `s1` ... `s8` of the page; a ninth line starts again, dashed.
N_COLORS = 8
WIDTH, HEIGHT = 360, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 38
MAX_POINTS = 80


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        x: Horizontal values, ascending.
        y: Vertical values, as many.
        low, high: A band around `y`, as many values each; empty for none.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Chart:
    """A chart and its legend.

    Attributes:
        title: What it shows.
        svg: `<svg>...</svg>`, as wide as its container.
        legend: (class of the swatch, label) of each line; empty for a single unnamed line.
    """

    title: str
    svg: Markup
    legend: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """A horizontal axis from `low` to `high` that many strips share, with its ticks."""

    low: float
    high: float
    ticks: list[float]

    def percent(self, value: float) -> str:
        """Where a value lies, as an SVG length; values outside lie on the edge."""
        share = (value - self.low) / (self.high - self.low)
        return f"{100 * min(1.0, max(0.0, share)):.1f}%"


RATE_SCALE = Scale(0.0, 1.0, [0.0, 0.25, 0.5, 0.75, 1.0])


def scale_around(values: Sequence[float], center: float = 0.0, at_least: float = 0.1) -> Scale:
    """A scale that holds all values, symmetric about `center`, at least `at_least` to each side."""
    reach = max([at_least, *(abs(value - center) for value in values if math.isfinite(value))])
    step = nice_step(2 * reach, 4)
    half = math.ceil(reach / step - 1e-9)
    return Scale(center - half * step, center + half * step, [center + i * step for i in range(-half, half + 1)])


def nice_step(span: float, n: int) -> float:
    """The round step (1, 2, 2.5 or 5 times a power of ten) that cuts `span` into about `n` parts, at most."""
    raw = span / n
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * (1 - 1e-9))


def strip(
    scale: Scale, value: float, low: float, high: float, label: str, kind: str = "s1", zero: float | None = None
) -> Markup:
    """A dot with its interval, drawn inside a table's cell.

    Args:
        scale: The axis that the column shares.
        value: The estimate.
        low, high: Its interval.
        label: What a screen reader says.
        kind: Class of the colour.
        zero: Where to draw the line of "no difference"; None for none.
    """
    ticks = [t for t in scale.ticks if t != zero]
    parts = [Markup('<line class="tick" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(scale.percent(t)) for t in ticks]
    if zero is not None:
        parts.append(Markup('<line class="zero" x1="{0}" x2="{0}" y1="0" y2="100%"/>').format(scale.percent(zero)))
    parts.append(
        Markup('<line class="span" x1="{}" x2="{}" y1="50%" y2="50%"/><circle cx="{}" cy="50%" r="4"/>').format(
            scale.percent(low), scale.percent(high), scale.percent(value)
        )
    )
    return Markup('<svg class="strip {}" role="img" aria-label="{}">{}</svg>').format(
        kind, label, Markup("").join(parts)
    )


def strip_axis(scale: Scale, unit: float = 1.0) -> Markup:
    """The tick labels above a column of strips; `unit` is what one is written as (100 for per cent)."""
    # Three of them have room on a phone.
    named = {"start": scale.ticks[0], "middle": scale.ticks[len(scale.ticks) // 2], "end": scale.ticks[-1]}
    labels = [
        Markup('<text x="{}" y="75%" text-anchor="{}">{}</text>').format(
            scale.percent(tick), anchor, number(unit * tick)
        )
        for anchor, tick in named.items()
    ]
    return Markup('<svg class="strip axis" aria-hidden="true">{}</svg>').format(Markup("").join(labels))


def number(value: float) -> str:
    """A short number: "0", "2.5", "1200", "3e-05"."""
    text = f"{value:.4g}"
    return {"-0": "0"}.get(text, text)


def _steps(low: float, high: float, n: int) -> list[float]:
    step = nice_step(high - low, n)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _tick_text(value: float) -> str:
    return f"{number(value / 1000)}k" if abs(value) >= 10_000 else number(value)


def _thin(line: Line) -> Line:
    """At most about `MAX_POINTS` of a line's points, the first and the last among them."""
    every = math.ceil(len(line.x) / MAX_POINTS)
    return _at(line, sorted({0, *range(len(line.x) - 1, -1, -every)}))


def _only_finite(line: Line) -> Line:
    points = zip(line.x, line.y, strict=True)
    return _at(line, [i for i, (x, y) in enumerate(points) if math.isfinite(x) and math.isfinite(y)])


def _at(line: Line, indices: Sequence[int]) -> Line:
    """Some points of a line."""
    x, y, low, high = (
        [float(values[i]) for i in indices] if len(values) else [] for values in (line.x, line.y, line.low, line.high)
    )
    return Line(line.label, x, y, low, high)


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    zero: bool = False,
    reference: float | None = None,
    whole_x: bool = False,
) -> Chart | None:
    """Draw lines.

    Args:
        title: What the chart shows.
        lines: The lines; values that are not finite are left out.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        zero: Let the vertical axis start at 0, or reach it.
        reference: A value to draw a quiet horizontal line at.
        whole_x: Horizontal ticks at whole numbers only.

    Returns:
        None without a single point to draw.
    """
    lines = [_thin(line) for line in map(_only_finite, lines) if line.x]
    if not lines:
        return None
    xs = [x for line in lines for x in line.x]
    ys = [y for line in lines for values in (line.y, line.low, line.high) for y in values if math.isfinite(y)]
    ys += [0.0] if zero else []
    ys += [reference] if reference is not None else []
    x_low, x_high = _padded(min(xs), max(xs), 0)
    y_low, y_high = _padded(min(ys), max(ys), 0.04)

    def at_x(x: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (x - x_low) / (x_high - x_low)

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_low) / (y_high - y_low)

    def path(xs: Sequence[float], ys: Sequence[float]) -> str:
        return " ".join(f"{at_x(x):.1f},{at_y(y):.1f}" for x, y in zip(xs, ys, strict=True))

    parts = []
    for tick in _steps(y_low, y_high, 5):
        y = f"{at_y(tick):.1f}"
        parts.append(Markup('<line class="tick" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
        parts.append(
            Markup('<text x="{}" y="{}" text-anchor="end" dy="3.5">{}</text>').format(LEFT - 5, y, _tick_text(tick))
        )
    ticks = _steps(x_low, x_high, 5)
    for tick in [t for t in ticks if t == round(t)] if whole_x else ticks:
        parts.append(
            Markup('<text x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
                at_x(tick), HEIGHT - BOTTOM + 14, _tick_text(tick)
            )
        )
    if reference is not None:
        y = f"{at_y(reference):.1f}"
        parts.append(Markup('<line class="zero" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(LEFT, WIDTH - RIGHT, y, y))
    legend = []
    for i, line in enumerate(lines):
        kind = f"s{i % N_COLORS + 1}" + (" dashed" if i >= N_COLORS else "")
        legend.append((kind, line.label))
        drawn = []
        if len(line.low) and len(line.x) > 1:
            band = path([*line.x, *reversed(line.x)], [*line.high, *reversed(line.low)])
            drawn.append(Markup('<polygon points="{}"/>').format(band))
        drawn.append(Markup('<polyline points="{}"/>').format(path(line.x, line.y)))
        if len(line.x) <= 16:
            drawn += [
                Markup('<circle cx="{:.1f}" cy="{:.1f}" r="2.5"/>').format(at_x(x), at_y(y))
                for x, y in zip(line.x, line.y, strict=True)
            ]
        parts.append(Markup('<g class="{}">{}</g>').format(kind, Markup("").join(drawn)))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        Markup('<text x="{}" y="{}" text-anchor="middle">{}</text>').format(
            (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_label
        )
    )
    parts.append(
        Markup('<text transform="translate(10 {}) rotate(-90)" text-anchor="middle">{}</text>').format(middle, y_label)
    )
    last = "; ".join(f"{line.label} {number(line.y[-1])}" for line in lines)
    label = f"{title}: {y_label} over {x_label}; last values: {last}"
    svg = Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, label, Markup("").join(parts)
    )
    return Chart(title, svg, legend if len(lines) > 1 or lines[0].label else [])


def _padded(low: float, high: float, share: float) -> tuple[float, float]:
    """A range with some room at both ends, wider than nothing."""
    room = (high - low) * share
    if high - low < 1e-12 * max(1.0, abs(high)):
        room = abs(high) / 2 or 0.5
    return low - room, high + room
