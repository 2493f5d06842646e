"""Charts as inline SVG in the page's colours: lines, drawn by matplotlib, and the axes of the dots in tables."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

N_COLORS = 8
"""Colours of the page: its CSS has `--series-1` ... `--series-8`, and the classes `s1` ... `s8`."""
WIDTH, HEIGHT = 360, 220
MAX_POINTS = 80
"""Points of a line that are drawn."""

# These stand for the page's colours while matplotlib draws.
_SERIES = [f"#00000{i}" for i in range(1, N_COLORS + 1)]
_QUIET, _GRID = "#00000a", "#00000b"
_STYLE = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,
    "font.size": 10.5,
    "axes.edgecolor": _GRID,
    "axes.labelcolor": _QUIET,
    "xtick.labelcolor": _QUIET,
    "ytick.labelcolor": _QUIET,
    "grid.color": _GRID,
}


@dataclass(frozen=True)
class Line:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        x: Horizontal values, ascending.
        y: Vertical values, as many; those that are not finite are left out.
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
        lines: The lines.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        zero: Let the vertical axis start at 0, or reach it.
        reference: A value to draw a quiet horizontal line at.
        whole_x: Horizontal ticks at whole numbers only.

    Returns:
        None without a single point to draw.
    """
    lines = [line for line in map(_drawable, lines) if len(line.x)]
    if not lines:
        return None
    # Names in the SVG are hashes of what they name, and must differ between the charts of a page.
    with rc_context(_STYLE | {"svg.hashsalt": f"{title} {lines}"}):
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), frameon=False)
        axes = figure.add_axes((0.14, 0.17, 0.82, 0.79), frame_on=False)
        for line, color in zip(lines, _SERIES * len(lines), strict=False):
            axes.plot(line.x, line.y, color=color, marker="o" if len(line.x) <= 16 else "", ms=4, clip_on=False)
            if len(line.low):
                axes.fill_between(line.x, line.low, line.high, color=color, alpha=0.2, linewidth=0)
        axes.margins(0 if max(len(line.x) for line in lines) > 1 else None, 0.04)
        if zero:
            low, high = axes.get_ylim()
            axes.set_ylim(min(low, 0.0), max(high, 0.0))
        if reference is not None:
            axes.axhline(reference, color=_QUIET, linewidth=0.8, zorder=0)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=whole_x))
        axes.yaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.yaxis.set_label_coords(-0.128, 0.5)  # in the picture, however long the ticks' labels are
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.tick_params(length=0)
        svg = io.StringIO()
        figure.savefig(svg, format="svg")
    last = "; ".join(f"{line.label} {line.y[-1]:.4g}" for line in lines)
    alt = f"{title}: {y_label} over {x_label}; last values: {last}"
    legend = [(f"s{i % N_COLORS + 1}", line.label) for i, line in enumerate(lines)]
    return Chart(title, _for_page(svg.getvalue(), alt), legend if len(lines) > 1 or lines[0].label else [])


def _drawable(line: Line) -> Line:
    """A line's finite points, at most `MAX_POINTS` of them, the first and the last included."""
    values = [np.asarray(each, dtype=float) for each in (line.x, line.y, line.low, line.high)]
    kept = np.flatnonzero(np.isfinite(values[0]) & np.isfinite(values[1]))
    if len(kept) > MAX_POINTS:
        kept = kept[np.linspace(0, len(kept) - 1, MAX_POINTS).round().astype(int)]
    return Line(line.label, *(each[kept] if len(each) else each for each in values))


def _for_page(svg: str, alt: str) -> Markup:
    """matplotlib's SVG as a part of a page: with its colours and fonts, and a text for those who can't see it."""
    body = svg.split("</defs>", 1)[1]  # metadata and styles, which would be those of the whole page
    body = re.sub(r' id="[\w.]+_\d+"', "", body)  # the same in every chart
    body = re.sub(r"font-size: [^;]*; font-family: [^;]*; ", "", body)
    body = re.sub(r"(?<=: )#00000([1-8])", r"var(--series-\1)", body)
    body = body.replace(f": {_QUIET}", ": var(--quiet)").replace(f": {_GRID}", ": var(--grid)")
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+|\n", r"\1", path[0]), body)
    return Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">{}').format(
        WIDTH, HEIGHT, alt, Markup(body)
    )


@dataclass(frozen=True)
class Scale:
    """A horizontal axis that all dots in a table's column share.

    Attributes:
        ticks: Its ticks, from the lower to the upper end.
        zero: Where the line of "no difference" is; None for none.
    """

    ticks: tuple[float, ...]
    zero: float | None = None

    def percent(self, value: float) -> str:
        """Where a value lies, as an SVG length; values outside lie on the edge."""
        share = (value - self.ticks[0]) / (self.ticks[-1] - self.ticks[0])
        return f"{100 * min(1.0, max(0.0, share)):.1f}%"


RATE_SCALE = Scale((0.0, 0.25, 0.5, 0.75, 1.0))


def scale_around(values: Sequence[float], center: float = 0.0) -> Scale:
    """A scale that holds all values, symmetric about `center`, at least 0.1 to each side."""
    reach = max([0.1, *(abs(value - center) for value in values if math.isfinite(value))])
    ticks = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(-reach, reach)
    return Scale(tuple(center + tick for tick in ticks.tolist()), center)
