"""coc-label: full disks while labels and rows are written, two at once, damaged files, a clock that jumps."""

import json
import shutil
import time

import pytest

from coc_tools import cli
from coc_tools.dataset_writer import COPY_FILE
from coc_tools.episodes import EpisodeReader
from coc_tools.store import read_labels
from coc_tools.view import cli as view_cli
from tests.coc.helpers import label_of
from tests.coc.many_episodes import make_many
from tests.coc.mock_endpoint import MODEL, MockEndpoint
from tests.faults.commands import fill, run, small_disk, tree
from tests.fixtures_datasets import make_dataset


@pytest.fixture(scope="module")
def forty(tmp_path_factory):
    """40 episodes of 4 frames with a task each; do not write there."""
    base = tmp_path_factory.mktemp("forty")
    make_dataset(base / "one", "tests/one", lengths=[4], cameras=["observation.images.top"], use_videos=False, size=8)
    return make_many(base / "one", base / "forty", 40)


def main():
    cli.main()


def options(root, labels, server=None, *more: str) -> list[str]:
    backend = ["--backend=none"]
    if server:
        backend = [
            f"--endpoint.api_base={server.api_base}", f"--endpoint.model={MODEL}", "--endpoint.api_key_env=NO_KEY",
            "--endpoint.concurrency=4",
        ]  # fmt: skip
    return [f"--dataset.root={root}", f"--labels={labels}", *backend, *more]


def contents(labels) -> dict:
    """What labels say, without when they were made."""
    made = {
        episode: label.model_dump(exclude={"provenance": {"date"}}) for episode, label in read_labels(labels).items()
    }
    return made


@pytest.fixture(scope="module")
def whole(forty, tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "labels.jsonl"
    with MockEndpoint() as server:
        done = run(main, *options(forty, path, server), log=path.with_suffix(".log"))
    assert done.status == 0, done.err[-3000:]
    return contents(path)


def test_labels_on_a_full_disk(forty, whole, tmp_path):
    with small_disk(tmp_path / "disk", 1 << 20) as disk, MockEndpoint() as server:
        ballast = fill(disk, 16 << 10)
        done = run(main, *options(forty, disk / "labels.jsonl", server), log=tmp_path / "log")
        assert done.status == 1 and done.told.startswith(f"coc-label: {disk / 'labels.jsonl'}: no room left")
        kept = (disk / "labels.jsonl").read_bytes()
        assert kept.endswith(b"\n") and 0 < len(read_labels(disk / "labels.jsonl")) < 40  # no half of a line
        ballast.unlink()
        assert run(main, *options(forty, disk / "labels.jsonl", server), log=tmp_path / "log").status == 0
        assert (disk / "labels.jsonl").read_bytes().startswith(kept)
        assert contents(disk / "labels.jsonl") == whole


def test_labels_with_a_clock_that_jumps_back(forty, whole, tmp_path):
    def jumping():
        true, looks = time.time, [0]

        def earlier():
            looks[0] += 1
            return true() - 3600 * looks[0]

        time.time = earlier
        main()

    with MockEndpoint() as server:
        assert run(jumping, *options(forty, tmp_path / "labels.jsonl", server), log=tmp_path / "log").status == 0
    assert contents(tmp_path / "labels.jsonl") == whole


@pytest.fixture
def labelled(forty, tmp_path):
    reader, path = EpisodeReader("tests/forty", str(forty)), tmp_path / "some.jsonl"
    path.write_text("".join(label_of(reader, e, (0.0, 0.2)).to_line() + "\n" for e in range(40)))
    return path


@pytest.mark.parametrize("kb_left", [0, 24, 48])
@pytest.mark.parametrize("target", ["source", "copy"])
def test_rows_on_a_full_disk(forty, labelled, tmp_path, target, kb_left):
    """Written into the dataset, or into a copy of it: the old one or the new one, never something between."""
    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        root = shutil.copytree(forty, disk / "data")
        more = [f"--write.target={target}"] + [f"--write.root={disk / 'copy'}"] * (target == "copy")
        before = tree(root)
        ballast = fill(disk, kb_left << 10)
        done = run(main, *options(root, labelled, None, *more), log=tmp_path / "log")
        assert done.status == 1 and done.told.startswith(f"coc-label: {disk}") and "make room" in done.told.lower()
        assert tree(root) == before and not (disk / "copy").exists() and not (root / ".coc_write").exists()
        ballast.unlink()
        assert run(main, *options(root, labelled, None, *more), log=tmp_path / "log").status == 0
        written = tree(root if target == "source" else disk / "copy", COPY_FILE)
        assert written.keys() == before.keys() and written != before
        assert (tree(root) == before) == (target == "copy")
        # As a run does that is killed before it could say so: what is asked for is there already.
        assert run(main, *options(root, labelled, None, *more), log=tmp_path / "log").status == 0
        assert tree(root if target == "source" else disk / "copy", COPY_FILE) == written


@pytest.mark.parametrize("name", ["labels.jsonl", "labels.failed.jsonl"])
def test_damaged_labels_are_named(forty, labelled, tmp_path, name):
    path = shutil.copy(labelled, tmp_path / "labels.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    if name == "labels.jsonl":
        path.write_bytes(lines[0] + lines[1][:40] + b"\n" + lines[2])
    else:
        (tmp_path / name).write_bytes(b'{"episode_index": 39, "err\n')
    done = run(main, *options(forty, path), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith(f"coc-label: {tmp_path / name}")
    if name == "labels.jsonl":
        assert "line 2" in done.told
        view = [f"--dataset.root={forty}", f"--labels={path}", f"--output={tmp_path / 'v.html'}"]
        done = run(view_cli.main, *view, log=tmp_path / "log")
        assert done.status == 1 and done.told.startswith(f"coc-view: {path}, line 2")


def test_a_damaged_dataset_is_named(forty, labelled, tmp_path):
    damaged = shutil.copytree(forty, tmp_path / "data")
    path = damaged / "data/chunk-000/file-000.parquet"
    path.write_bytes(path.read_bytes()[:-300])
    done = run(main, *options(damaged, labelled, None, "--write.target=source"), log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith("coc-label: ") and str(damaged) in done.told
    assert not (damaged / ".coc_write").exists() and json.loads((damaged / "meta/info.json").read_text())
