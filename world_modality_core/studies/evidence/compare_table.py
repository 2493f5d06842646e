"""A comparison as text: fixed-width columns, or Markdown tables."""

from __future__ import annotations

from world_modality_core.studies.evidence.compare import Comparison, ComparisonReport, OverallMean, PairedPart
from world_modality_core.studies.evidence.verdicts import SHOWN

NAMES = {"episodes": "all episodes", "tasks": "mean over tasks", "tiers": "mean over tiers"}


def format_report(report: ComparisonReport, markdown: bool = False) -> str:
    """Rates, paired differences and verdicts.

    Args:
        report: What `compare` returned.
        markdown: Markdown rather than fixed width.
    """
    level = f"{100 * (1 - report.alpha):g} %"
    blocks = [
        _heading("Success", markdown),
        _table(["model/arm", "", "successes", "rate %", f"{level} interval"], _rate_rows(report), markdown),
        "Intervals of tasks, tiers and all episodes: Wilson, for these checkpoints on scenes like these; of the means: "
        "bootstrap, for tasks, training runs and scenes like these.",
        _heading("Paired differences, in points of success rate", markdown),
        _table(
            ["first - second", "", "won : lost / pairs", "difference", f"{level} interval", "p", "p (Holm)"],
            [row for comparison in report.comparisons for row in _difference_rows(comparison)],
            markdown,
        ),
        "\n".join(_notes(report)),
    ]
    if report.verdicts:
        blocks += [_heading("Verdicts", markdown), "\n".join(_verdict_lines(report, markdown))]
    return "\n\n".join(blocks) + "\n"


def _rate_rows(report: ComparisonReport) -> list[list[str]]:
    rows = []
    for side in report.sides:
        name = str(side.side)
        for rate in side.rates:
            label = NAMES["episodes"] if rate.level == "overall" else rate.name
            rows.append([name, label, f"{rate.successes}/{rate.n}", f"{100 * rate.rate:.1f}", _interval(rate)])
            name = ""
        for overall in side.overall:
            if overall.name != "episodes":
                rows.append(["", NAMES[overall.name], "", f"{100 * overall.value:.1f}", _interval(overall)])
    return rows


def _difference_rows(comparison: Comparison) -> list[list[str]]:
    rows = []
    for part in comparison.parts:
        rows.append(_part_row(part))
    overall = comparison.parts[0]
    rows[0][5:] = [f"{overall.result.p:.2g}", ""]
    after = []
    if comparison.runs is not None:
        runs = comparison.runs
        after.append(
            [
                "",
                f"over {runs.n_runs} training runs",
                "",
                f"{100 * runs.difference:+.1f}",
                _interval(runs, True),
                f"{runs.p:.2g}",
                "",
            ]  # fmt: skip
        )
    if comparison.sequential is not None:
        after.append(["", "sequential", _stop(comparison), "", "", f"{comparison.sequential.p:.2g}", ""])
    for mean in comparison.overall:
        after.append(
            ["", f"{NAMES[mean.name]}, bootstrap", "", f"{100 * mean.value:+.1f}", _interval(mean, True), "", ""]
        )
    rows[1:1] = after
    rows[0][0] = f"{comparison.first} - {comparison.second}"
    rows[0][6] = f"{comparison.p_holm:.2g}"
    return rows


def _part_row(part: PairedPart) -> list[str]:
    counts, result = part.counts, part.result
    return [
        "",
        NAMES["episodes"] if part.level == "overall" else part.name,
        f"{counts.wins} : {counts.losses} / {counts.n}",
        f"{100 * result.difference:+.1f}",
        _interval(result, True),
        f"{result.p:.2g}",
        "",
    ]


def _stop(comparison: Comparison) -> str:
    result = comparison.sequential
    if result.stopped_at is None:
        return f"open after {result.n_pairs} (e = {result.e_value:.3g})"
    return f"decided after {result.stopped_at} of {result.n_pairs}"


def _notes(report: ComparisonReport) -> list[str]:
    notes = [
        "Episodes: Newcombe's paired interval and the exact McNemar test, for these checkpoints on scenes like these."
    ]
    kinds = {comparison.kind for comparison in report.comparisons}
    if kinds & {"model", "matched"}:
        if any(c.runs is not None for c in report.comparisons):
            notes.append(
                "Over training runs: t interval, for training runs like these on scenes like these of these tasks. "
                "Holm takes the larger p of the two lines."
            )
        if any(c.kind != "arm" and c.runs is None for c in report.comparisons):
            notes.append("One training run of each model: nothing here tells whether retraining would give the same.")
    notes.append("Bootstrap: for tasks, training runs and scenes like these; too narrow with a single task or run.")
    notes.append("Holm: over the arms of a model, over the candidates of a baseline. Tasks and tiers: not adjusted.")
    stopped = [c for c in report.comparisons if c.sequential is not None and c.sequential.stopped_at is not None]
    for c in stopped:
        s = c.sequential
        notes.append(
            f"{c.first} - {c.second} may stop: after {s.stopped_at} pairs ({s.wins_at_stop} won, {s.losses_at_stop} "
            f"lost) the e-value reached 1/alpha; share of wins {s.share_low:.2f} to {s.share_high:.2f} (0.5 is no "
            "difference). The other intervals and p-values hold only at the planned end."
        )
    left_out = sorted({(str(c.first), str(c.second), c.n_left_out) for c in report.comparisons if c.n_left_out})
    notes += [
        f"{first} - {second}: {n} episodes were left out, of scenes that not all have (--common_scenes)."
        for first, second, n in left_out
    ]
    return notes


def _verdict_lines(report: ComparisonReport, markdown: bool) -> list[str]:
    lines = []
    for verdict in report.verdicts:
        answer = verdict.answer
        p = "" if verdict.p is None else f" (p = {verdict.p:.2g}"
        holm = report.verdict_p_holm.get((verdict.model, verdict.question))
        if p:
            p += f", Holm over the models judged {holm:.2g})"
        effect = ""
        if answer != SHOWN and verdict.smallest_effect is not None:
            effect = f"; smallest effect that this n would have seen: {100 * verdict.smallest_effect:.1f} points"
        head = f"{verdict.model}: {verdict.question}: {answer}{p}{effect}"
        lines.append(f"- **{head}**" if markdown else head)
        lines += [f"  {'- ' if markdown else ''}{reason}" for reason in verdict.reasons]
    return lines


def _interval(x: OverallMean, signed: bool = False) -> str:
    """Any result with `low` and `high`, in per cent."""
    if x.low is None:
        return ""
    sign = "+" if signed else ""
    return f"{100 * x.low:{sign}.1f} to {100 * x.high:{sign}.1f}"


def _heading(text: str, markdown: bool) -> str:
    return f"## {text}" if markdown else f"{text}\n{'=' * len(text)}"


def _table(header: list[str], rows: list[list[str]], markdown: bool) -> str:
    if markdown:
        lines = [header, ["---"] * len(header), *rows]
        return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
    widths = [max(len(line[i]) for line in [header, *rows]) for i in range(len(header))]
    # Names to the left, figures to the right.
    aligned = [
        [cell.ljust(widths[i]) if i < 2 else cell.rjust(widths[i]) for i, cell in enumerate(line)]
        for line in [header, *rows]
    ]
    return "\n".join("  ".join(line).rstrip() for line in aligned)
