"""`wm-compare` from files to the printed table, the JSON and the plot."""

import json
import re
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest
from statsmodels.stats.multitest import multipletests

from tests.studies.evidence.simulated_studies import StudyShape, simulate_study
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence import compare_cli
from world_modality_core.studies.evidence.comparable import ModelArm, NotComparableError
from world_modality_core.studies.evidence.compare import compare
from world_modality_core.studies.evidence.compare_cli import CompareConfig, folders_as_option
from world_modality_core.studies.evidence.compare_table import format_report
from world_modality_core.studies.evidence.episode_records import write_episodes
from world_modality_core.studies.evidence.families import holm
from world_modality_core.studies.evidence.paired import flip_p

SHAPE = StudyShape(n_tasks=3, n_scenes=20, n_runs=3)
GAINS = {
    "F": {"intact": 0.3, "shuffle_within_task": 0.0, "copy_current": 0.0, "gate_closed": 0.0},
    "A": {"intact": 0.0},
    "B": {"intact": 0.0},
}


@pytest.fixture(scope="module")
def episodes():
    return simulate_study(SHAPE, GAINS, np.random.default_rng(3)).episodes


@pytest.fixture(scope="module")
def folder(episodes, tmp_path_factory):
    """Two evaluations beneath one folder."""
    root = tmp_path_factory.mktemp("study")
    write_episodes(episodes[episodes["model"] == "F"], root / "F" / "episodes.parquet")
    write_episodes(episodes[episodes["model"] != "F"], root / "others" / "episodes.parquet")
    return root


def run(arguments, monkeypatch, capsys):
    """Exit code, stdout and stderr of the console script."""
    monkeypatch.setattr(sys, "argv", ["wm-compare", *map(str, arguments)])
    try:
        code = compare_cli.main()
    except SystemExit as exit_:
        code = exit_.code
    return code, *capsys.readouterr()


def test_tasks_can_be_chosen_by_name_and_it_is_said(episodes, folder, monkeypatch, capsys, tmp_path):
    first, second, third = sorted(episodes["task"].unique())
    output = tmp_path / "figures.json"
    wanted = [folder, "--baseline=A", "--candidates=F", f"--json={output}"]
    code, _, err = run([*wanted, f"--tasks={first[:-1]}[{first[-1]}],{third}"], monkeypatch, capsys)
    assert code == 0 and "on 2 of 3 tasks" in err
    (models,) = [c for c in json.loads(output.read_text())["comparisons"] if c["kind"] != "arm"]
    assert {part["name"] for part in models["parts"] if part["level"] == "task"} == {first, third}
    code, _, err = run([*wanted, "--tasks=nothing-*"], monkeypatch, capsys)
    assert code == 2 and f"no episode is of 'nothing-*'; there are {first}, {second}, {third}" in err
    assert "tasks" not in run(wanted, monkeypatch, capsys)[2]


