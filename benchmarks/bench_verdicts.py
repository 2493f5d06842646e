"""Levels, power and coverage of what `wm-compare` prints, over simulated studies whose true effects are known.

The grid: discordance x spread of training runs x pairs x training runs x interactions. In each cell, studies without an
effect give the share of false positives of every p-value that is printed, each held against the claim that its line
makes, and the coverage of every interval; studies with a gain of 10 points give the power. The claims:

    checkpoints   these checkpoints, scenes like these of these tasks
    recipes       training runs like these, these tasks
    tasks         training runs and tasks like these

A pair of episodes differs with the cell's probability `discordance`; who wins then is a coin whose share of wins holds
the gain and the run's luck (`spread`, in points of success), and in logits what a scene (2) and a task (0.5) do for one
side in all its training runs. Where a claim is about these checkpoints or these tasks, their effects come in opposite
pairs, so that they add up to nothing.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
from scipy.special import expit, logit

sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests/studies/evidence")])
from provenance import provenance
from simulated_studies import StudyShape, simulate_study

from world_modality_core.studies.evidence.comparable import ModelArm, Pairs, TaskPairs
from world_modality_core.studies.evidence.compare import compare, compare_pairs
from world_modality_core.studies.evidence.paired import (
    PairCounts,
    compare_runs,
    compare_scenes,
    compare_tasks,
    heterogeneity_p,
    margin_p,
)
from world_modality_core.studies.evidence.sequential import sequential_test
from world_modality_core.studies.evidence.verdicts import NEEDED, SHOWN, judge
from world_modality_core.studies.evidence.wilson import wilson_interval

ALPHA = 0.05
GAIN = 0.1
SCENE_SD, TASK_SD = 2.0, 0.5
DISCORDANCES, SPREADS, PAIRS, RUNS = (0.05, 0.2, 0.5), (0.0, 0.05, 0.1), (54, 180, 405), (1, 3, 5)
INTERACTIONS = ("none", "scene", "task", "both")
F, ZERO, A = ModelArm("F", "intact"), ModelArm("F", "zero"), ModelArm("A", "intact")
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(21)


@dataclass(frozen=True)
class Cell:
    """One kind of study."""

    claim: str
    discordance: float
    spread: float
    n_pairs: int
    n_runs: int
    interaction: str
    n_tasks: int = 3
    gain: float = 0.0

    @property
    def n_scenes(self) -> int:
        """Of each task."""
        return max(2, round(self.n_pairs / (self.n_tasks * self.n_runs)))

    @property
    def scene_sd(self) -> float:
        return SCENE_SD * (self.interaction in ("scene", "both"))

    @property
    def task_sd(self) -> float:
        return TASK_SD * (self.interaction in ("task", "both"))


def chances(cell: Cell, run, logits) -> tuple[np.ndarray, np.ndarray]:
    """(discordance, share of wins) of pairs, from a run's luck and the sum of what a task and a scene add in logits."""
    difference = cell.gain + run
    discordance = np.minimum(np.maximum(cell.discordance, np.abs(difference)), 1.0)
    share = np.clip((discordance + difference) / (2 * discordance), 1e-4, 1 - 1e-4)
    return discordance, expit(logit(share) + logits)


def truth(cell: Cell, run, task) -> np.ndarray:
    """Expected difference over scenes, given the run's luck and the task's effect."""
    discordance, share = chances(cell, np.asarray(run)[..., None], np.asarray(task)[..., None] + cell.scene_sd * _NODES)
    return (discordance * (2 * share - 1)) @ _WEIGHTS / _WEIGHTS.sum()


