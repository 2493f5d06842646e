"""Forest plot of the paired differences."""

from __future__ import annotations

from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from world_modality_core.io.files import writing
from world_modality_core.studies.evidence.compare import ComparisonReport
from world_modality_core.studies.evidence.paired import PairedResult

ROW_IN = 0.26


def save_plot(report: ComparisonReport, path: Path) -> None:
    """Draw every comparison: over all episodes, over training runs where there are several, and per task.

    Args:
        report: What `compare` returned.
        path: File to write, .png or .svg; aside first, then renamed.
    """
    rows = []  # label, result, is it one of the comparison's headlines
    for comparison in report.comparisons:
        overall = comparison.parts[0]
        rows.append((f"{comparison.first} - {comparison.second}", overall.result, True))
        if comparison.runs is not None:
            rows.append((f"across {comparison.runs.n_runs} training seeds", comparison.runs, True))
        rows += [(part.name, part.result, False) for part in comparison.parts if part.level == "task"]
    with rc_context({"svg.fonttype": "none", "text.parse_math": False}):  # names are text, and may have a $ in them
        _draw(rows, report, path)


def _draw(rows: list[tuple[str, PairedResult, bool]], report: ComparisonReport, path: Path) -> None:
    figure = Figure(figsize=(7.5, 1 + ROW_IN * len(rows)), layout="constrained")
    axes = figure.add_subplot()
    for y, (_, result, is_headline) in enumerate(rows):
        color = "black" if is_headline else "0.55"
        axes.plot([100 * result.low, 100 * result.high], [y, y], color=color, linewidth=2 if is_headline else 1)
        axes.plot(100 * result.difference, y, "s" if is_headline else "o", color=color, markersize=5)
    axes.axvline(0, color="0.7", linewidth=1, zorder=0)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    what = "difference of success rates, points"
    if report.outcome != "success":
        what = f"by {report.outcome}: % of pairs in which the first did better, minus worse"
    axes.set_xlabel(f"{what} ({100 * (1 - report.alpha):g} % intervals)")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path) as aside:
        figure.savefig(aside, format=path.suffix[1:], dpi=150)
