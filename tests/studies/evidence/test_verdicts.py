"""The two verdicts, by their rules; their level and power by simulation."""

import numpy as np
import pytest

from tests.studies.evidence.simulated_studies import StudyShape, simulate_study
from world_modality_core.studies.evidence.compare import compare
from world_modality_core.studies.evidence.paired import PairCounts, RunsResult, compare_scenes
from world_modality_core.studies.evidence.plan import smallest_effect
from world_modality_core.studies.evidence.sequential import sequential_test
from world_modality_core.studies.evidence.verdicts import NOT_SHOWN, SHOWN, SHUT, UNDECIDED, Evidence, judge

OPEN = {0: 0.2, 1: 0.05}
CLEAR, WORSE, TIE = (40, 10), (10, 40), (25, 22)


def evidence(name: str, wins: int, losses: int, runs: RunsResult | None = None, n_planned: int = 0) -> Evidence:
    counts = PairCounts(200, wins, losses, 400 - 200 - wins - losses)
    signs = np.random.default_rng(0).permutation([1] * wins + [-1] * losses + [0] * (400 - wins - losses))
    in_turn = sequential_test(signs[:, None], n_planned) if n_planned else None
    return Evidence(name, counts, compare_scenes([signs[None]]), runs, in_turn, "these checkpoints")


def runs_of(p: float) -> RunsResult:
    return RunsResult(0.075, 0.0, 0.15, p, standard_error=0.02, chance_error=0.02, n_runs=3, probability_ahead=0.9)


def judged(shuffle=CLEAR, copy=CLEAR, closed=CLEAR, matched=CLEAR, runs_p=0.001, gates=None, n_planned=0):
    parts = {"shuffle_within_task": shuffle, "copy_current": copy, "gate_closed": closed}
    arms = {arm: evidence(arm, *wins, n_planned=n_planned) for arm, wins in parts.items() if wins}
    runs = None if runs_p is None else runs_of(runs_p)
    control = evidence("matched", *matched, runs) if matched else None
    return judge("F", arms, control, OPEN if gates is None else gates)


@pytest.mark.parametrize(
    ("case", "used", "needed"),
    [
        ({}, SHOWN, SHOWN),
        ({"shuffle": TIE}, NOT_SHOWN, NOT_SHOWN),
        ({"copy": TIE}, NOT_SHOWN, NOT_SHOWN),
        ({"shuffle": WORSE}, NOT_SHOWN, NOT_SHOWN),
        ({"closed": TIE}, SHOWN, NOT_SHOWN),
        ({"closed": WORSE}, SHOWN, NOT_SHOWN),
        ({"matched": TIE}, SHOWN, NOT_SHOWN),
        ({"runs_p": 0.2}, SHOWN, NOT_SHOWN),  # these checkpoints differ; retraining need not give the same
        ({"runs_p": None}, SHOWN, UNDECIDED),  # a single training run
        ({"matched": None}, SHOWN, UNDECIDED),
        ({"closed": None}, SHOWN, UNDECIDED),
        ({"shuffle": None}, UNDECIDED, UNDECIDED),
        ({"shuffle": None, "copy": TIE}, NOT_SHOWN, NOT_SHOWN),
        ({"gates": {0: 1e-5, 1: 0.0}, "shuffle": TIE}, SHUT, SHUT),
        ({"gates": {0: 1e-5, 1: 0.0}, "shuffle": None, "copy": None}, SHUT, SHUT),
        ({"gates": {0: 1e-5, 1: 0.0}}, UNDECIDED, UNDECIDED),  # which can't be: something else differs
        ({"gates": {0: 1e-5, 1: 0.0}, "shuffle": TIE, "copy": TIE}, SHUT, SHUT),
        ({"gates": {0: 1e-5, 1: 0.1}}, SHOWN, SHOWN),
        ({"gates": {}}, SHOWN, SHOWN),  # a model that logs no gate
        ({"n_planned": 400}, SHOWN, SHOWN),
        ({"n_planned": 400, "copy": TIE}, NOT_SHOWN, NOT_SHOWN),
        ({"n_planned": 4000, "copy": TIE}, UNDECIDED, UNDECIDED),  # pairs are still to come
    ],
)
def test_verdicts_by_the_rules(case, used, needed):
    answers = judged(**case)
    assert [verdict.answer for verdict in answers] == [used, needed]


def test_reasons_name_what_was_missing():
    used, needed = judged(shuffle=TIE, matched=None, gates={0: 1e-5, 1: 0.1})
    assert used.smallest_effect == pytest.approx(smallest_effect(400, 47 / 400))
    assert f"needs about {100 * used.smallest_effect:.1f} points or more to be detected by 400 pairs" in used.reasons[0]
    assert "the gate never opened in training runs 0" in used.reasons
    assert "no parameter-matched model without memory was named (--matched)" in needed.reasons
    worse, _ = judged(copy=WORSE)
    assert "intact is worse" in worse.reasons[1]
    shut, _ = judged(gates={0: 1e-5}, copy=TIE)
    assert "1.0e-05" in shut.reasons[0]
    assert "robust" not in " ".join(shut.reasons)


def test_p_of_a_verdict_is_the_largest_of_its_parts():
    used, needed = judged(copy=(40, 15), runs_p=0.03)
    assert used.p == evidence("", 40, 15).scenes.p
    assert needed.p == 0.03


# 400 pairs: 4 tasks x 50 scenes x 2 training runs; discordance about 0.32.
SHAPE = StudyShape(n_tasks=4, n_scenes=50, n_runs=2)
GAINS = {
    "no effect": {"intact": 0.0, "shuffle_within_task": 0.0, "copy_current": 0.0},
    "more vision, not the future": {"intact": 0.2, "shuffle_within_task": 0.0, "copy_current": 0.2},
    "10 points": {"intact": 0.1, "shuffle_within_task": 0.0, "copy_current": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", GAINS)
def test_memory_used_holds_its_level_and_finds_10_points(case):
    """Small version of benchmarks/bench_verdicts.py."""
    rng = np.random.default_rng(0)
    n, shown = 40, 0
    for _ in range(n):
        report = compare(simulate_study(SHAPE, {"F": GAINS[case]}, rng).episodes)
        shown += report.verdicts[0].answer == SHOWN
    if case == "10 points":
        assert shown >= 0.8 * n
    else:
        assert shown <= 0.1 * n
