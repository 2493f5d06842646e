"""How well a monitor tells failures, or disturbances, while there is still something to tell.

Late in an episode elapsed time alone is perfect: failures go on to the limit. So every figure names its moment, in
parts of the task's usual length (median of its successful episodes), and how many of those that succeed still run then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from world_modality_core.io.errors import ConfigError
from world_modality_core.monitor.monitor_rows import PREFIX
from world_modality_core.studies.evidence.wilson import wilson_interval

MOMENTS = (0.25, 0.5, 0.75, 1.0)
# Share of the episodes that succeed that must still run for a comparison to be a contest.
CONTEST = 0.9
COMBINED = "level"
# Steps after a disturbance within which it should be noticed.
WITHIN = 20


@dataclass(frozen=True)
class Separation:
    """How a score tells positives from negatives at a moment.

    Attributes:
        moment: What it was judged at.
        score: Its name; `level` is the combination.
        auc: Area under the ROC curve, the mean over tasks with two scenes or more of both kinds.
        low, high: 95 % interval, for these tasks and policies on scenes like these.
        lead: AUC of the combination minus this one's; None for the combination.
        lead_low, lead_high: its interval, paired: the same episodes.
        p: Two-sided p-value of `lead`.
        n_positive, n_negative: Episodes.
        still_running: Share of negatives that still ran at that moment.
    """

    moment: str
    score: str
    auc: float
    low: float
    high: float
    lead: float | None
    lead_low: float | None
    lead_high: float | None
    p: float | None
    n_positive: int
    n_negative: int
    still_running: float


def judge(rows: pd.DataFrame, rate: float) -> dict[str, Any]:
    """Judge one model's rows.

    Args:
        rows: Of `read_monitor_rows`; those with a `disturbance` are judged against those without.
        rate: The promised rate of false alarms.

    Returns:
        `failures` and `disturbances` (name -> separations), `alarms` (false and true ones, lead, costs), `setbacks`
        (lead before what simulation knows to have gone wrong), `by_train_seed` and, of each disturbance, `noticed`.
    """
    plain = rows[rows["disturbance"] == ""]
    if plain.empty:
        raise ConfigError("all rows are of disturbed episodes: give the folders of undisturbed ones too")
    found: dict[str, Any] = {"n": len(plain), "rate": rate, "failures": [], "disturbances": {}, "noticed": {}}
    if plain["success"].nunique() == 2:
        found["failures"] = _failures(plain)
    found["alarms"] = _alarms(plain)
    found["setbacks"] = _setbacks(plain[~plain["success"]])
    found["by_train_seed"] = {int(s): _alarms(of)["false"] for s, of in plain.groupby("train_seed")}
    for name, disturbed in rows[rows["disturbance"] != ""].groupby("disturbance"):
        found["disturbances"][name] = _disturbances(plain, disturbed)
        found["noticed"][name] = _noticed(disturbed)
    return found


def score_columns(rows: pd.DataFrame) -> list[str]:
    """The columns that hold a number per tick: the combination, and raw scores that were told at all."""
    raw = [name for name in rows if name.startswith(PREFIX)]
    return [COMBINED, *(name for name in raw if any(np.isfinite(np.asarray(v, float)).any() for v in rows[name]))]


# Failures of the policy.


def _failures(rows: pd.DataFrame) -> list[Separation]:
    lengths = rows[rows["success"]].groupby("task")["steps"]
    usual, contest = lengths.median(), lengths.quantile(1 - CONTEST, interpolation="lower")
    rows = rows[rows["task"].isin(usual.index)]
    moments = {f"{share:.0%}": rows["task"].map(usual) * share for share in MOMENTS}
    moments[f"last with {CONTEST:.0%} running"] = rows["task"].map(contest)
    out = []
    for moment, steps in moments.items():
        running = (rows["steps"] >= steps)[rows["success"]].mean()
        values = {
            name: [_until(v, every, step) for v, every, step in zip(rows[name], rows["every"], steps, strict=True)]
            for name in score_columns(rows)
        }
        kind = ~rows["success"].to_numpy(dtype=bool)
        out += _separations(moment, values, rows["task"].to_numpy(), rows["seed"].to_numpy(), kind, running)
    return out


def _until(values: Any, every: int, step: float) -> float:
    """Mean of an episode's values up to a step; its first one's where there is none."""
    seen = np.asarray(values, dtype=float)[: max(1, math.floor(step / every) + 1)]
    return float(np.nanmean(seen)) if np.isfinite(seen).any() else -np.inf


# Disturbances.


def _disturbances(plain: pd.DataFrame, disturbed: pd.DataFrame) -> list[Separation]:
    """Highest value within `WITHIN` steps after the disturbance, against undisturbed episodes in the same steps."""
    at = disturbed.groupby("task")["disturbed_at"].first()
    both = pd.concat([plain[plain["task"].isin(at.index)], disturbed], ignore_index=True)
    start = both["task"].map(at)
    n_before = (both["disturbance"] == "").sum()
    runs = both["steps"] > start
    running = runs[both["disturbance"] == ""].sum() / max(n_before, 1)
    both, start = both[runs], start[runs]
    values = {
        name: [_within(v, every, step) for v, every, step in zip(both[name], both["every"], start, strict=True)]
        for name in score_columns(both)
    }
    kind = (both["disturbance"] != "").to_numpy()
    if kind.all() or not kind.any():
        return []
    moment, task, scene = f"{WITHIN} steps after", both["task"].to_numpy(), both["seed"].to_numpy()
    return _separations(moment, values, task, scene, kind, running)


def _within(values: Any, every: int, at: float) -> float:
    ticks = np.arange(len(values)) * every
    seen = np.asarray(values, dtype=float)[(ticks > at) & (ticks <= at + WITHIN)]
    seen = seen[np.isfinite(seen)]
    return float(seen.max()) if len(seen) else -np.inf


def _noticed(disturbed: pd.DataFrame) -> dict[str, Any]:
    """Shares of disturbed episodes with a first alarm before, soon after, and ever after the disturbance."""
    running = disturbed[disturbed["steps"] > disturbed["disturbed_at"]]
    after = running["alarm_step"] - running["disturbed_at"]
    return {
        "n": len(running),
        "before": int((after <= 0).sum()),
        "soon": int(((after > 0) & (after <= WITHIN)).sum()),
        "after": int((after > 0).sum()),
        "success": float(running["success"].mean()) if len(running) else math.nan,
        "median_delay": float(after[after > 0].median()) if (after > 0).any() else math.nan,
    }


# Alarms.


def _alarms(rows: pd.DataFrame) -> dict[str, Any]:
    """False alarms of successes, true ones of failures with their lead, and what stopping at an alarm would do."""
    success, alarm = rows["success"], rows["alarm_step"].notna()
    caught = rows[~success & alarm]
    lead = caught["steps"] - caught["alarm_step"]
    saved = float(lead.sum() / rows["steps"].sum())
    return {
        "false": _share(int((success & alarm).sum()), int(success.sum())),
        "true": _share(int((~success & alarm).sum()), int((~success).sum())),
        "median_lead_steps": float(lead.median()) if len(lead) else math.nan,
        "median_lead_share": float((lead / caught["steps"]).median()) if len(lead) else math.nan,
        "success_if_stopped": float((success & ~alarm).mean()),
        "success": float(success.mean()),
        "steps_saved": saved,
    }


def _setbacks(failures: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Of each kind of setback: failures with it, those with an alarm before it, and by how many steps (median)."""
    out = {}
    for kind, of in failures[failures["setback_at"].notna()].groupby("setback"):
        lead = (of["setback_at"] - of["alarm_step"]).dropna()
        median = float(lead.median()) if len(lead) else math.nan
        out[str(kind)] = {
            "n": len(of),
            "alarm": len(lead),
            "before": int((lead > 0).sum()),
            "median_lead_steps": median,
        }
    return out


