"""From the frames of all sources to the record: errors, ratios with intervals, and what they mean."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import Tensor

from lerobot_policy_world_modality.intervention.ratio_bootstrap import bootstrap_ratio
from world_modality_core.memory.sources import MemorySource
from world_modality_core.prophet.losses import masked_mean
from world_modality_core.studies.evidence.verdicts import SHUT_GATE


def action_errors(plan: Tensor, actions: Tensor, is_pad: Tensor) -> np.ndarray:
    """Mean absolute error (b,) of plans (b, h, a), over the actions inside the episode."""
    return masked_mean((plan.float() - actions.float()).abs().mean(-1), is_pad, dim=-1).double().numpy()


def chunk_changes(plan: Tensor, clean: Tensor, is_pad: Tensor, spread: Tensor) -> np.ndarray:
    """Root mean square change (b,) of plans (b, h, a), in units of the recorded actions' standard deviation (a,).

    Over the actions inside the episode; an action entry that never varies has no unit and is left out.
    """
    varies = spread > 1e-6
    change = ((plan - clean)[..., varies] / spread[varies]).square().mean(-1)
    return masked_mean(change, is_pad, dim=-1).sqrt().double().numpy()


def action_spread(actions: Tensor, is_pad: Tensor) -> Tensor:
    """Standard deviation (a,) of recorded actions (f, h, a) inside the episodes."""
    return actions[~is_pad].double().std(0, correction=0).float()


@dataclass
class Bootstrap:
    """How intervals are made."""

    n_resamples: int
    seed: int

    def __call__(self, numerator: np.ndarray, denominator: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return bootstrap_ratio(numerator, denominator, self.n_resamples, self.seed)


def by_episode(rows: pd.DataFrame, clean: pd.DataFrame) -> pd.DataFrame:
    """Sums over the scored frames of each episode, of a source and, on the very same frames, of the clean memory."""
    scored = rows["is_scored"].to_numpy()
    both = rows[scored].assign(clean_error=clean["error"][scored], clean_error_raw=clean["error_raw"][scored])
    sums = ["error", "error_raw", "clean_error", "clean_error_raw", "chunk_change"]
    grouped = both.groupby(["episode", "task"])
    return grouped[sums].sum().assign(frames=grouped.size()).reset_index()


def summarise_source(episodes: pd.DataFrame, interval: Bootstrap) -> dict:
    """What a source does to the actions, over all its episodes (sums as of `by_episode`)."""
    frames = int(episodes["frames"].sum())
    ratio, low, high = interval(episodes["error"].to_numpy(), episodes["clean_error"].to_numpy())
    names = ["error", "error_raw", "clean_error", "clean_error_raw", "chunk_change"]
    means = {name: float(episodes[name].sum() / frames) for name in names}
    return means | {
        "ratio": number(ratio), "ratio_low": number(low), "ratio_high": number(high),
        "ratio_raw": number(episodes["error_raw"].sum() / episodes["clean_error_raw"].sum()),
        "frames": frames, "episodes": len(episodes),
    }  # fmt: skip


def summarise_forecast(rows: pd.DataFrame, kind: str, interval: Bootstrap) -> list[dict] | None:
    """Per future step: how good the forecast is and what copying gives, with intervals; None without such a forecast.

    For tokens `value` and `copy` are accuracies; for latents and rollouts they are mean 1 - cosine, and `skill` is
    1 - value / copy.
    """
    rows = rows[rows["kind"] == kind]
    if rows.empty:
        return None
    table = {
        name: rows.pivot_table(index="episode", columns="step", values=name, aggfunc="sum", fill_value=0)
        for name in ("value", "copy", "count")
    }
    value, copy, count = (table[name].to_numpy(float) for name in ("value", "copy", "count"))
    mean = [interval(value, count), interval(copy, count)]
    ratio = interval(value, copy)
    found = []
    for i, step in enumerate(table["count"].columns):
        row = {"step": int(step), "frames": int(count[:, i].sum())}
        row |= {"value": number(mean[0][0][i]), "value_low": number(mean[0][1][i]), "value_high": number(mean[0][2][i])}
        row |= {"copy": number(mean[1][0][i])}
        if kind != "tokens":  # what is low in an error is high in a skill
            skill, low, high = (1 - ratio[place][i] for place in (0, 2, 1))
            row |= {"skill": number(skill), "skill_low": number(low), "skill_high": number(high)}
        found.append(row)
    return found


# Below these an interval that leaves out 1 is not called a reliance: a bootstrap of five episodes is too narrow, and
# half a per cent of an action's error moves no robot.
FEWEST_EPISODES = 10
LEAST_EFFECT = 0.02


def read_source(source: MemorySource, row: dict, own: MemorySource, gate: float | None) -> str:
    """What a source's ratio says about the policy, by fixed rules (docs/interventions.md)."""
    if source is own:
        return "the memory that it acts with: the others are compared with this"
    if gate is not None and gate < SHUT_GATE:
        return "the gate is shut: the memory is not read, so that this says nothing about robustness"
    low, high = row["ratio_low"], row["ratio_high"]
    if low is None:
        return "no interval: at least 2 episodes are needed"
    below, above = high < 1, low > 1
    if (below or above) and row["episodes"] < FEWEST_EPISODES:
        return f"{row['episodes']} episodes are too few to tell: {FEWEST_EPISODES} are needed"
    if (below or above) and abs(row["ratio"] - 1) < LEAST_EFFECT:
        return f"a difference of less than {LEAST_EFFECT:.0%} of the error, whatever its interval: none to speak of"
    if source.traits.is_offline:
        if below:
            return "better predictions would improve its actions"
        return "the true future makes its actions worse" if above else "not shown that better predictions would help"
    if source is MemorySource.pred:
        return "the Prophet's memory would be " + ("better" if below else "worse" if above else "no different")
    if above:
        return f"relies on {source.traits.relies_on}"
    return "better without its own memory" if below else "not shown that it relies on its memory"