def test_rates_and_differences_are_those_of_the_episodes(episodes):
    report = compare(episodes, baseline="A", matched="B")
    by_side = {side.side: side for side in report.sides}
    assert set(by_side) == {ModelArm(model, arm) for model, arms in GAINS.items() for arm in arms}
    for side, rates in by_side.items():
        rows = episodes[(episodes["model"] == side.model) & (episodes["arm"] == side.arm)]
        for rate in rates.rates:
            column = {"overall": rows["success"], "tier": rows["tier"], "task": rows["task"]}[rate.level]
            chosen = rows if rate.level == "overall" else rows[column == rate.name]
            assert (rate.successes, rate.n) == (chosen["success"].sum(), len(chosen))
        means = rates.means
        per_task = rows.groupby("task")["success"].mean()
        assert means["episodes"] == pytest.approx(rows["success"].mean())
        assert means["tasks"] == pytest.approx(per_task.mean())
        # task-0 and task-2 are easy, task-1 is hard
        assert means["tiers"] == pytest.approx((per_task[["task-0", "task-2"]].mean() + per_task["task-1"]) / 2)
        assert all(rate.low <= rate.rate <= rate.high for rate in rates.rates)
    kinds = [(c.kind, str(c.first), str(c.second)) for c in report.comparisons]
    assert kinds == [
        ("arm", "F/intact", "F/copy_current"),
        ("arm", "F/intact", "F/gate_closed"),
        ("arm", "F/intact", "F/shuffle_within_task"),
        ("model", "F/intact", "A/intact"),
        ("matched", "F/intact", "B/intact"),
    ]
    table = episodes.pivot_table(index=["train_seed", "task", "seed"], columns=["model", "arm"], values="success")
    for c in report.comparisons:
        first, second = table[c.first.model, c.first.arm] > 0, table[c.second.model, c.second.arm] > 0
        counts = c.parts[0].counts
        assert (counts.wins, counts.losses) == ((first & ~second).sum(), (second & ~first).sum())
        of_scenes = (first.astype(int) - second.astype(int)).groupby(["task", "seed"]).sum()
        assert c.parts[0].result.p == flip_p(of_scenes.to_numpy())
        assert [part.name for part in c.parts] == ["episodes", "easy", "hard", "task-0", "task-1", "task-2"]
        assert (c.runs is None) == (c.kind == "arm")
        assert c.p_holm >= c.evidence.p
    arms = report.comparisons[:3]
    smallest = min(arms, key=lambda c: c.evidence.p)
    assert smallest.p_holm == pytest.approx(min(1.0, 3 * smallest.evidence.p))
    assert [verdict.model for verdict in report.verdicts] == ["F", "F"]


@pytest.mark.parametrize("p_values", [[], [0.04], [0.03, 0.01, 0.02], [0.5, 0.6, 0.01, 0.01]])
def test_holm_as_statsmodels(p_values):
    assert holm(p_values) == pytest.approx(list(multipletests(p_values, method="holm")[1]))


def test_defaults_follow_from_what_is_there(episodes):
    only_f = compare(episodes[episodes["model"] == "F"])
    assert [c.kind for c in only_f.comparisons] == ["arm"] * 3
    models = compare(episodes[episodes["arm"] == "intact"], baseline="A")
    assert [str(c.first) for c in models.comparisons] == ["B/intact", "F/intact"]
    assert not models.verdicts
    one_arm = compare(episodes, arms=["copy_current"], candidates=["F"])
    assert [c.second.arm for c in one_arm.comparisons] == ["copy_current"]
    assert one_arm.verdicts[0].answer == "not decided"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"baseline": "C"}, "baseline='C' is no model of these episodes; they are of A, B, F"),
        ({"matched": "C"}, "matched='C'"),
        ({"candidates": ["C"]}, "candidates='C'"),
        ({"arms": ["oracle"]}, "arms='oracle': no model was evaluated with it"),
        ({"arms": ["gate_closed"], "candidates": ["F", "B"]}, "arms='gate_closed': B was not evaluated with it"),
        ({"baseline": "F", "candidates": ["F"]}, "baseline='F' is a candidate too"),
        ({"candidates": ["A"]}, "nothing to compare; name one of the models A, B, F with --baseline"),
    ],
)
def test_refuses_names_that_are_not_there(episodes, options, message):
    with pytest.raises(ConfigError, match=message):
        compare(episodes, **options)


def test_one_refusal_names_all_comparisons_that_must_not_be_made(episodes):
    other = episodes.copy()
    other.loc[other["model"] == "A", "n_action_steps"] = 8
    other.loc[other["arm"] == "gate_closed", "renderer"] = "osmesa"
    with pytest.raises(NotComparableError) as refusal:
        compare(other, baseline="A")
    assert "n_action_steps is 4 (F/intact) and 8 (A/intact)" in str(refusal.value)
    assert "renderer is none (F/intact) and osmesa (F/gate_closed)" in str(refusal.value)


def test_gate_that_never_opened(episodes):
    same = {"F": dict.fromkeys(GAINS["F"], 0.0)}
    shut = simulate_study(SHAPE, same, np.random.default_rng(0), gate=-2e-4).episodes
    report = compare(shut)
    assert [verdict.answer for verdict in report.verdicts] == ["not used: the gate never opened"] * 2
    # The sign of a gate means nothing: gates of both signs do not cancel.
    signs = np.where(episodes["seed"] % 2 == 0, 0.1, -0.1)
    assert compare(episodes.assign(gate=signs), candidates=["F"]).verdicts[0].answer == "shown"