def _share(k: int, n: int) -> dict[str, Any]:
    low, high = wilson_interval(k, n) if n else (math.nan, math.nan)
    return {"k": k, "n": n, "share": k / n if n else math.nan, "low": low, "high": high}


# Areas under ROC curves.


@dataclass(frozen=True)
class _TaskArea:
    """A score's area in one task.

    Attributes:
        area: Share of pairs of a positive and a negative that it puts in order.
        parts: (2, c) what each of the c scenes adds to the area's error, by its positives and by its negatives.
        n: Positives and negatives.
        n_scenes: Scenes with positives, and with negatives.
        alone: The area's variance if every episode were of a scene of its own.
    """

    area: float
    parts: np.ndarray
    n: tuple[int, int]
    n_scenes: tuple[int, int]
    alone: float


def _separations(
    moment: str,
    values: dict[str, list[float]],
    task: np.ndarray,
    scene: np.ndarray,
    is_positive: np.ndarray,
    running: float,
) -> list[Separation]:
    found: dict[str, list[_TaskArea]] = {name: [] for name in values}
    n_positive = n_negative = 0
    for one in np.unique(task):
        sides = [np.flatnonzero((task == one) & kind) for kind in (is_positive, ~is_positive)]
        scenes, index = np.unique(np.concatenate([scene[of] for of in sides]), return_inverse=True)
        of_scenes = np.split(index, [len(sides[0])])
        if min(len(set(each)) for each in of_scenes) < 2:
            continue
        n_positive, n_negative = n_positive + len(sides[0]), n_negative + len(sides[1])
        for name, column in values.items():
            found[name].append(_task_area(*(np.asarray(column)[of] for of in sides), of_scenes, len(scenes)))
    if not n_positive:
        return []
    out = []
    for name, areas in found.items():
        area = float(np.mean([each.area for each in areas]))
        low, high = _area_interval(area, areas)
        lead = (None,) * 4 if name == COMBINED else _lead(found[COMBINED], areas)
        counts = n_positive, n_negative
        out.append(Separation(moment, name.removeprefix(PREFIX), area, low, high, *lead, *counts, float(running)))
    return out


