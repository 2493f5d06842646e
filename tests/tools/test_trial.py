"""`wm-trial`: blinded, interleaved, kept on disk, and ended by the sequential test; its page at a phone's width."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import pytest

from tests.browser import WIDTHS
from wm_tools.trial.blinded_trial import STATE_FILE, BlindedTrial
from wm_tools.trial.phone_page import RobotRun, TrialServer
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.evidence.compare import compare
from world_modality_core.studies.evidence.episode_records import read_episodes

POLICIES = {"new": "outputs/new", "old": "outputs/old"}
POLICIES_OF_PAGE = {"zebra": "outputs/zebra", "ibis": "outputs/ibis"}


def begin(folder, n_setups=12, stages=(), policies=POLICIES):
    return BlindedTrial(folder, policies, "fold the towel", n_setups, list(stages), 0.05)


def run_all(trial, outcome) -> list:
    """Run until it ends; `outcome` of a run says whether it succeeds."""
    runs = []
    while (run := trial.next_run) is not None:
        trial.note(run, outcome(run), [], 3.0)
        runs.append(run)
    return runs


def test_both_policies_run_on_every_set_up_in_an_order_that_is_drawn(tmp_path):
    trial = begin(tmp_path, n_setups=30)
    runs = run_all(trial, lambda run: run.setup % 2 == 0)  # whatever the policy
    assert [(run.setup, run.turn) for run in runs] == [(i, turn) for i in range(30) for turn in (0, 1)]
    firsts = [run.policy for run in runs if run.turn == 0]
    assert 3 < firsts.count("new") < 27
    assert all({a.policy, b.policy} == {"new", "old"} for a, b in zip(runs[::2], runs[1::2], strict=True))
    assert "no difference shown (sequential p 1) by 30 set-ups" in trial.summary()


def test_it_stops_as_soon_as_the_test_says_so_and_leaves_rows_that_wm_compare_reads(tmp_path):
    trial = begin(tmp_path, n_setups=40)
    runs = run_all(trial, lambda run: run.policy == "new")
    assert 12 <= len(runs) < 40  # of 80
    assert "new is better in 'fold the towel'" in trial.summary()
    report = compare(read_episodes(tmp_path), baseline="old")
    counts = report.comparisons[0].parts[0].counts
    assert (counts.wins, counts.losses) == (len(runs) // 2, 0) and report.answers[0].answer == "better"


def test_a_trial_that_was_cut_off_goes_on_and_another_one_is_refused(tmp_path):
    trial = begin(tmp_path)
    for _ in range(3):
        trial.note(trial.next_run, True, [], 3.0)
    trial.throw_away(trial.next_run, "a cable came loose")
    again = begin(tmp_path)
    assert again.next_run == trial.next_run and (again.next_run.setup, again.next_run.turn) == (1, 1)
    assert "Runs thrown away and done again: " in again.summary()
    with pytest.raises(ConfigError, match="begun otherwise.*n_setups"):
        begin(tmp_path, n_setups=20)


def test_a_run_that_was_cut_off_with_the_trial_counts_as_thrown_away(tmp_path):
    """Else one that goes badly could be ended, and done again, without a word."""
    trial = begin(tmp_path)
    run = trial.next_run
    trial.begin(run)
    assert begin(tmp_path).next_run == run
    again = begin(tmp_path)  # once, however often it is started
    assert f"Runs thrown away and done again: {', '.join(f'{int(run.policy == x)} of {x}' for x in POLICIES)}" in (
        again.summary()
    )
    again.begin(run)
    again.note(run, True, [], 3.0)
    assert begin(tmp_path).summary().count("1 of") == again.summary().count("1 of")


def test_a_rubric_is_the_number_of_stages_that_were_reached(tmp_path):
    trial = begin(tmp_path, stages=["reached", "grasped", "folded"])
    trial.note(trial.next_run, False, [True, True, False], 3.0)
    rows = read_episodes(tmp_path)
    assert rows["sum_reward"].tolist() == [2.0] and not rows["success"].any()


# --- The page ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    """A trial of six set-ups whose robot is a command that says which policy it runs, and waits to be stopped."""
    command = f"{sys.executable} -c \"import time; print('{{policy}}', flush=True); time.sleep(600)\""
    robot = RobotRun(command, tmp_path / "robot.log")
    server = TrialServer(
        ("127.0.0.1", 0), begin(tmp_path / "trial", 6, ["reached", "grasped"], POLICIES_OF_PAGE), robot
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    robot.stop()
    server.shutdown()
    server.server_close()


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=120) as answer:
        return answer.read().decode()


def act(server, action: str, **more) -> dict:
    state = json.loads(get(server.url + "state"))
    body = {"action": action, "setup": state.get("setup"), "turn": state.get("turn")} | more
    with urllib.request.urlopen(server.url + "act", json.dumps(body).encode(), timeout=120) as answer:
        return json.load(answer)


def test_a_phone_leads_through_the_trial_and_is_never_told_which_policy_runs(server):
    seen = get(server.url)
    for _ in range(12):
        told = [act(server, "start"), act(server, "start"), act(server, "stop")]  # a second tap changes nothing
        told.append(act(server, "judge", success=True, stages=[True, False]))
        assert [state["phase"] for state in told[:3]] == ["running", "running", "judge"]
        seen += json.dumps(told)
    assert told[-1]["phase"] == "ended" and server.has_ended.wait(120)
    assert not any(word in seen for word in ("zebra", "ibis", "outputs"))
    assert len(server.trial.rows()) == 12 and (server.trial.rows()["sum_reward"] == 1.0).all()
    assert act(server, "start") == {"phase": "ended", "n_setups": 6}


def test_taps_out_of_turn_change_nothing(server):
    assert act(server, "judge", success=True)["phase"] == "ready"
    assert act(server, "start", setup=4)["phase"] == "ready"
    act(server, "start")
    act(server, "stop")
    assert act(server, "judge", success="yes")["phase"] == "judge"
    assert act(server, "again", why="bumped")["phase"] == "ready"
    assert json.loads((server.trial.folder / STATE_FILE).read_text())["thrown_away"][0]["why"] == "bumped"


def test_only_who_knows_the_address_gets_in(server):
    host = server.url.split("/")[2]
    for path in ("", "state", "wrong/state", f"{server.secret}/../trial.json", f"{server.secret}/trial.json"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(f"http://{host}/{path}")
        assert refused.value.code == 404


def test_a_command_that_fails_is_no_failure_of_the_policy(tmp_path):
    robot = RobotRun(f'{sys.executable} -c "import sys; sys.exit(3)" {{policy}}', tmp_path / "log")
    trial = begin(tmp_path / "trial")
    robot.start(trial.next_run, "x")
    deadline = time.monotonic() + 120
    while not robot.is_over:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert robot.has_failed


def test_a_robot_stops_at_once_where_interrupts_are_ignored_as_in_the_background(tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        robot = RobotRun(f'{sys.executable} -c "import time; time.sleep(600)" {{policy}}', tmp_path / "log")
        robot.start(begin(tmp_path / "trial").next_run, "x")
        robot.stop()
    finally:
        signal.signal(signal.SIGINT, before)
    assert not robot.is_running and robot._process.returncode != -signal.SIGKILL  # it heard the interrupt


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_robot_stops_with_the_trial(tmp_path, how):
    checkpoint = tmp_path / "policy"
    checkpoint.mkdir()
    words = ["--policies", f"a={checkpoint}", f"b={checkpoint}", "--task=fold", "--n_setups=6", "--port=0"]
    moves = f'{sys.executable} -c "import os, time; print(os.getpid(), flush=True); time.sleep(60)" {{policy}}'
    command = [sys.executable, "-m", "wm_tools.trial.cli", *words, f"--run={moves}", f"--output_dir={tmp_path / 'out'}"]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        url = running.stdout.readline().split()[-1]
        body = json.dumps({"action": "start", "setup": 1, "turn": 1}).encode()
        urllib.request.urlopen(url + "act", body, timeout=30).close()
        log, deadline = tmp_path / "out" / "robot.log", time.monotonic() + 30
        while not log.read_text().strip():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        running.send_signal(how)
        running.wait(30)
    finally:
        running.kill()
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text().split()[0]), 0)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"--policies": ["a=x", "a=y"]}, "expected two labels"),
        ({"--policies": ["a", "b=y"]}, "expected two labels"),
        ({"--policies": ["../a=x", "b=y"]}, "labels become folders"),
        ({"--run": ["true"]}, "has no {policy}"),
        ({"--run": ["true {policy} {robot}"]}, "'robot'; known are {policy}, {setup}, {turn}"),
        ({"--run": ["no-such-command {policy}"]}, "there is no such command here"),
        ({"--n_setups": ["5"]}, "fewer than 6 set-ups can't show any difference"),
        ({"--alpha": ["5"]}, "--alpha=5.0"),
    ],
)
def test_what_can_not_work_is_refused(tmp_path, changed, message):
    options = {
        "--policies": ["new=x", "old=y"], "--run": ["true {policy}"], "--task": ["fold"], "--n_setups": ["6"],
        "--output_dir": [str(tmp_path / "trial")],
    }  # fmt: skip
    words = [word for name, values in (options | changed).items() for word in (name, *values)]
    done = subprocess.run([sys.executable, "-m", "wm_tools.trial.cli", *words], capture_output=True, text=True)
    assert done.returncode == 1 and message in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "trial").exists()


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_a_phone_and_its_buttons_work(browser, server, width):
    browser.look(width, "light")
    browser.send("Page.navigate", url=server.url)

    def until(script: str) -> None:
        deadline = time.monotonic() + 120
        while not browser.evaluate(script):
            assert time.monotonic() < deadline, script
            time.sleep(0.1)

    shown = "[...document.querySelectorAll('section')].filter(part => !part.hidden).map(part => part.id).join()"
    for phase, action in (("ready", "start"), ("running", "stop"), ("judge", "judge")):
        until(f"{shown} == '{phase}'")
        assert browser.out_of_sight() == []
        button = f"document.querySelector('#{phase} button[data-action={action}]')"
        if phase == "judge":  # a tap on the wrong outcome isn't the last word
            assert browser.evaluate(f"{button}.hidden")
            for value in ("false", "true"):
                browser.evaluate(f"document.querySelector('input[value={value}]').click()")
            assert browser.out_of_sight() == []
        assert browser.evaluate(f"{button}.getBoundingClientRect().height") >= 44
        browser.evaluate(f"{button}.click()")  # the second of two quick taps: nothing
        until(f"!{button}.disabled")
        browser.evaluate(f"{button}.click()")
    until(f"{shown} == 'ready'")
    assert server.trial.rows()["success"].tolist() == [True]
