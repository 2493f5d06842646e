"""The label file: torn lines, locks, doubles, failures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from coc_tools.process_shards import ProcessShards
from coc_tools.schema import EpisodeLabel
from coc_tools.store import Failure, LabelFile, StoreError, failed_path, read_failures, read_labels, utc_now
from tests.coc.helpers import PROVENANCE, step


def label(episode: int) -> EpisodeLabel:
    return EpisodeLabel(
        episode_index=episode, task="push", length_s=2.0, steps=[step(0, 1 + episode / 10)], provenance=PROVENANCE
    )


def failure(episode: int, error: str = "no") -> Failure:
    return Failure(episode_index=episode, error=error, replies=["x"], attempts=1, date=utc_now())


def test_labels_come_back(tmp_path):
    path = tmp_path / "sub" / "labels.jsonl"
    with LabelFile(path) as labels:
        for episode in (4, 1, 7):
            labels.append(label(episode))
        assert list(labels) == [1, 4, 7] and len(labels) == 3 and 4 in labels and 5 not in labels
        assert labels[7] == label(7) and labels.get(5) is None
        with pytest.raises(StoreError, match="labelled already"):
            labels.append(label(4))
    with LabelFile(path) as labels:
        assert labels[1] == label(1)
        labels.append(label(2))
        assert labels[2] == label(2)
    assert read_labels(path) == {e: label(e) for e in (1, 2, 4, 7)}
    assert not failed_path(path).exists()


@pytest.mark.parametrize("n_bytes", [1, 17, -1])
def test_a_torn_line_is_cut_off_and_named(tmp_path, n_bytes):
    path = tmp_path / "labels.jsonl"
    with LabelFile(path) as labels:
        labels.append(label(0))
    whole = path.read_bytes()
    torn = label(1).to_line().encode()[:n_bytes]
    path.write_bytes(whole + torn)
    assert list(read_labels(path)) == [0]
    with LabelFile(path) as labels:
        assert labels.torn == torn.decode() and 1 not in labels
        labels.append(label(1))
    assert read_labels(path) == {0: label(0), 1: label(1)}


def test_a_torn_line_longer_than_a_block_is_cut_off(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_bytes(label(0).to_line().encode() + b"\n" + b"x" * 200_000)
    with LabelFile(path) as labels:
        assert len(labels.torn) == 200_000 and list(labels) == [0]


@pytest.mark.parametrize(
    ("line", "message"), [("{}", "line 2: not a label"), ("nonsense", "line 2"), (label(0).to_line(), "lines 1 and 2")]
)
def test_damaged_lines_are_named(tmp_path, line, message):
    path = tmp_path / "labels.jsonl"
    path.write_text(f"{label(0).to_line()}\n{line}\n")
    with pytest.raises(StoreError, match=message):
        read_labels(path)
    with pytest.raises(StoreError, match=message):
        LabelFile(path)
    path.write_text(f"{label(0).to_line()}\n")
    with LabelFile(path):  # the failed opening let go of the lock
        pass


def test_one_writer_at_a_time(tmp_path):
    path = tmp_path / "labels.jsonl"
    code = f"from coc_tools.store import LabelFile; LabelFile({str(path)!r})"
    with LabelFile(path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode and "another coc-label writes this file" in done.stderr
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_failures_are_kept_until_there_is_a_label(tmp_path):
    path = tmp_path / "labels.jsonl"
    with LabelFile(path) as labels:
        labels.append_failure(failure(3, "first"))
        labels.append_failure(failure(5))
        labels.append_failure(failure(3, "second"))
    assert {e: f.error for e, f in read_failures(path).items()} == {3: "second", 5: "no"}
    lines = failed_path(path).read_text().splitlines()
    assert [json.loads(line)["episode_index"] for line in lines] == [3, 5]
    with LabelFile(path) as labels:
        labels.append(label(3))
    assert list(read_failures(path)) == [5]
    with LabelFile(path) as labels:
        labels.append(label(5))
    assert not failed_path(path).exists()


@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_vanishes_meanwhile_is_no_success(tmp_path, at_end, is_replaced):
    path = tmp_path / "labels.jsonl"
    with pytest.raises(StoreError, match="removed or replaced while coc-label wrote it, with 1 labels"):
        with LabelFile(path) as labels:
            labels.append(label(1))
            path.unlink()
            if is_replaced:
                (tmp_path / "other").write_text("x")  # the inode's number is not free again while it is open
                (tmp_path / "other").rename(path)
            if not at_end:
                labels.append(label(2))
    if is_replaced:
        path.write_text("")
    with LabelFile(path) as labels:
        labels.append(label(1))


def test_an_unused_file_leaves_nothing(tmp_path):
    with LabelFile(tmp_path / "labels.jsonl"):
        pass
    assert [p.name for p in tmp_path.iterdir()] == [".labels.jsonl.lock"]


def test_only_parts_that_other_processes_wrote_are_taken_over(tmp_path):
    path, mine = tmp_path / "labels.jsonl", tmp_path / "labels.part2-mine.jsonl"
    for file, episode in ((tmp_path / "labels.part1.jsonl", 1), (mine, 2)):
        with LabelFile(file) as labels:
            labels.append(label(episode))
    with LabelFile(path) as labels:
        ProcessShards(is_needed=False).collect_parts(labels)
    assert list(read_labels(path)) == [1] and mine.exists() and not (tmp_path / "labels.part1.jsonl").exists()