def _task_area(positive: np.ndarray, negative: np.ndarray, of_scenes: list[np.ndarray], n_scenes: int) -> _TaskArea:
    """Area and its errors by scene (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44:837-845; for scenes that
    several training runs share, Obuchowski 1997, Biometrics 53:567-578)."""
    wins = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)  # -inf where nobody could tell
    parts, counts, alone = np.zeros((2, n_scenes)), [], 0.0
    for side, errors in enumerate((wins.mean(axis=1) - wins.mean(), wins.mean(axis=0) - wins.mean())):
        n, counts = len(errors), [*counts, len(set(of_scenes[side]))]
        alone += float(errors.var(ddof=1)) / n
        parts[side] = np.bincount(of_scenes[side], errors, n_scenes) / n * math.sqrt(counts[-1] / (counts[-1] - 1))
    return _TaskArea(float(wins.mean()), parts, wins.shape, tuple(counts), alone)


def _spread(parts: list[np.ndarray], areas: list[_TaskArea]) -> tuple[float, float]:
    """Variance of the mean over tasks, and its degrees of freedom (Satterthwaite 1946, Biometrics Bulletin 2:110)."""
    variance = sum(float((each.sum(axis=0) ** 2).sum()) for each in parts) / len(parts) ** 2
    freedom = [n - 1 for each in areas for n in each.n_scenes]
    squares = [float((side**2).sum()) for each in parts for side in each]
    if not any(squares):
        return 0.0, float(min(freedom))
    return variance, sum(squares) ** 2 / sum(v**2 / n for v, n in zip(squares, freedom, strict=True))


def _area_interval(area: float, areas: list[_TaskArea]) -> tuple[float, float]:
    """Areas that are as many errors away as t allows, each error as large as it were for that area.

    As Wilson's interval: the error of a perfect score isn't 0 (Newcombe 2006, Statistics in Medicine 25:559-573, with
    the variance of Hanley and McNeil 1982, Radiology 143:29-36). That variance is taken as many times as the scores'
    own is larger, and at least as many as scenes make it larger.
    """
    variance, freedom = _spread([each.parts for each in areas], areas)
    alone = sum(each.alone for each in areas) / len(areas) ** 2

    def expected(x: float) -> float:
        return sum(_hanley_mcneil(x, *each.n) for each in areas) / len(areas) ** 2

    shared = max(n / n_scenes for each in areas for n, n_scenes in zip(each.n, each.n_scenes, strict=True))
    times = max(1.0, variance / alone if alone else shared)
    if expected(area):
        times = max(times, variance / expected(area))
    reach = stats.t.ppf(0.975, freedom) ** 2 * times

    def is_in(x: float) -> bool:
        return (area - x) ** 2 <= reach * expected(x)

    ends = []
    for end in (0.0, 1.0):
        outside, inside = end, area
        for _ in range(40):
            middle = (outside + inside) / 2
            outside, inside = (outside, middle) if is_in(middle) else (middle, inside)
        ends.append(inside)
    return ends[0], ends[1]


