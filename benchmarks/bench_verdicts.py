"""Levels, power and coverage of `wm-compare`, over simulated studies whose true effects are known.

Every share below is over simulated studies, with its Wilson interval. Chances of success: tasks, scenes, training runs,
and what models have with tasks and scenes, all random (tests/studies/evidence/simulated_studies.py has the model).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.extend([str(Path(__file__).parent), str(Path(__file__).parents[1] / "tests/studies/evidence")])
from provenance import provenance
from simulated_studies import StudyShape, simulate_study

from world_modality_core.studies.evidence.comparable import ModelArm, pair
from world_modality_core.studies.evidence.compare import INTACT, compare
from world_modality_core.studies.evidence.hierarchical_bootstrap import bootstrap_intervals
from world_modality_core.studies.evidence.paired import PairCounts, compare_counts, compare_runs
from world_modality_core.studies.evidence.sequential import log_e_values
from world_modality_core.studies.evidence.verdicts import NEEDED, SHOWN, USED
from world_modality_core.studies.evidence.wilson import wilson_interval

ALPHA = 0.05
# 400 pairs: 4 tasks x 50 scenes x 2 training runs.
SHAPE = StudyShape(n_tasks=4, n_scenes=50, n_runs=2)


def share(hits: list[bool], target: str = "") -> dict:
    """Share of studies, as a row of the record."""
    low, high = wilson_interval(sum(hits), len(hits))
    return {"share": float(np.mean(hits)), "low": low, "high": high, "n": len(hits), "target": target}


def verdicts(
    question: str, arms: dict, shape: StudyShape, n: int, seed: int, target: str, matched: float | None = None
):
    """How often the verdict is "shown".

    Args:
        question: Of the verdict.
        arms: Arm -> true gain.
        shape: Sizes and random effects.
        n: Studies.
        seed: Of the random numbers.
        target: Figure to reach, as text.
        matched: True gain of the parameter-matched model; none if None.
    """
    rng = np.random.default_rng(seed)
    gains = {"F": arms} | ({"A": {INTACT: matched}} if matched is not None else {})
    hits, discordance, gained = [], [], []
    for _ in range(n):
        study = simulate_study(shape, gains, rng)
        report = compare(study.episodes, matched="A" if matched is not None else "", alpha=ALPHA, n_bootstrap=0)
        hits.append(next(v.answer for v in report.verdicts if v.question == question) == SHOWN)
        discordance += [c.parts[0].counts.discordance for c in report.comparisons]
        gained += [c.parts[0].counts.difference for c in report.comparisons]
    pairs = shape.n_tasks * shape.n_scenes * shape.n_runs
    return share(hits, target) | {
        "pairs": pairs, "mean_discordance": float(np.mean(discordance)), "mean_difference": float(np.mean(gained))
    }  # fmt: skip


def two_models(shape: StudyShape, gain: float, n: int, seed: int) -> dict[str, dict]:
    """How often two models are found to differ: by McNemar, over training runs, and by both."""
    rng = np.random.default_rng(seed)
    hits = {"mcnemar_alone": [], "runs_alone": [], "both": []}
    for _ in range(n):
        _, counts, differences = pair_of_models(shape, gain, rng)
        of_pairs, of_runs = compare_counts(counts).p <= ALPHA, compare_runs(differences).p <= ALPHA
        for name, hit in zip(hits, (of_pairs, of_runs, of_pairs and of_runs), strict=True):
            hits[name].append(hit)
    target = f"<= {ALPHA}" if gain == 0 else ""
    return {name: share(of_name, target if name == "both" else "") for name, of_name in hits.items()}


def pair_of_models(shape: StudyShape, gain: float, rng: np.random.Generator):
    """(study, pair counts, differences per task) of model F, which gains, and model A, which does not."""
    study = simulate_study(shape, {"F": {INTACT: gain}, "A": {INTACT: 0.0}}, rng)
    pairs = pair(study.episodes, ModelArm("F", INTACT), ModelArm("A", INTACT))
    counts = PairCounts.of(
        np.concatenate([task.first.ravel() for task in pairs.tasks]),
        np.concatenate([task.second.ravel() for task in pairs.tasks]),
    )
    return study, counts, [task.difference for task in pairs.tasks]


def sequential(n: int, seed: int, n_pairs: int, gain: float) -> dict[str, dict]:
    """How often peeking after every pair ends in "different": by the e-process, and by McNemar used against its rules.

    Arms of one checkpoint, one training run.
    """
    rng = np.random.default_rng(seed)
    shape = replace(SHAPE, n_runs=1, n_scenes=n_pairs // 4)
    e_hits, naive_hits, stops = [], [], []
    for _ in range(n):
        study = simulate_study(shape, {"F": {INTACT: gain, "zero": 0.0}}, rng)
        signs = pair(study.episodes, ModelArm("F", INTACT), ModelArm("F", "zero")).signs_in_order()
        reached = log_e_values(signs) >= -np.log(ALPHA)
        wins, losses = np.cumsum(signs > 0), np.cumsum(signs < 0)
        naive = 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5) <= ALPHA
        e_hits.append(bool(reached.any()))
        naive_hits.append(bool(naive.any()))
        stops.append(int(reached.argmax()) + 1 if reached.any() else n_pairs)
    return {
        "e_process": share(e_hits, f"<= {ALPHA}" if gain == 0 else "")
        | {"pairs": n_pairs, "mean_stop": np.mean(stops)},
        "mcnemar_at_every_pair": share(naive_hits) | {"pairs": n_pairs},
    }


def coverage(shape: StudyShape, n: int, seed: int, n_draws: int) -> dict[str, dict]:
    """How often the 95 % intervals of two models, 10 points apart, hold the truth that they are about."""
    rng = np.random.default_rng(seed)
    hits = {"newcombe": [], "runs": [], "bootstrap": []}
    f, a = ModelArm("F", INTACT), ModelArm("A", INTACT)
    for i in range(n):
        study, counts, differences = pair_of_models(shape, 0.1, rng)
        result = compare_counts(counts)
        truth = study.rates_of_checkpoints[f] - study.rates_of_checkpoints[a]
        hits["newcombe"].append(result.low <= truth <= result.high)
        runs = compare_runs(differences)
        if runs is not None:
            truth = study.rates_of_models[f] - study.rates_of_models[a]
            hits["runs"].append(runs.low <= truth <= runs.high)
        values = [task.astype(float) for task in differences]
        low, high = bootstrap_intervals(values, [""] * len(values), n_draws, i)["tasks"]
        hits["bootstrap"].append(low <= 0.1 <= high)
    return {name: share(of_name) for name, of_name in hits.items() if of_name}


def measure(n: int, n_draws: int, seed: int) -> dict:
    """All figures, printed as they come."""
    figures = {}

    def note(name: str, row: dict) -> None:
        for key, value in {"": row}.items() if "share" in row else row.items():
            full = f"{name}: {key}" if key else name
            figures[full] = value
            more = "".join(f", {k} {v:.3g}" for k, v in value.items() if k.startswith(("mean", "pairs")))
            print(
                f"{full:<88}{value['share']:.3f} ({value['low']:.3f} to {value['high']:.3f})"
                f"{'  target ' + value['target'] if value['target'] else ''}{more}",
                flush=True,
            )

    nothing = {INTACT: 0.0, "shuffle_within_task": 0.0, "copy_current": 0.0}
    half = {INTACT: 0.2, "shuffle_within_task": 0.0, "copy_current": 0.2}
    gain = {INTACT: 0.1, "shuffle_within_task": 0.0, "copy_current": 0.0}
    level = f"<= {ALPHA}"
    note("false 'memory used', no effect", verdicts(USED, nothing, SHAPE, n, seed, level))
    note("false 'memory used', 20 points over shuffle only", verdicts(USED, half, SHAPE, n, seed + 1, level))
    note("found 'memory used', 10 points over both", verdicts(USED, gain, SHAPE, n, seed + 2, ">= 0.9"))
    own = {INTACT: 0.15, "shuffle_within_task": 0.0, "copy_current": 0.0, "gate_closed": 0.0}
    for n_runs in (3, 5):
        # Equal in every task: a model that is better in these tasks is better as far as these tests go.
        shape = replace(SHAPE, n_runs=n_runs, model_task_sd=0.0)
        note(
            f"false 'memory needed', the matched model is as good, {n_runs} runs",
            verdicts(NEEDED, own, shape, n, seed + 3, level, matched=0.15),
        )
        note(
            f"found 'memory needed', 15 points over all, {n_runs} runs",
            verdicts(NEEDED, own, shape, n, seed + 4, "", matched=0.0),
        )
        note(f"two equal models found different, {n_runs} runs", two_models(shape, 0.0, n, seed + 5))
        note(f"two models, 10 points apart, found different, {n_runs} runs", two_models(shape, 0.1, n, seed + 6))
    note("peeking after every pair, no effect", sequential(n, seed + 7, 2000, 0.0))
    note("peeking after every pair, 10 points", sequential(n, seed + 8, 400, 0.1))
    for n_tasks, n_runs, n_scenes in ((4, 1, 100), (4, 3, 50), (4, 5, 50), (8, 3, 50), (8, 5, 50), (20, 10, 20)):
        shape = replace(SHAPE, n_tasks=n_tasks, n_runs=n_runs, n_scenes=n_scenes)
        note(f"coverage, {n_tasks} tasks x {n_runs} runs x {n_scenes} scenes", coverage(shape, n, seed + 9, n_draws))
    return figures


def speed(seed: int) -> dict:
    """Seconds to compare 100 evaluations of 1,000 episodes: 4 models x 5 runs x 5 arms."""
    arms = {arm: 0.0 for arm in (INTACT, "shuffle_within_task", "copy_current", "gate_closed", "zero")}
    shape = StudyShape(n_tasks=10, n_scenes=100, n_runs=5)
    study = simulate_study(shape, {model: arms for model in "ABCD"}, np.random.default_rng(seed))
    start = time.perf_counter()
    compare(study.episodes, baseline="A", matched="B")
    seconds = time.perf_counter() - start
    print(f"{len(study.episodes)} episodes compared in {seconds:.1f} s")
    return {"episodes": len(study.episodes), "seconds": seconds}


def main() -> None:
    cli = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_argument("--n_studies", type=int, default=400)
    cli.add_argument("--n_bootstrap", type=int, default=500)
    cli.add_argument("--seed", type=int, default=0)
    cli.add_argument("--json", type=Path, help="also write the figures here")
    args = cli.parse_args()
    start = time.perf_counter()
    record = {
        "title": "levels, power and coverage of wm-compare over simulated studies",
        "settings": {"n_studies": args.n_studies, "n_bootstrap": args.n_bootstrap, "seed": args.seed, "alpha": ALPHA},
        "shape": asdict(SHAPE),
        "figures": measure(args.n_studies, args.n_bootstrap, args.seed),
        "speed": speed(args.seed),
        "seconds": time.perf_counter() - start,
    }
    if args.json is not None:
        args.json.write_text(json.dumps(record | provenance(), indent=2) + "\n")


if __name__ == "__main__":
    main()
