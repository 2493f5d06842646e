"""A comparison as text: the verdict first, then fixed-width columns, or Markdown tables."""

from __future__ import annotations

from world_modality_core.studies.evidence.compare import (
    LABEL_COLUMNS,
    Comparison,
    ComparisonReport,
    PairedPart,
    SuccessRate,
)
from world_modality_core.studies.evidence.paired import MIN_TASKS, PairedResult
from world_modality_core.studies.evidence.verdicts import SHOWN, Verdict
from world_modality_core.studies.evidence.wording import p_text

NAMES = {"episodes": "all episodes", "tasks": "mean over tasks", "tiers": "mean over tiers"}

_UNITS = {
    "success": "in points of success rate",
    "time": "by success, then time to success: % of pairs in which the first did better, minus worse",
    "smoothness": "by success, then smoothness: % of pairs in which the first did better, minus worse",
    "reward": "by sum of rewards: % of pairs in which the first did better, minus worse",
}


def format_report(report: ComparisonReport, markdown: bool = False) -> str:
    """Verdicts, paired differences and rates.

    Args:
        report: What `compare` returned.
        markdown: Markdown rather than fixed width.
    """
    level = f"{100 * (1 - report.alpha):g} %"
    blocks = [
        _heading("Verdicts", markdown),
        "\n".join(_verdict_lines(report, markdown)),
        _heading(f"Paired differences, {_UNITS[report.outcome]}", markdown),
        _table(
            ["first - second", "", "rates %", "won : lost / pairs", "difference", f"{level} interval", "p", "p (Holm)"],
            [row for comparison in report.comparisons for row in _difference_rows(comparison, report.alpha)],
            markdown,
        ),
        "\n".join(_notes(report)),
        _heading("Success", markdown),
        _table(["model/arm", "", "successes", "rate %", f"{level} interval"], _rate_rows(report), markdown),
        "Of all episodes, also those that no comparison has; the rates of the pairs stand beside the differences. "
        "Wilson's intervals, for these checkpoints on scenes like these of these tasks.",
    ]
    if any(any(said) for said in report.labels.values()):
        kinds = [name.replace("_", " ") for name in LABEL_COLUMNS]
        blocks += [
            _heading("What the labels stand for", markdown),
            _table(["model", *kinds], [[model, *said] for model, said in report.labels.items()], markdown),
            "As the rows have it; empty where they don't say. Labels are words that somebody typed.",
        ]
    return "\n\n".join(blocks) + "\n"


def brief(report: ComparisonReport) -> str:
    """Three lines: what was found, how many answers there are of each kind, and what was left out."""
    answers = [answer for c, answer in zip(report.comparisons, report.answers, strict=True) if c.kind != "arm"]
    lines = [answer.text for answer in answers or report.answers]
    verdicts = [_verdict_head(verdict, report) for verdict in report.verdicts]
    rest = len(lines) + len(verdicts) - 3
    lines = [*lines[: 3 - min(len(verdicts), 2)], *verdicts][:3]
    if rest > 0:
        lines[-1] += f" (and {rest} more: leave --brief out)"
    return "\n".join(lines) + "\n"


def _rate_rows(report: ComparisonReport) -> list[list[str]]:
    rows = []
    for side in report.sides:
        name = str(side.side)
        for rate in side.rates:
            label = NAMES["episodes"] if rate.level == "overall" else rate.name
            rows.append([name, label, f"{rate.successes}/{rate.n}", f"{100 * rate.rate:.1f}", _interval(rate)])
            name = ""
        for mean, value in side.means.items():
            if mean != "episodes":
                rows.append(["", NAMES[mean], "", f"{100 * value:.1f}", ""])
    return rows


def _difference_rows(comparison: Comparison, alpha: float) -> list[list[str]]:
    rows = [_part_row(part, alpha) for part in comparison.parts]
    after = []
    if comparison.runs is not None:
        after.append(_wider_row(f"across {comparison.runs.n_runs} training seeds", comparison.runs, alpha))
    if comparison.tasks is not None:
        after.append(_wider_row(f"over {comparison.tasks.n_tasks} tasks", comparison.tasks, alpha))
    if comparison.overlapping is not None:
        after.append(_wider_row("with scenes of one side", comparison.overlapping, alpha))
    if comparison.sequential is not None:
        after.append(["", "sequential", "", _stop(comparison), "", "", p_text(comparison.sequential.p, alpha), ""])
    ahead = (comparison.runs or comparison.parts[0].result).probability_ahead
    after.append(["", "probability to be ahead", "", "", "", "", f"{ahead:.3f}", ""])
    if comparison.heterogeneity_p is not None:
        after.append(["", "differs between tasks?", "", "", "", "", p_text(comparison.heterogeneity_p, alpha), ""])
    after += [
        ["", NAMES[mean], "", "", f"{100 * value:+.1f}", "", "", ""]
        for mean, value in comparison.means.items()
        if mean != "episodes"
    ]
    rows[1:1] = after
    rows[0][0] = f"{comparison.first} - {comparison.second}"
    rows[0][7] = p_text(comparison.p_holm, alpha)
    return rows


