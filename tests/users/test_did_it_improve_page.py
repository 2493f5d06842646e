"""docs/did_it_improve.md as somebody follows it who has two policies: its three ways, each to an answer."""

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import fork_server
from tests.evaluation.helpers import make_checkpoint
from tests.users.pages import REPO, documented, run

PAGE = (REPO / "docs/did_it_improve.md").read_text()


def typed(start: str) -> list[str]:
    return re.search(rf"`({re.escape(start)}[^`]*)`", PAGE)[1].split()


# A simulator that every machine of ours has, and scenes that take seconds.
SCENES = {
    "--env.type": "metaworld_light --env.task=drawer-close-v3 --env.episode_length=40"
    " --env.observation_height=32 --env.observation_width=32",
    "--eval.n_episodes": "6 --eval.batch_size=1 --policy.device=cpu",
}


@pytest.mark.sim
def test_two_policies_in_simulation(tmp_path: Path):
    for name in ("new", "old"):
        checkpoint = make_checkpoint(tmp_path / f"outputs/{name}/checkpoints/last/pretrained_model", "world_A")
    weights = load_file(checkpoint / "model.safetensors")
    last = max(name for name in weights if "action_head" in name and name.endswith("bias"))
    weights[last] *= -1  # the old one pulls
    save_file(weights, checkpoint / "model.safetensors")
    *evaluations, comparison = documented("did_it_improve.md", SCENES)[:3]
    for command in evaluations:
        run(command, tmp_path)
    printed = run(comparison, tmp_path)
    assert re.search(r"new/intact against old/intact: better .*\+100.0 points", printed), printed


def test_two_policies_on_a_robot(tmp_path: Path):
    """The robot notes whose turn it was, and a person who sees what it did judges on the phone."""
    for name in ("new", "old"):
        (tmp_path / f"outputs/{name}/pretrained_model").mkdir(parents=True)
    trial, comparison = documented("did_it_improve.md", {"--host": "127.0.0.1 --port=0"})[3:5]
    trial = [re.sub("^--run=.*", "--run=sh -c 'echo $0 > turn' {policy}", word) for word in trial]
    typed = [sys.executable, "-m", "wm_tools.trial.cli", *trial[1:]]
    process = fork_server.start(typed, cwd=tmp_path, stdout=subprocess.PIPE)
    url = re.search(r"http://\S+", process.stdout.readline())[0]
    try:
        judge_until_it_ends(url, tmp_path / "turn")
        assert process.wait(120) == 0
    finally:
        process.kill()
    assert re.search(r"new/intact against old/intact: better", run(comparison, tmp_path))


def judge_until_it_ends(url: str, turn_of: Path) -> None:
    def ask(path: str, **body) -> dict:
        data = json.dumps(body).encode() if body else None
        with urllib.request.urlopen(url + path, data, timeout=120) as answer:
            return json.load(answer)

    state = ask("state")
    while state["phase"] != "ended":
        turn = {"setup": state["setup"], "turn": state["turn"]}
        if state["phase"] == "judge":
            is_new = "outputs/new" in turn_of.read_text()
            state = ask("act", action="judge", success=is_new, stages=[is_new] * len(state["stages"]), **turn)
        else:
            state = ask("act", action="start", **turn) if state["phase"] == "ready" else ask("state")


@pytest.mark.parametrize(
    ("n_better", "answer"), [(30, r"\bbetter\b"), (0, "no difference shown")], ids=["improved", "the same"]
)
def test_notes_become_an_answer(tmp_path: Path, n_better: int, answer: str):
    columns = re.search(r"with the columns `(\w+)`, `(\w+)` .*? and `(\w+)`", PAGE).groups()
    rows = [",".join(columns)]
    for trial in range(40):
        rows += [f"old,{trial},{int(trial >= 32)}", f"new,{trial},{int(trial >= 32 - n_better)}"]
    (tmp_path / "trials.csv").write_text("\n".join(rows) + "\n")
    printed = run([*typed("wm-compare trials.csv"), "--brief"], tmp_path)
    assert re.search(answer, printed), printed


def test_how_many_episodes_it_takes_is_told(tmp_path: Path):
    assert re.search(r"\d+", run(typed("wm-compare --plan"), tmp_path))