def gate_note(gates: dict[str, dict]) -> tuple[float | None, str | None]:
    """The widest gate, and a sentence about it."""
    values = [row["gate"] for row in gates.values() if row["gate"] is not None]
    if not values:
        return None, None
    widest = max(values)
    if widest < SHUT_GATE:
        return widest, (
            f"the gate never opened (|gate| = {widest:.1e} < {SHUT_GATE:g}): the memory is not used. Ratios of 1 are "
            "no sign of robustness"
        )
    return widest, f"the gate is open (|gate| = {widest:.3f}); its width says nothing about how much the memory helps"


def number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return float(value) if math.isfinite(value) else None


def table(record: dict) -> str:
    """The record, for people."""
    lines = [
        f"{record['policy_type']} {record['checkpoint']}",
        f"{record['frames']} frames of {record['episodes']} episodes: {record['held_out']}",
    ]
    if record["gate_note"]:
        lines.append(record["gate_note"])
    lines.append(f"\n{'memory':<22}{'error':>8}{'raw':>9}{'ratio':>8}  {'95 % interval':<18}{'change':>7}  reading")
    for source, row in record["sources"].items():
        bounds = "" if row["ratio_low"] is None else f"[{row['ratio_low']:.3f}, {row['ratio_high']:.3f}]"
        lines.append(
            f"{source:<22}{row['error']:>8.4f}{row['error_raw']:>9.4f}{row['ratio']:>8.3f}  {bounds:<18}"
            f"{row['chunk_change']:>7.3f}  {row['reading']}"
        )
    for why in dict.fromkeys(record["skipped"].values()):
        names = [source for source, reason in record["skipped"].items() if reason == why]
        lines.append(f"not applicable, since {why}: {', '.join(names)}")
    for title, rows in (
        ("world tokens: top-1 accuracy", record["tokens"]),
        ("latents: 1 - cosine", record["latents"]),
        ("open loop: 1 - cosine", record["rollout"]),
    ):
        if rows:
            lines.append(f"\n{title:<30}{'step':>6}{'predicted':>11}{'copy':>8}{'skill':>8}  95 % interval")
        for row in rows or []:
            skill = "" if row.get("skill") is None else f"{row['skill']:>8.3f}"
            key = "value" if title.startswith("world") else "skill"
            low, high = row[f"{key}_low"], row[f"{key}_high"]
            bounds = "" if low is None else f"[{low:.3f}, {high:.3f}]"
            lines.append(f"{'':<30}{row['step']:>6}{row['value']:>11.4f}{row['copy']:>8.4f}{skill:>8}  {bounds}")
    if record["attention_mass"]:
        masses = ", ".join(f"{mass:.3f}" for mass in record["attention_mass"])
        lines.append(f"\nattention per future step: {masses}")
    return "\n".join(lines)