def _hanley_mcneil(area: float, m: int, n: int) -> float:
    first, second = area / (2 - area), 2 * area**2 / (1 + area)
    return (area * (1 - area) + (m - 1) * (first - area**2) + (n - 1) * (second - area**2)) / (m * n)


def _lead(combined: list[_TaskArea], areas: list[_TaskArea]) -> tuple[float, float, float, float]:
    """Lead of the combination with its interval and p: t, on the same episodes, never surer than if one scene with
    positives had moved past half of the negatives in each task."""
    lead = float(np.mean([a.area - b.area for a, b in zip(combined, areas, strict=True)]))
    variance, freedom = _spread([a.parts - b.parts for a, b in zip(combined, areas, strict=True)], areas)
    least = sum((0.5 / each.n_scenes[0]) ** 2 for each in areas) / len(areas) ** 2
    error = math.sqrt(max(variance, least))
    reach = float(stats.t.ppf(0.975, freedom)) * error
    return lead, max(-1.0, lead - reach), min(1.0, lead + reach), float(2 * stats.t.sf(abs(lead) / error, freedom))


# For people.


def judgement_text(model: str, found: dict[str, Any]) -> str:
    """What `judge` found, as text."""
    lines = [f"{model}: {found['n']} undisturbed episodes"]
    for heading, separations in [("Failures", found["failures"]), *found["disturbances"].items()]:
        for moment in dict.fromkeys(each.moment for each in separations):
            these = [each for each in separations if each.moment == moment]
            first = these[0]
            lines.append(
                f"\n{heading}, {moment}: {first.n_positive} against {first.n_negative} episodes, "
                f"{first.still_running:.0%} of the latter still running"
            )
            lines.append(f"  {'score':20} {'AUC':>5}  {'95 %':14} combination over it")
            for each in sorted(these, key=lambda s: -s.auc):
                over = "" if each.lead is None else (
                    f"{each.lead:+.2f} [{each.lead_low:+.2f}, {each.lead_high:+.2f}]  p {each.p:.3g}"
                )  # fmt: skip
                name = "combination" if each.score == COMBINED else each.score
                lines.append(f"  {name:20} {each.auc:5.2f}  [{each.low:.2f}, {each.high:.2f}]   {over}")
    lines += ["", *alarm_lines(found)]
    return "\n".join(lines)


def alarm_lines(found: dict[str, Any]) -> list[str]:
    """What `judge` found of alarms, in sentences."""
    alarms = found["alarms"]

    def share(of: dict[str, Any]) -> str:
        return (
            f"{of['k']}/{of['n']} = {of['share']:.1%} [{of['low']:.1%}, {of['high']:.1%}]" if of["n"] else "none there"
        )

    lines = [
        f"False alarms  {share(alarms['false'])} of successes; promised {found['rate']:.1%}",
        f"True alarms   {share(alarms['true'])} of failures; median lead {alarms['median_lead_steps']:.0f} steps "
        f"({alarms['median_lead_share']:.0%} of the episode)",
        f"Stopping at an alarm: success {alarms['success']:.1%} -> {alarms['success_if_stopped']:.1%}, "
        f"{alarms['steps_saved']:.1%} of all steps saved in failures",
    ]
    for kind, of in found["setbacks"].items():
        lines.append(
            f"Failures with {kind}: {of['before']}/{of['n']} with an alarm before it, {of['alarm']} at all; median "
            f"lead {of['median_lead_steps']:.0f} steps"
        )
    if len(found["by_train_seed"]) > 1:
        each = ", ".join(f"{s}: {of['k']}/{of['n']}" for s, of in found["by_train_seed"].items())
        lines.append(f"False alarms by training seed: {each}")
    for name, of in found["noticed"].items():
        lines.append(
            f"{name}: {of['soon']}/{of['n']} with a first alarm within {WITHIN} steps, {of['after']} ever after, "
            f"{of['before']} before; {of['success']:.0%} succeed all the same"
        )
    return lines
