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
        auc: Area under the ROC curve, the mean over tasks with both kinds.
        low, high: 95 % interval, bootstrapped over episodes within task and kind.
        lead: AUC of the combination minus this one's; None for the combination.
        lead_low, lead_high: its interval, paired: the same episodes drawn.
        p: Two-sided bootstrap p-value of `lead`.
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


def judge(rows: pd.DataFrame, rate: float, n_bootstrap: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Judge one model's rows.

    Args:
        rows: Of `read_monitor_rows`; those with a `disturbance` are judged against those without.
        rate: The promised rate of false alarms.
        n_bootstrap: Draws.
        seed: Of the draws.

    Returns:
        `failures` and `disturbances` (name -> separations), `alarms` (false and true ones, lead, costs), `setbacks`
        (lead before what simulation knows to have gone wrong), `by_train_seed` and, of each disturbance, `noticed`.
    """
    plain = rows[rows["disturbance"] == ""]
    if plain.empty:
        raise ConfigError("all rows are of disturbed episodes: give the folders of undisturbed ones too")
    found: dict[str, Any] = {"n": len(plain), "rate": rate, "failures": [], "disturbances": {}, "noticed": {}}
    if plain["success"].nunique() == 2:
        found["failures"] = _failures(plain, n_bootstrap, seed)
    found["alarms"] = _alarms(plain)
    found["setbacks"] = _setbacks(plain[~plain["success"]])
    found["by_train_seed"] = {int(s): _alarms(of)["false"] for s, of in plain.groupby("train_seed")}
    for name, disturbed in rows[rows["disturbance"] != ""].groupby("disturbance"):
        found["disturbances"][name] = _disturbances(plain, disturbed, n_bootstrap, seed)
        found["noticed"][name] = _noticed(disturbed)
    return found


def score_columns(rows: pd.DataFrame) -> list[str]:
    """The columns that hold a number per tick: the combination, and raw scores that were told at all."""
    raw = [name for name in rows if name.startswith(PREFIX)]
    return [COMBINED, *(name for name in raw if any(np.isfinite(np.asarray(v, float)).any() for v in rows[name]))]


# Failures of the policy.


def _failures(rows: pd.DataFrame, n_bootstrap: int, seed: int) -> list[Separation]:
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
        out += _separations(
            moment, values, rows["task"].to_numpy(), ~rows["success"].to_numpy(), running, n_bootstrap, seed
        )
    return out


def _until(values: Any, every: int, step: float) -> float:
    """Mean of an episode's values up to a step; its first one's where there is none."""
    seen = np.asarray(values, dtype=float)[: max(1, math.floor(step / every) + 1)]
    return float(np.nanmean(seen)) if np.isfinite(seen).any() else -np.inf


# Disturbances.


def _disturbances(plain: pd.DataFrame, disturbed: pd.DataFrame, n_bootstrap: int, seed: int) -> list[Separation]:
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
    return _separations(f"{WITHIN} steps after", values, both["task"].to_numpy(), kind, running, n_bootstrap, seed)


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


# Areas under ROC curves, bootstrapped.


def _separations(
    moment: str,
    values: dict[str, list[float]],
    task: np.ndarray,
    is_positive: np.ndarray,
    running: float,
    n_bootstrap: int,
    seed: int,
) -> list[Separation]:
    tasks = [t for t in np.unique(task) if is_positive[task == t].any() and not is_positive[task == t].all()]
    if not tasks:
        return []
    rng = np.random.default_rng(seed)
    areas, draws = dict.fromkeys(values, 0.0), {name: np.zeros(n_bootstrap) for name in values}
    for one in tasks:
        positive, negative = np.flatnonzero((task == one) & is_positive), np.flatnonzero((task == one) & ~is_positive)
        weights = [rng.multinomial(len(of), np.full(len(of), 1 / len(of)), n_bootstrap) for of in (positive, negative)]
        for name, column in values.items():
            high, low = np.asarray(column)[positive][:, None], np.asarray(column)[negative]
            wins = (high > low) + 0.5 * (high == low)  # where a score can't be told it is -inf, and compares
            areas[name] += wins.mean() / len(tasks)
            drawn = np.einsum("rp,pn,rn->r", *(weights[0], wins, weights[1]), optimize=True)
            draws[name] += drawn / (len(positive) * len(negative)) / len(tasks)
    out = []
    for name in values:
        low, high = np.quantile(draws[name], [0.025, 0.975])
        lead = lead_low = lead_high = p = None
        if name != COMBINED:
            gained = draws[COMBINED] - draws[name]
            lead = areas[COMBINED] - areas[name]
            lead_low, lead_high = map(float, np.quantile(gained, [0.025, 0.975]))
            tail = min((gained <= 0).sum(), (gained >= 0).sum())
            p = min(1.0, 2 * (tail + 1) / (n_bootstrap + 1))
        counts = int(is_positive[np.isin(task, tasks)].sum()), int((~is_positive[np.isin(task, tasks)]).sum())
        out.append(
            Separation(
                moment, name.removeprefix(PREFIX), float(areas[name]), float(low), float(high),
                lead, lead_low, lead_high, p, *counts, float(running),
            )
        )  # fmt: skip
    return out


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
