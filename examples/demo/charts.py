"""Line charts as inline SVG that follow the page's colours, light or dark."""

from __future__ import annotations

import io
from dataclasses import dataclass

import matplotlib
from matplotlib.figure import Figure

# Drawn in these colours, then replaced by the page's CSS variables.
_INK, _GRID = "#010203", "#040506"
_SERIES = ["#0a0b0c", "#0d0e0f", "#101112", "#131415"]


@dataclass
class Line:
    """One line of a chart.

    Attributes:
        label: Its name in the legend.
        x: Horizontal values.
        y: Vertical values, as many.
    """

    label: str
    x: list[float]
    y: list[float]


def line_chart(lines: list[Line], x_label: str, y_label: str, name: str, y_log: bool = False) -> str:
    """Draw lines into an SVG element.

    Args:
        lines: At most four.
        x_label: Name of the horizontal axis.
        y_label: Name of the vertical axis.
        name: Unique on the page; keeps the ids of two charts apart.
        y_log: Logarithmic vertical axis.

    Returns:
        `<svg>...</svg>`, sized by its container; colours are `var(--ink)`, `var(--grid)`, `var(--series-1)` ...
    """
    style = {"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "axes.spines.top": False}
    style |= {"axes.spines.right": False, "axes.edgecolor": _GRID, "text.color": _INK, "axes.labelcolor": _INK}
    style |= {"xtick.color": _INK, "ytick.color": _INK, "grid.color": _GRID, "legend.frameon": False}
    # A data label such as "$x" stays text.
    style |= {"text.parse_math": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(5.2, 2.9), layout="constrained")
        axes = figure.add_subplot()
        for line, color in zip(lines, _SERIES, strict=False):
            axes.plot(
                line.x, line.y, color=color, linewidth=1.6, label=line.label, marker="o" if len(line.x) < 20 else ""
            )
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(linewidth=0.6)
        if y_log:
            axes.set_yscale("log")
        if len(lines) > 1:
            axes.legend()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    for color, variable in [
        (_INK, "--ink"),
        (_GRID, "--grid"),
        *((c, f"--series-{i}") for i, c in enumerate(_SERIES, 1)),
    ]:
        svg = svg.replace(color, f"var({variable})")
    return svg
