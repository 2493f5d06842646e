"""`wm-monitor eval`: areas, moments, alarms, disturbances and paired leads, on rows whose answers are known."""

import json

import numpy as np
import pytest
from scipy import stats

from world_modality_core.io.errors import ConfigError
from world_modality_core.monitor.cli import make_parser
from world_modality_core.monitor.judgement import CONTEST, _separations
from world_modality_core.monitor.judging import eval_rows
from world_modality_core.monitor.monitor_rows import write_monitor_rows

EVERY, LIMIT = 4, 80


def row(seed, success, steps, level, score, alarm=None, disturbance="", at=None, train_seed=1):
    n = -(-steps // EVERY)
    return {
        "model": "A", "train_seed": train_seed, "arm": "intact", "task": "push-v3", "seed": seed,
        "instruction": "push", "success": success, "steps": steps, "every": EVERY, "disturbance": disturbance,
        "disturbed_at": at, "false_alarm_rate": 0.1, "monitor_s": 0.1, "alarm_step": alarm, "level": list(level(n)),
        "values": np.stack([score(n), np.full(n, np.nan)], axis=1),
    }  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """20 successes of 40 to 59 steps and 10 failures; `level` tells them from step 12 on."""
    rng = np.random.default_rng(0)

    def late(n):
        return np.where(np.arange(n) * EVERY >= 12, 5.0, 0.0) + rng.normal(size=n) * 0.01

    rows = [
        row(i, True, 40 + i, lambda n: rng.normal(size=n) * 0.01, lambda n: rng.normal(size=n),
            alarm=8 if i < 2 else None, train_seed=1 + i % 2)
        for i in range(20)
    ]  # fmt: skip
    rows += [
        row(100 + i, False, LIMIT, late, lambda n: rng.normal(size=n), alarm=20 if i < 7 else None)
        | ({"setback_at": 16 + 8 * i, "setback": "dropped"} if i in (0, 1, 2, 9) else {})
        for i in range(10)
    ]
    write_monitor_rows(tmp_path, rows, ["noise", "unknown"])
    return tmp_path


def options(*arguments):
    return make_parser().parse_args(["eval", *map(str, arguments)])


def test_areas_leads_and_moments(folder, capsys, tmp_path):
    found = eval_rows(options(folder, f"--output={tmp_path / 'found.json'}"))["A"]
    by = {(each.moment, each.score): each for each in found["failures"]}
    assert {score for _, score in by} == {"level", "noise"}  # a score that nobody could tell is not judged
    contest = f"last with {CONTEST:.0%} running"
    # Usual length 49.5: a quarter of it is step 12, when the failures begin to show.
    assert by["50%", "level"].auc == by["50%", "level"].high == by[contest, "level"].auc == 1
    assert 0.7 < by["50%", "level"].low < 0.9  # ten failures don't tell that it is perfect
    assert by["50%", "level"].still_running == 1 and by["100%", "level"].still_running == 0.5
    assert by[contest, "level"].still_running >= CONTEST
    noise = by["50%", "noise"]
    assert 0.2 < noise.low < noise.auc < noise.high < 0.9 and noise.lead == 1 - noise.auc
    assert noise.lead_low > 0 and noise.p < 0.01 and by["50%", "level"].p is None
    assert (noise.n_positive, noise.n_negative) == (10, 20)
    said = capsys.readouterr().out
    assert "combination" in said and "promised 10.0%" in said
    assert json.loads((tmp_path / "found.json").read_text())["A"]["alarms"]["true"]["k"] == 7


def test_alarms_and_what_stopping_costs(folder):
    found = eval_rows(options(folder))["A"]
    alarms = found["alarms"]
    assert (alarms["false"]["k"], alarms["false"]["n"]) == (2, 20) and (alarms["true"]["k"], alarms["true"]["n"]) == (
        7,
        10,
    )
    assert alarms["median_lead_steps"] == 60 and alarms["median_lead_share"] == 0.75
    # Dropped at 16, 24 and 32, with an alarm at 20, and once without an alarm.
    assert found["setbacks"] == {"dropped": {"n": 4, "alarm": 3, "before": 2, "median_lead_steps": 4}}
    assert alarms["success"] == 20 / 30 and alarms["success_if_stopped"] == 18 / 30
    assert alarms["steps_saved"] == pytest.approx(7 * 60 / (sum(range(40, 60)) + 10 * LIMIT))
    assert {seed: of["k"] for seed, of in found["by_train_seed"].items()} == {1: 1, 2: 1}


def test_disturbances_are_judged_in_their_own_steps(folder):
    def shock(n):
        ticks = np.arange(n) * EVERY
        return np.where((ticks > 20) & (ticks <= 40), 3.0, 0.0)

    # As many steps after, everything is calm again: a mean over the episode would not see it.
    rows = [
        row(i, i % 2 == 0, 60, shock, np.zeros, alarm=24 if i else 12, disturbance="push_object", at=20)
        for i in range(10)
    ]
    rows.append(row(99, True, 16, np.zeros, np.zeros, disturbance="push_object", at=20))  # over before
    write_monitor_rows(folder / "pushed", rows, ["noise", "unknown"])
    found = eval_rows(options(folder))["A"]
    level = next(each for each in found["disturbances"]["push_object"] if each.score == "level")
    # The failures show at these steps too, in 10 of 30 undisturbed episodes.
    assert level.n_positive == 10 and level.n_negative == 30 and level.auc == pytest.approx(2 / 3)
    noticed = found["noticed"]["push_object"]
    assert (noticed["n"], noticed["soon"], noticed["before"], noticed["median_delay"]) == (10, 9, 1, 4)
    assert found["n"] == 30  # disturbed episodes are none of the policy's own


def test_a_folder_without_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no rows of a monitor"):
        eval_rows(options(tmp_path))


@pytest.mark.parametrize(
    ("n_failures", "n_successes", "n_runs", "distance"),
    [(3, 20, 1, 1.0), (5, 20, 1, 2.5), (10, 30, 1, 1.0), (30, 50, 1, 3.0), (10, 20, 5, 1.0)],
)
def test_intervals_and_leads_keep_their_level(n_failures, n_successes, n_runs, distance):
    """Two scores that are equally good, on scenes that are alike for all training runs; few failures, or easy ones."""
    rng = np.random.default_rng(0)
    kind = np.repeat([True, False], [n_failures * n_runs, n_successes * n_runs])
    scene = np.repeat(np.arange(n_failures + n_successes), n_runs)

    def normal():
        shared = 0.8 * rng.normal(size=scene[-1] + 1)[scene] if n_runs > 1 else 0
        return shared + (0.6 if n_runs > 1 else 1) * rng.normal(size=len(scene))

    missed = led = 0
    for _ in range(400):
        both = normal()
        values = {name: list(np.sqrt(0.5) * (both + normal()) + distance * kind) for name in ("level", "score_b")}
        level, other = _separations("then", values, np.zeros(len(scene)), scene, kind, 1.0)
        missed += not level.low <= stats.norm.cdf(distance / np.sqrt(2)) <= level.high
        led += other.p <= 0.05
    assert missed / 400 <= 0.07 and led / 400 <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)


def test_scenes_of_which_there_is_but_one_are_not_judged():
    values = {"level": [2.0, 1.0, 0.0], "score_b": [0.0, 1.0, 2.0]}
    told = np.array([True, False, False])
    assert _separations("then", values, np.zeros(3), np.arange(3), told, 1.0) == []


def test_an_episode_that_is_there_twice_is_refused(folder):
    (folder / "copy" / "monitor").mkdir(parents=True)
    part = next((folder / "monitor").glob("*.parquet"))
    (folder / "copy" / "monitor" / part.name).write_bytes(part.read_bytes())
    with pytest.raises(ConfigError, match="found more than once, the first model=A"):
        eval_rows(options(folder))