def _part_row(part: PairedPart, alpha: float) -> list[str]:
    counts, name = part.counts, NAMES["episodes"] if part.level == "overall" else part.name
    rates = [f"{100 * (counts.both + alone) / counts.n:.1f}" for alone in (counts.wins, counts.losses)]
    return [
        "",
        name,
        ", ".join(rates),
        f"{counts.wins} : {counts.losses} / {counts.n}",
        *_wider_row("", part.result, alpha)[4:],
    ]


def _wider_row(name: str, result: PairedResult, alpha: float) -> list[str]:
    return ["", name, "", "", f"{100 * result.difference:+.1f}", _interval(result, True), p_text(result.p, alpha), ""]


def _stop(comparison: Comparison) -> str:
    result = comparison.sequential
    if result.stopped_at is None:
        return f"{'open' if result.is_open else 'ended'} after {result.n_pairs} of {result.n_planned}"
    return f"decided after {result.stopped_at} of {result.n_planned}"


def _notes(report: ComparisonReport) -> list[str]:
    kinds = {comparison.kind for comparison in report.comparisons}
    notes = [
        "All episodes, tiers, tasks: these checkpoints, scenes like these. Exact test over all flips of the scenes' "
        "signs (with one training run McNemar's), Tango's interval."
    ]
    if kinds & {"model", "matched"}:
        if any(c.runs is not None for c in report.comparisons):
            notes.append(
                "Over training runs: recipes like these, these tasks. t interval; never surer than the line above it. "
                "Holm takes this p."
            )
        if any(c.kind != "arm" and c.runs is None for c in report.comparisons):
            notes.append("One training run of each model: nothing here tells whether retraining would give the same.")
    if any(c.tasks is not None for c in report.comparisons):
        notes.append("Over tasks: tasks like these; the mean over tasks, t interval.")
    elif any(len(c.train_seeds) > 1 or c.kind == "arm" for c in report.comparisons):
        notes.append(f"Of tasks like these nothing is said: that takes {MIN_TASKS} tasks or more.")
    if any(c.overlapping is not None for c in report.comparisons):
        notes.append(
            "With scenes of one side: these checkpoints; the pairs, and the scenes that only one side has, each "
            "weighed by its variance. Not adjusted, and in no verdict."
        )
    notes.append(
        "Probability to be ahead: posterior under Jeffreys' prior, across training seeds under a flat one. It is no "
        "test."
    )
    notes.append("Differs between tasks: these checkpoints; Welch's F test. A small p says that the mean hides it.")
    notes.append("Holm: over the arms of a model, over the candidates of a baseline. Tasks and tiers: not adjusted.")
    for c in report.comparisons:
        s = c.sequential
        if s is None or not (s.is_open or s.stopped_at):
            continue
        end = "is open"
        if s.stopped_at is not None:
            end = (
                f"may stop: after {s.stopped_at} pairs ({s.wins_at_stop} won, {s.losses_at_stop} lost) a bound was "
                f"crossed; share of scenes won {s.share[0]:.2f} to {s.share[1]:.2f} (0.5 is no difference)"
            )
        notes.append(
            f"{c.first} - {c.second} {end}. The other intervals and p-values hold only at the planned end, for those "
            "who did not look before."
        )
    notes += report.notes
    left_out = sorted({(str(c.first), str(c.second), c.n_left_out) for c in report.comparisons if c.n_left_out})
    notes += [
        f"{first} - {second}: {n} episodes were left out, of scenes that not all have (--common_scenes)."
        for first, second, n in left_out
    ]
    return notes


def _verdict_lines(report: ComparisonReport, markdown: bool) -> list[str]:
    lines = []
    for verdict in report.verdicts:
        head = _verdict_head(verdict, report)
        lines.append(f"- **{head}**" if markdown else head)
        lines += [f"  {'- ' if markdown else ''}{reason}" for reason in verdict.reasons]
    of_models, of_arms = [], []
    for c, answer in zip(report.comparisons, report.answers, strict=True):
        (of_arms if c.kind == "arm" else of_models).append(f"- {answer.text}" if markdown else answer.text)
    return list(dict.fromkeys([*of_models, *lines, *of_arms]))  # a baseline may be the matched model too


def _verdict_head(verdict: Verdict, report: ComparisonReport) -> str:
    holm = report.verdict_p_holm.get((verdict.model, verdict.question))
    p = ""
    if verdict.p is not None:
        own, adjusted = (p_text(p, report.alpha) for p in (verdict.p, holm))
        p = f" (p {own}, Holm over the models judged {adjusted})"
    whom = f"; for {verdict.population}" if verdict.population else ""
    effect = ""
    if verdict.answer != SHOWN and verdict.smallest_effect is not None:
        effect = f"; needs about {100 * verdict.smallest_effect:.1f} points or more to be detected"
    return f"{verdict.model}: {verdict.statement}{p}{effect}{whom}"


def _interval(x: PairedResult | SuccessRate, signed: bool = False) -> str:
    """In per cent."""
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