def opposite_pairs(rng: np.random.Generator, sd: float, n: int) -> np.ndarray:
    """(n,) normal effects that add up to nothing: x, -x, y, -y, ..., and 0 if n is odd."""
    half = rng.normal(0, sd, n // 2)
    return np.concatenate([half, -half, np.zeros(n % 2)])


def draw(cell: Cell, rng: np.random.Generator, second: ModelArm) -> tuple[Pairs, float]:
    """A study, and what its claim is about: the true difference."""
    normal = lambda sd, n: rng.normal(0, sd, n)  # noqa: E731
    runs = (opposite_pairs if cell.claim == "checkpoints" else lambda rng, sd, n: normal(sd, n))(
        rng, cell.spread, cell.n_runs
    )
    tasks = (opposite_pairs if cell.claim != "tasks" else lambda rng, sd, n: normal(sd, n))(
        rng, cell.task_sd, cell.n_tasks
    )
    scenes = normal(cell.scene_sd, (cell.n_tasks, 1, cell.n_scenes))
    discordance, share = chances(cell, runs[None, :, None], tasks[:, None, None] + scenes)
    is_discordant = rng.random(share.shape) < discordance
    is_win = rng.random(share.shape) < share
    both = rng.random(share.shape) < 0.6
    first = np.where(is_discordant, is_win, both)
    other = np.where(is_discordant, ~is_win, both)
    seeds = np.arange(cell.n_scenes)
    of_tasks = tuple(TaskPairs(f"task-{i}", "", seeds, first[i], other[i]) for i in range(cell.n_tasks))
    pairs = Pairs(F, second, tuple(range(cell.n_runs)), of_tasks)
    if cell.claim == "checkpoints":
        return pairs, float(truth(cell, runs[None, :], tasks[:, None]).mean())
    of_runs = cell.spread * _NODES[None, :]
    if cell.claim == "recipes":
        return pairs, float((truth(cell, of_runs, tasks[:, None]) @ _WEIGHTS).mean() / _WEIGHTS.sum())
    of_tasks = cell.task_sd * _NODES[:, None]
    return pairs, float(_WEIGHTS @ truth(cell, of_runs, of_tasks) @ _WEIGHTS / _WEIGHTS.sum() ** 2)


def look(cell: Cell, rng: np.random.Generator) -> dict[str, bool]:
    """What one study's lines say: name of the figure -> whether it rejected, or held the truth."""
    kind = "arm" if cell.claim == "checkpoints" else "model"
    pairs, true = draw(cell, rng, ZERO if kind == "arm" else A)
    # As `compare_pairs` does, without each task's own figures.
    differences = [task.difference for task in pairs.tasks]
    result = overall = compare_scenes(differences)
    if cell.claim != "checkpoints":
        result = compare_runs(differences, overall)
    if cell.claim == "tasks":
        result = compare_tasks(differences, result, True)
    seen = {"p": result.p <= ALPHA, "interval": result.low <= true <= result.high}
    if cell.claim == "checkpoints":
        in_turn = sequential_test(pairs.in_order(), cell.n_scenes * cell.n_tasks * cell.n_runs, ALPHA, with_share=False)
        seen["sequential p"] = in_turn.p <= ALPHA
    else:
        seen["narrower than the checkpoints' interval"] = result.high - result.low < overall.high - overall.low - 1e-9
    if cell.claim == "recipes" and cell.gain == GAIN:
        seen["as good within 10 points, p"] = max(margin_p(counts_of(pairs), overall, result, true)) <= ALPHA
    if cell.claim == "checkpoints" and cell.task_sd == 0 and cell.gain == 0:
        seen["p of tasks that differ"] = heterogeneity_p(differences) <= ALPHA
    return seen


def counts_of(pairs: Pairs) -> PairCounts:
    return PairCounts.of(
        *(np.concatenate([getattr(task, side).ravel() for task in pairs.tasks]) for side in ("first", "second"))
    )


def share(hits: list[bool]) -> dict:
    """Share of studies with its Wilson interval, as the record holds it."""
    return share_of(sum(hits), len(hits))


def share_of(hits: int, n: int) -> dict:
    low, high = wilson_interval(hits, n)
    return {"share": round(hits / n, 4), "low": round(low, 4), "high": round(high, 4), "n": n}


def measure(cells: list[Cell], n: int, seed: int) -> list[dict]:
    """A row per cell and figure."""
    rows = []
    for i, cell in enumerate(cells):
        rng = np.random.default_rng([seed, i])
        seen = defaultdict(list)
        for _ in range(n):
            for name, hit in look(cell, rng).items():
                seen[name].append(bool(hit))
        rows += [asdict(cell) | {"figure": name} | share(hits) for name, hits in seen.items()]
    return rows


def grid() -> list[Cell]:
    """All cells without an effect, and with one where the discordance leaves room; six tasks for claims about tasks."""
    cells = []
    for discordance, spread, n_pairs, n_runs, interaction in itertools.product(
        DISCORDANCES, SPREADS, PAIRS, RUNS, INTERACTIONS
    ):
        if n_runs == 1 and (spread > 0 or interaction in ("scene", "both")):
            continue  # of one run's checkpoints nothing is known beyond themselves
        for gain in (0.0, GAIN) if discordance >= 2 * GAIN else (0.0,):
            cell = Cell("checkpoints", discordance, spread, n_pairs, n_runs, interaction, gain=gain)
            cells.append(cell)
            if n_runs > 1:
                cells.append(replace(cell, claim="recipes"))
                cells.append(replace(cell, claim="tasks", n_tasks=6))
    return cells


def summary(rows: list[dict], n: int, seed: int) -> list[dict]:
    """Of each claim and figure: over all cells, and the worst two cells, simulated again (n studies each).

    The worst of hundreds of cells is mostly the unluckiest: only other studies of it tell whether it is bad.
    """
    groups = defaultdict(list)
    for row in rows:
        groups[row["claim"], row["figure"], row["gain"]].append(row)
    lines = []
    for (claim, figure, gain), members in groups.items():
        if gain and figure in ("p", "sequential p"):
            continue  # that is power, which differs between cells as it should
        worst = sorted(members, key=lambda row: row["share"], reverse=figure != "interval")[:2]
        names = [each.name for each in fields(Cell)]
        again = measure([Cell(**{name: row[name] for name in names}) for row in worst], n, seed + 1)
        n_all = sum(row["n"] for row in members)
        lines.append(
            {
                "claim": claim,
                "figure": figure,
                "gain": gain,
                "cells": len(members),
                "all": share_of(sum(round(row["share"] * row["n"]) for row in members), n_all),
                "worst_again": [row for row in again if row["figure"] == figure],
            }  # fmt: skip
        )
    return lines


def power(n: int, seed: int) -> list[dict]:
    """Power at 10 points of the tests and verdicts, 405 pairs; nothing that training seeds share but the gain."""
    rows = []
    for discordance in (0.2, 0.32, 0.5):
        arms = Cell("checkpoints", discordance, 0.0, 405, 1, "none", gain=GAIN)
        models = Cell("recipes", discordance, 0.05, 405, 5, "none", gain=GAIN)
        rng = np.random.default_rng([seed, round(100 * discordance)])
        hits, pairs_used = defaultdict(list), []
        for _ in range(n):
            studies = [draw(arms, rng, ZERO)[0] for _ in range(3)]
            found = [compare_pairs("arm", study, ALPHA).evidence for study in studies]
            in_turn = sequential_test(studies[0].in_order(), 405, ALPHA, with_share=False)
            control = compare_pairs("matched", draw(models, rng, A)[0], ALPHA).evidence
            hits["one arm"].append(found[0].p <= ALPHA)
            hits["one arm, sequential"].append(in_turn.p <= ALPHA)
            pairs_used.append(in_turn.stopped_at or 405)
            names = ("shuffle_within_task", "copy_current", "gate_closed")
            used, needed = judge("F", dict(zip(names, found, strict=True)), control, {}, ALPHA)
            assert needed.question == NEEDED
            hits["memory used"].append(used.answer == SHOWN)
            hits["two recipes, 5 runs, spread 5"].append(control.p <= ALPHA)
            hits["memory needed, 5 runs, spread 5"].append(needed.answer == SHOWN)
        rows += [{"figure": name, "discordance": discordance} | share(of_name) for name, of_name in hits.items()]
        rows[-4]["mean_pairs"] = float(np.mean(pairs_used))
    return rows


def smallest_effects(n: int, seed: int) -> list[dict]:
    """10, 50 and 90 % quantiles of the smallest effect that a comparison of models names; no effect, 360 pairs."""
    rows = []
    for n_runs, spread in itertools.product((3, 5), (0.0, 0.05)):
        cell = Cell("recipes", 0.2, spread, 360, n_runs, "none")
        rng = np.random.default_rng([seed, n_runs, round(100 * spread)])
        found = [compare_pairs("model", draw(cell, rng, A)[0], ALPHA).evidence for _ in range(n)]
        row = {"n_runs": n_runs, "spread": spread, "n_pairs": 360, "n": n}
        for name, at_worst in (("named", False), ("at worst", True)):
            effects = [one.smallest_effect(ALPHA, at_worst) for one in found]
            effects = [1.0 if effect is None else effect for effect in effects]
            row[name] = [round(float(q), 3) for q in np.quantile(effects, [0.1, 0.5, 0.9])]
        rows.append(row)
    return rows


def speed(seed: int) -> dict:
    """Seconds to compare 100 evaluations of 1,000 episodes: 4 models x 5 runs x 5 arms."""
    arms = dict.fromkeys(("intact", "shuffle_within_task", "copy_current", "gate_closed", "zero"), 0.0)
    shape = StudyShape(n_tasks=10, n_scenes=100, n_runs=5)
    study = simulate_study(shape, {model: arms for model in "ABCD"}, np.random.default_rng(seed))
    start = time.process_time()
    compare(study.episodes, baseline="A", matched="B")
    return {"episodes": len(study.episodes), "cpu_seconds": round(time.process_time() - start, 1)}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--studies", type=int, default=100, help="simulated studies of each cell (100)")
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    start = time.process_time()
    rows = measure(grid(), args.studies, args.seed)
    lines = summary(rows, 10 * args.studies, args.seed)
    for line in lines:
        print(
            f"{line['claim']:<12} {line['figure']:<40} gain {line['gain']:.1f}: {line['all']['share']:.3f} in "
            f"{line['cells']} cells; the worst two again:",
            flush=True,
        )
        for worst in line["worst_again"]:
            print(
                f"    {worst['share']:.3f} ({worst['low']:.3f} to {worst['high']:.3f}) at discordance "
                f"{worst['discordance']}, spread {worst['spread']}, {worst['n_pairs']} pairs, {worst['n_runs']} runs, "
                f"interaction {worst['interaction']}"
            )
    powers, effects = power(4 * args.studies, args.seed), smallest_effects(args.studies, args.seed)
    for row in powers:
        print(f"power at 10 points, discordance {row['discordance']}: {row['figure']:<34} {row['share']:.3f}")
    for row in effects:
        print(f"smallest effect named, {row['n_runs']} runs, spread {row['spread']}: {row['named']}, {row['at worst']}")
    record = {
        "title": "levels, power and coverage of wm-compare over simulated studies",
        "studies_per_cell": args.studies, "seed": args.seed, "alpha": ALPHA, "summary": lines, "power": powers,
        "smallest_effects": effects, "speed": speed(args.seed), "columns": list(rows[0]),
        "cells": [list(row.values()) for row in rows],
        "cpu_seconds": round(time.process_time() - start),
    }  # fmt: skip
    if args.json is not None:
        text = json.dumps(record | provenance(), indent=1)
        flat = re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        args.json.write_text(flat + "\n")


if __name__ == "__main__":
    main()