def test_command_writes_table_json_and_plot(folder, tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "new" / "comparison.json", tmp_path / "new" / "forest.svg"
    options = ["--baseline=A", "--matched=B", f"--json={out}", f"--plot={plot}"]
    code, printed, _ = run([folder, *options], monkeypatch, capsys)
    assert code == 0
    for words in (
        "mean over tasks",
        "mean over tiers",
        "all episodes",
        "across 3 training seeds",
        "F: evidence that the memory is read",
    ):
        assert words in printed
    record = json.loads(out.read_text())
    assert record["schema"] == 1
    assert record["options"]["matched"] == "B"
    first = record["comparisons"][0]
    assert {"kind", "first", "second", "parts", "means", "runs", "tasks", "sequential", "p", "p_holm", "answer"} <= set(
        first
    )
    assert record["verdicts"][0]["answer"] == "shown"
    assert plot.read_text().lstrip().startswith("<?xml") and ">F/intact - A/intact</text>" in plot.read_text()
    assert "difference of success rates" in plot.read_text()
    assert sorted(path.name for path in out.parent.iterdir()) == ["comparison.json", "forest.svg"]
    assert run([folder, "--baseline=A", "--outcome=reward", f"--plot={plot}"], monkeypatch, capsys)[0] == 0
    assert "success rates" not in plot.read_text() and "by reward: % of pairs" in plot.read_text()


def test_command_in_markdown_and_sequential(folder, monkeypatch, capsys):
    arguments = [folder / "F", "--markdown", "--sequential", "--n=180"]
    code, printed, _ = run(arguments, monkeypatch, capsys)
    assert code == 0
    tables = [line for line in printed.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {6, 9, 10}
    assert "may stop: after" in printed
    assert "sequential |  | decided after" in printed
    assert "sequential p 0.0" in printed


def test_command_refuses_with_code_2(folder, episodes, tmp_path, monkeypatch, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    other = episodes.copy()
    other.loc[other["model"] == "A", "image_height"] = 64
    write_episodes(other, tmp_path / "episodes.parquet")
    cases = {
        (tmp_path, "--baseline=A"): "image_height is 128 (B/intact) and 64 (A/intact)",
        (folder, "--baseline=C"): "baseline='C'",
        (tmp_path / "nowhere",): "nowhere does not exist",
        (folder, "--alpha=95", "--baseline=A"): "alpha=95",
        (folder, "--baseline=A", "--plot=x.gif"): "plot='x.gif'",
        (folder, "--baseline=A", "--margin=10"): "margin=10.0: expected a difference between 0 and 1",
        (folder, "--sequential"): "n=None: --sequential spends its level over the pairs that are planned",
        (folder, "--baseline=A", "--sequential", "--n=180"): "has 3 training runs, and whether recipes differ can't be",
        (folder, tmp_path, "--baseline=A"): "found more than once",
        (): "folders is empty",
        (folder, "--fail_if=regressed"): "fail_if=regressed: it is about models, so name one with --baseline",
        (folder, "--junit=x.xml"): "junit=x.xml: it is about models",
        (folder, "--baseline=A", "--best", "--fail_if=regressed"): "fail_if=regressed does nothing with --best",
        (folder, "--best", "--margin=0.1"): "margin=0.1 does nothing with --best",
        (folder, "--baseline=A", "--candidates=F,F"): "candidates=F,F: each is named once",
        (folder, "--best", "--candidates=F,F"): "name two or more, each once",
        (folder, empty, "--baseline=A"): f"{empty} has no episodes of wm-eval",
        ("--plan", "--rate=0.95"): "rate=0.95 and difference=0.1",
        ("--plan", "--discordance=0.05"): "discordance=0.05",
    }
    for arguments, message in cases.items():
        code, printed, error = run(arguments, monkeypatch, capsys)
        assert (code, printed) == (2, ""), arguments
        assert message in error


def test_plan_from_a_guess_and_from_a_pilot(folder, monkeypatch, capsys):
    code, printed, _ = run(["--plan", "--discordance=0.25", "--n=400"], monkeypatch, capsys)
    assert code == 0
    assert "207 pairs at a discordance of 25.0 % (as given)" in printed
    assert "400 pairs see 7.2 points or more" in printed
    code, printed, _ = run(["--plan", "--rate=0.5", "--difference=0.2"], monkeypatch, capsys)
    assert "if 50 % and 70 % succeed independently" in printed
    code, printed, _ = run([folder, "--plan", "--baseline=A", "--candidates=F"], monkeypatch, capsys)
    assert code == 0
    assert "pilot F/intact - A/intact" in printed
    assert "the pilot's 180 pairs see" in printed
    assert "across training seeds, if they spread as in the pilot" in printed


def test_names_become_an_option():
    assert folders_as_option(["a b", "c", "--markdown", "--plan", "--alpha=0.01"]) == [
        '--folders=["a b", "c"]',
        "--markdown",
        "--plan",
        "--alpha=0.01",
    ]
    assert folders_as_option(["--sequential", "false"]) == ["--sequential", "false"]
    assert folders_as_option(["--plan", "a", "--n", "5", "--brief", "b"]) == [
        '--folders=["a", "b"]', "--plan", "--n", "5", "--brief",
    ]  # fmt: skip
    assert CompareConfig().alpha == 0.05


def test_brief_is_three_lines_with_the_verdict_first(folder, monkeypatch, capsys):
    code, printed, _ = run([folder, "--baseline=A", "--candidates=F", "--brief"], monkeypatch, capsys)
    lines = printed.splitlines()
    assert code == 0 and len(lines) == 3
    assert lines[0].startswith("F/intact against A/intact: no difference shown (p 0.1, Holm's p 0.1), +23.3 points")
    assert "recipes like these (3 training runs), these 3 tasks" in lines[0]
    assert lines[1].startswith("F: evidence that the memory is read")
    assert lines[1].endswith("these 3 checkpoints, these 3 tasks")
    code, printed, _ = run([folder, "--baseline=A", "--candidates=F"], monkeypatch, capsys)
    assert printed.splitlines()[3] == lines[0]


def test_ci_gets_an_exit_code_and_a_junit_file(tmp_path, monkeypatch, capsys):
    gains = {"F": {"intact": 0.35}, "A": {"intact": 0.0}, "B": {"intact": -0.1}}
    shape = StudyShape(n_tasks=3, n_scenes=30, n_runs=1)
    folder, junit = tmp_path / "study", tmp_path / "junit.xml"
    write_episodes(simulate_study(shape, gains, np.random.default_rng(0)).episodes, folder / "episodes.parquet")
    options = [folder, "--fail_if=regressed", f"--junit={junit}"]
    assert run([*options, "--baseline=A", "--candidates=F"], monkeypatch, capsys)[0] == 0
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    assert run([*options, "--baseline=F", "--candidates=A,B"], monkeypatch, capsys)[0] == 1
    suite = ElementTree.parse(junit).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "2")
    assert "A/intact against F/intact: worse" in suite[0][0].get("message")
    assert run([folder, "--fail_if=slow", "--baseline=A"], monkeypatch, capsys)[0] == 2


def test_graded_outcomes_decide_pairs_by_what_they_say(episodes):
    rows = episodes[episodes["arm"] == "intact"].assign(success=True, sum_reward=1.0, steps=80)
    faster = (rows["model"] == "F") & (rows["seed"] < 15)
    with pytest.raises(NotComparableError, match="how smooth the motion was isn't recorded in 180 of 180 episodes"):
        compare(rows, baseline="A", candidates=["F"], outcome="smoothness")
    rows["action_jerk"] = 0.1
    rows.loc[faster, ["steps", "sum_reward", "action_jerk"]] = [60, 0.5, 0.3]
    outcomes = ("success", "time", "reward", "smoothness")
    by = {name: compare(rows, baseline="A", candidates=["F"], outcome=name) for name in outcomes}
    counts = {name: report.comparisons[0].parts[0].counts for name, report in by.items()}
    assert (counts["success"].wins, counts["success"].losses) == (0, 0)
    assert (counts["time"].wins, counts["time"].losses) == (3 * 3 * 15, 0)
    assert (counts["reward"].wins, counts["reward"].losses) == (0, 3 * 3 * 15)
    assert (counts["smoothness"].wins, counts["smoothness"].losses) == (0, 3 * 3 * 15)
    assert "F/intact against A/intact: better by time" in by["time"].answers[0].text
    failed = compare(rows.assign(success=rows["model"] == "A"), baseline="A", candidates=["F"], outcome="time")
    assert failed.comparisons[0].parts[0].counts.losses == 180  # success comes first: a fast failure is no success


def test_labels_stand_beside_what_the_rows_say_of_them(episodes):
    rows = episodes[episodes["arm"] == "intact"].copy()
    silent = compare(rows.assign(policy_type=""), baseline="A", candidates=["F"])  # as of a trial on a robot
    assert "What the labels stand for" not in format_report(silent)
    rows.loc[rows["model"] == "F", ["sees", "action_free", "train_steps"]] = ["images", "5-9", 1200]
    rows.loc[(rows["model"] == "F") & (rows["train_seed"] == rows["train_seed"].min()), "train_steps"] = 600
    report = compare(rows, baseline="A", candidates=["F"])
    assert report.to_dict()["labels"]["F"]["train_steps"] == "differs by seed"
    line = next(x for x in format_report(report).splitlines() if x.startswith("F  ") and "5-9" in x)
    assert line.split() == ["F", "simulated", "5-9", "differs", "by", "seed", "images"]


def test_best_of_several_leaves_out_who_is_beaten(tmp_path, monkeypatch, capsys):
    gains = {"A": {"intact": 0.3}, "B": {"intact": 0.3}, "C": {"intact": -0.3}}
    luck = dict.fromkeys(("run_sd", "run_task_sd", "model_task_sd", "model_scene_sd"), 0.0)
    shape = StudyShape(n_tasks=3, n_scenes=40, n_runs=1, **luck)
    write_episodes(simulate_study(shape, gains, np.random.default_rng(0)).episodes, tmp_path / "episodes.parquet")
    code, printed, _ = run([tmp_path, "--best"], monkeypatch, capsys)
    lines = printed.splitlines()
    assert code == 0 and len(lines) == 4
    assert {line.split(":")[0] for line in lines[:2]} == {"A", "B"} and all("may be the best" in x for x in lines[:2])
    assert re.match(r"C: [\d.]+ %: out, beaten by A \(Holm's p < 0.0001\), B \(Holm's p < 0.0001\)", lines[2])
    assert lines[3] == "For these 3 checkpoints, these 3 tasks; 3 comparisons, adjusted together."
    for options, message in ((["--candidates=A"], "name two or more"), (["--candidates=A,D"], "candidates='D'")):
        code, _, error = run([tmp_path, "--best", *options], monkeypatch, capsys)
        assert code == 2 and message in error


def test_trials_of_a_real_robot_are_a_csv(tmp_path, monkeypatch, capsys):
    lines = ["policy,task,trial,success,score"]
    lines += [
        f"{policy},fold,{i},{int(policy == 'new' or i % 4 == 0)},{i}" for policy in ("old", "new") for i in range(12)
    ]
    table = tmp_path / "trials.csv"
    table.write_text("\n".join(lines) + "\n")
    asked = [table, "--baseline=old", "--brief"]
    code, printed, _ = run(asked, monkeypatch, capsys)
    assert code == 0
    assert printed.startswith("new/intact against old/intact: better (p 0.0039")
    table.write_text("\ufeff" + "\r\n".join(lines).replace("old,", " old ,") + "\r\n\r\n")  # as Excel saves it
    assert run(asked, monkeypatch, capsys)[1] == printed
    refused = {
        "new,fold,99999999999999999999,1,1": "trial is '99999999999999999999'", "new,fold,1_0,1,1": "trial is '1_0'",
        "new,fold,99,1,nan": "score is 'nan'", "new,fold,99,1,": "score is ''", "new,fold,99,1": "line 26 has 4 cells",
        ",fold,99,1,1": "policy is empty", "n\x1bw,fold,99,1,1": "control characters",
        "new,fold,99,2,1": "success is '2'",
    }  # fmt: skip
    for line, message in refused.items():
        table.write_text("\n".join([*lines, line]))
        code, _, error = run(asked, monkeypatch, capsys)
        assert code == 2 and message in error, line
    for content, message in {b"": "is empty", "policy\n".encode("utf-16"): "no UTF-8", b"a,a\n": "lacks the column",
                             b"policy,trial,success,trial\n": "a column twice"}.items():  # fmt: skip
        table.write_bytes(content)
        code, _, error = run(asked, monkeypatch, capsys)
        assert code == 2 and message in error
    assert "these 2 checkpoints, this task" in printed
    for line, message in {"new,fold,x,1,": "line 26: trial is 'x'", "new,fold,99,maybe,": "success is 'maybe'"}.items():
        table.write_text("\n".join([*lines, line]))
        code, _, error = run([table, "--baseline=old"], monkeypatch, capsys)
        assert code == 2 and message in error
    table.write_text("policy,success\nold,1\n")
    assert "lacks the column trial" in run([table, "--baseline=old"], monkeypatch, capsys)[2]


def write_lerobot_eval(folder, successes):
    """As `lerobot-eval` 0.6.1 writes it, with what is read of it."""
    folder.mkdir(parents=True)
    tasks = [
        {"task_group": "easy", "task_id": i, "metrics": {"sum_rewards": [1.0] * len(of), "successes": of}}
        for i, of in enumerate(successes)
    ]
    (folder / "eval_info.json").write_text(json.dumps({"per_task": tasks, "per_group": {}, "overall": {}}))


def test_plain_lerobot_eval_is_compared_unpaired(tmp_path, monkeypatch, capsys):
    write_lerobot_eval(tmp_path / "old", [[True] * 20 + [False] * 30] * 2)
    write_lerobot_eval(tmp_path / "new", [[True] * 45 + [False] * 5] * 2)
    code, printed, _ = run([tmp_path, "--baseline=old"], monkeypatch, capsys)
    assert code == 0
    first, cost = printed.splitlines()
    assert first.startswith("new (90/100) against old (40/100): better (p < 0.0001")
    assert "+50.0 points [+37.7, +60.1]; for these 2 checkpoints, these 2 tasks, unpaired" in first
    assert "lerobot-eval doesn't keep which scene" in cost and "100 episodes of each need about 20 points" in cost
    assert "baseline='A': name one of new, old" in run([tmp_path, "--baseline=A"], monkeypatch, capsys)[2]
    junit = tmp_path / "ci" / "junit.xml"
    asked = [tmp_path, "--fail_if=regressed", f"--junit={junit}"]
    assert run([*asked, "--baseline=old"], monkeypatch, capsys)[0] == 0
    assert run([*asked, "--baseline=new"], monkeypatch, capsys)[0] == 1
    assert ElementTree.parse(junit).getroot().get("failures") == "1"
    assert (
        "margin=0.1 does nothing with lerobot"
        in run([*asked, "--baseline=old", "--margin=0.1"], monkeypatch, capsys)[2]
    )
    write_lerobot_eval(tmp_path / "harder", [[True] * 9 + [False], [True] * 5 + [False] * 45])
    error = run([tmp_path, "--baseline=old"], monkeypatch, capsys)[2]
    assert "harder was evaluated in easy_0 (10 episodes), easy_1 (50 episodes), old in easy_0 (50" in error
    write_lerobot_eval(tmp_path / "begun", [[], []])
    assert "begun has no episodes" in run([tmp_path, "--baseline=old", "--candidates=begun"], monkeypatch, capsys)[2]
    (tmp_path / "new" / "eval_info.json").write_text('{"per_task": [{"metrics": {"successes": [0.5]}}]}')
    assert run([tmp_path, "--baseline=old"], monkeypatch, capsys)[0] == 2


@pytest.mark.slow
def test_a_hundred_runs_of_a_thousand_episodes_take_seconds():
    arms = {arm: 0.0 for arm in ("intact", "shuffle_within_task", "copy_current", "gate_closed", "zero")}
    shape = StudyShape(n_tasks=10, n_scenes=100, n_runs=5)
    episodes = simulate_study(shape, {model: arms for model in "ABCD"}, np.random.default_rng(0)).episodes
    assert len(episodes) == 100_000
    start = time.process_time()
    compare(episodes, baseline="A", matched="B")
    assert time.process_time() - start < 30
