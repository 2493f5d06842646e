"""`coc-label` and its pipeline: nothing lost, nothing twice, whatever happens in between."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import pytest

from coc_tools import pipeline
from coc_tools.backends import BackendUnusable
from coc_tools.config import ConfigError, DatasetConfig, EndpointConfig, LabelConfig, PricesConfig
from coc_tools.episodes import EpisodeReader
from coc_tools.labelling import label
from coc_tools.store import StoreError, failed_path, read_failures, read_labels
from tests import fork_server
from tests.coc.helpers import ScriptedLabeller, run_pipeline, steps_json
from tests.coc.many_episodes import make_many
from tests.coc.mock_endpoint import MODEL, Answer, MockEndpoint, five_percent_faults, good_steps


def config(root, tmp_path, server=None, **kwargs) -> LabelConfig:
    endpoint = EndpointConfig(server.api_base, MODEL, "COC_NO_KEY") if server else EndpointConfig()
    values = {"dataset": DatasetConfig(root=str(root)), "labels": str(tmp_path / "labels.jsonl"), "endpoint": endpoint}
    return LabelConfig(**(values | kwargs))


def good(request) -> str:
    return steps_json(request.episode.length_s)


@pytest.mark.parametrize(("n_workers", "batch_size"), [(1, 1), (5, 1), (1, 7)])
def test_every_episode_is_labelled_once(many, tmp_path, n_workers, batch_size):
    labeller = ScriptedLabeller(good, n_workers, batch_size)
    summary = run_pipeline(many, labeller, tmp_path / "l.jsonl")
    labels = read_labels(tmp_path / "l.jsonl")
    assert list(labels) == list(range(40)) and summary.n_labelled == 40 and not summary.stopped
    assert Counter(r.episode.index for r in labeller.asked) == Counter(range(40))
    assert (summary.n_input_tokens, summary.n_output_tokens) == (400, 200)
    for episode, found in labels.items():
        assert found.task == f"push the puck to place {episode}" and found.length_s == 0.4
        assert (
            found.provenance.gripper == "action[3] grip"
            and list(found.provenance.frames_shown) == many.cameras
            and found.provenance.backend == "scripted"
        )
    if batch_size > 1:
        assert max(labeller.batches) == 7 and sum(labeller.batches) == 40


def test_a_batch_retries_only_what_was_bad(many, tmp_path):
    def script(request):
        return good(request) if request.rejected or request.episode.index % 3 else "bad"

    labeller = ScriptedLabeller(script, 1, 9)
    assert run_pipeline(many, labeller, tmp_path / "l.jsonl", range(9)).n_retries == 3
    assert labeller.batches == [9, 3]


@pytest.mark.slow
def test_a_thousand_episodes_with_five_percent_faults(one_episode, tmp_path):
    root = make_many(one_episode, tmp_path / "data", 1000)
    with MockEndpoint(five_percent_faults) as server:
        summary = label(config(root, tmp_path, server))
        asked = Counter(request.data["task"] for request in server.requests)
        path = tmp_path / "labels.jsonl"
        labels, failures = read_labels(path), read_failures(path)
        hopeless = set(range(19, 1000, 100))
        assert set(failures) == hopeless == set(summary.failures)
        assert set(labels) | set(failures) == set(range(1000)) and not set(labels) & set(failures)
        assert len(path.read_text().splitlines()) == len(labels) == 990 == summary.n_labelled
        for episode, failure in failures.items():
            assert failure.replies == ["I can't see a robot."] * 3 and "no JSON object" in failure.error
            assert asked[f"push the puck to place {episode}"] == 3
        faulty = [e for e in range(7, 1000, 20)]
        slow = sum(1 for e in faulty if e // 20 % 8 == 0)  # slow answers are no reason to ask again
        assert sum(asked.values()) == 1000 + len(faulty) - slow + 2 * len(hopeless)
        # Again: only those that failed.
        before = path.read_bytes()
        n_before = len(server.requests)
        label(config(root, tmp_path, server))
        again = Counter(request.data["task"] for request in server.requests[n_before:])
        assert again == {f"push the puck to place {e}": 3 for e in hopeless}
        assert path.read_bytes() == before


def coc_label(cfg: LabelConfig, *more: str, **kwargs) -> subprocess.Popen:
    """A real `coc-label` process."""
    command = [
        sys.executable, "-m", "coc_tools.cli", f"--dataset.root={cfg.dataset.root}", f"--labels={cfg.labels}",
        f"--endpoint.api_base={cfg.endpoint.api_base}", f"--endpoint.model={MODEL}", "--endpoint.concurrency=4", *more,
    ]  # fmt: skip
    return fork_server.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **kwargs)


def wait_until(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def read_until(process, text: str) -> str:
    """What a process says, to the line with a text."""
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


@pytest.mark.slow
def test_sigkill_then_ctrl_c_then_the_rest(one_episode, tmp_path):
    root, path = make_many(one_episode, tmp_path / "data", 60), tmp_path / "labels.jsonl"
    answers = []  # how many there still are, for each run

    def script(asked):
        answers[-1].acquire()
        return Answer(good_steps(asked.data))

    with MockEndpoint(script) as server:
        cfg = config(root, tmp_path, server)
        answers.append(threading.Semaphore(10))
        process = coc_label(cfg)
        wait_until(lambda: path.exists() and path.read_bytes().count(b"\n") == 10 and len(server.requests) == 14)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed = path.read_text()
        assert killed.endswith("\n") and killed.count("\n") == 10
        with path.open("a") as file:  # what a kill in the middle of a write leaves
            file.write('{"episode_index": 59, "tas')

        answers.append(threading.Semaphore(10))
        process = coc_label(cfg)
        wait_until(lambda: path.read_bytes().count(b"\n") == 20 and len(server.requests) == 28)
        process.send_signal(signal.SIGINT)
        said = read_until(process, "Interrupted: waiting for the replies asked for")
        answers[-1].release(60)
        said += process.stdout.read()
        assert process.wait(120) == 130 and "Traceback" not in said
        assert "cut off a line that a killed run left unfinished" in said
        labels = read_labels(path)
        assert f"Give the same command again to go on: {len(labels)} labels are kept" in said
        assert path.read_text().startswith(killed)
        # Ctrl-C, unlike a kill, loses nothing: whatever the server was asked is in the file, and it was asked no more.
        assert {request.data["task"] for request in server.requests[14:]} <= {f.task for f in labels.values()}
        assert len(labels) == 24 and len(server.requests) == 28

        answers.append(threading.Semaphore(60))
        assert label(cfg).n_labelled == 60 - 24
        assert list(read_labels(path)) == list(range(60)) and not failed_path(path).exists()
        asked = Counter(request.data["task"] for request in server.requests)
        # Only what was not yet on disk at the kill was asked for again: one per connection.
        assert set(asked.values()) == {1, 2} and sum(asked.values()) == 60 + 4


@pytest.mark.slow
def test_sigterm_ends_a_run_whose_server_drips(forty, tmp_path):
    with MockEndpoint(lambda asked: Answer(drips="headers")) as server:
        process = coc_label(config(forty, tmp_path, server), "--endpoint.timeout_s=4")
        wait_until(lambda: len(server.requests) >= 4)  # one per connection
        process.send_signal(signal.SIGTERM)
        said = read_until(process, "at most endpoint.timeout_s=4 s")
        told = time.monotonic()
        said += process.stdout.read()
        assert process.wait(120) == 130 and "Traceback" not in said
    assert all(request.time <= told for request in server.requests)  # none again
    assert not (tmp_path / "labels.jsonl").exists()


def test_a_run_without_any_reply_gives_up(many, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "GIVE_UP_AFTER", 5)

    def script(request):
        raise RuntimeError("no connection")

    summary = run_pipeline(many, ScriptedLabeller(script), tmp_path / "l.jsonl")
    assert "5 episodes in a row got no reply" in summary.stopped and "no connection" in summary.stopped
    assert 5 <= len(summary.failures) < 40
    # A reply in between, even a bad one, means that the server is there.
    now_and_then = ScriptedLabeller(lambda r: "bad" if r.episode.index % 3 else script(r), 1)
    assert not run_pipeline(many, now_and_then, tmp_path / "m.jsonl").stopped


def test_an_unusable_backend_stops_the_run_and_keeps_what_is_done(many, tmp_path):
    def script(request):
        if request.episode.index == 9:
            raise BackendUnusable("the key has expired")
        return good(request)

    summary = run_pipeline(many, ScriptedLabeller(script, 1), tmp_path / "l.jsonl")
    assert summary.stopped == "the key has expired" and summary.n_labelled == 9 and not summary.failures
    assert list(read_labels(tmp_path / "l.jsonl")) == list(range(9))


def test_an_interrupted_retry_is_not_a_failure(many, tmp_path):
    cancel = threading.Event()

    def script(request):
        cancel.set()
        return "bad"

    summary = run_pipeline(many, ScriptedLabeller(script, 1), tmp_path / "l.jsonl", cancel=cancel)
    assert summary.stopped == "interrupted" and not summary.failures and not read_failures(tmp_path / "l.jsonl")


def test_a_damaged_episode_is_listed_and_the_others_go_on(coc_source, tmp_path):
    root = shutil.copytree(coc_source, tmp_path / "damaged")
    reader = EpisodeReader(root=str(root))
    builder_frames = EpisodeReader.frames

    def frames(self, episode, camera, positions):
        if episode.index == 2:
            raise OSError("video is torn")
        return builder_frames(self, episode, camera, positions)

    reader.frames = frames.__get__(reader)
    summary = run_pipeline(reader, ScriptedLabeller(good), tmp_path / "l.jsonl")
    assert summary.failures == {2: "cannot be read: OSError: video is torn"} and summary.n_labelled == 3


def test_dry_run_counts_and_writes_nothing(forty, tmp_path, capsys):
    prices = PricesConfig(input_per_million=100.0, output_per_million=200.0)
    label(config(forty, tmp_path, labels=str(tmp_path / "a" / "l.jsonl"), dry_run=True, prices=prices, max_episodes=30))
    said = capsys.readouterr().out
    assert "Episodes   30 to label" in said and "Images     30 of 120 frames" in said and "Money      about" in said
    assert not (tmp_path / "a" / "l.jsonl").exists()


def test_which_episodes(forty, tmp_path):
    with MockEndpoint() as server:
        label(config(forty, tmp_path, server, episodes=[7, 3, 39]))
        label(config(forty, tmp_path, server, max_episodes=2))
        assert list(read_labels(tmp_path / "labels.jsonl")) == [0, 1, 3, 7, 39]
        with pytest.raises(ConfigError, match=r"episodes: \[40\] are not in"):
            label(config(forty, tmp_path, server, episodes=[40]))


def test_other_labels_are_not_mixed_in(forty, one_episode, tmp_path):
    with MockEndpoint() as server:
        label(config(forty, tmp_path, server, max_episodes=2))
        other = tmp_path / "other_v1.txt"
        other.write_text("Label this.")
        with pytest.raises(StoreError, match="prompt_sha256: .* --allow_mixed"):
            label(config(forty, tmp_path, server, prompt=str(other)))
        label(config(forty, tmp_path, server, prompt=str(other), allow_mixed=True, max_episodes=1))
        names = [found.provenance.prompt_name for found in read_labels(tmp_path / "labels.jsonl").values()]
        assert names == ["coc", "coc", "other"]
        with pytest.raises(StoreError, match="labels of another dataset"):
            label(config(one_episode, tmp_path, server))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "dataset.repo_id and dataset.root are both empty"),
        (["--dataset.root={root}"], "labels is empty"),
        (["--dataset.root={root}", "--labels=l.txt"], "labels='l.txt'"),
        (["--dataset.root={root}", "--labels={tmp}/l.jsonl", "--prompt=nothing"], r"prompt='nothing': expected one of"),
        (["--dataset.root={root}", "--labels={tmp}/l.jsonl", '--keyframes.cameras=["a"]'], r"\['a'\] not in"),
        (["--dataset.root={root}", "--labels={tmp}/l.jsonl", "--write.target=copy"], "write.root is empty"),
        (["--dataset.root={root}", "--labels={tmp}/l.jsonl", "--write.target=copy", "--write.root={root}"], "exists"),
        (["--dataset.root={root}", "--labels={tmp}/l.jsonl", "--objects={tmp}/none.json"], "objects=.*cannot be read"),
        (["--dataset.root={root}", "--labels={tmp}/l.jsonl", "--endpoint.api_base=http://127.0.0.1:9/v1"], "no answer"),
    ],
)
def test_wrong_options_end_with_one_line(arguments, message, forty, tmp_path, monkeypatch, capsys):
    from coc_tools import cli

    filled = [argument.format(root=forty, tmp=tmp_path) for argument in arguments]
    monkeypatch.setattr(sys, "argv", ["coc-label", *filled])
    with pytest.raises(SystemExit, match=f"coc-label: .*{message}"):
        cli.main()
    assert not (tmp_path / "l.jsonl").exists()
