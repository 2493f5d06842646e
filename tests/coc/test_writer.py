"""Labels as language rows: what plain LeRobot reads back, what stays as it was, and a kill at any moment."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from lerobot.annotations.steerable_pipeline.executor import Executor
from lerobot.annotations.steerable_pipeline.reader import iter_episodes
from lerobot.annotations.steerable_pipeline.staging import EpisodeStaging
from lerobot.annotations.steerable_pipeline.writer import LanguageColumnsWriter
from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
from lerobot.datasets.language import LANGUAGE_EVENTS, LANGUAGE_PERSISTENT
from lerobot.datasets.language_render import active_at

from coc_tools.config import DatasetConfig, LabelConfig, WriteConfig
from coc_tools.dataset_writer import WriteError, recover, write_copy, write_in_place
from coc_tools.episodes import EpisodeReader
from coc_tools.labelling import label
from coc_tools.language_rows import COC_STYLE, labels_by_index, labels_from_jsonl
from coc_tools.store import LabelFile, StoreError
from tests.coc.helpers import label_of
from world_modality_core.io.errors import ConfigError

STARTS = {0: (0.0, 0.5, 0.85), 1: (0.3, 1.1), 3: (0.0, 1.0)}  # 0.85 is between two frames; episode 2 has no label
REPO = Path(__file__).parents[2]


@pytest.fixture
def root(coc_source, tmp_path) -> Path:
    """A copy of the source that may be written to."""
    return Path(shutil.copytree(coc_source, tmp_path / "source"))


def labels_for(root: Path, mark: str = ""):
    reader = EpisodeReader(root=str(root))
    return {episode: label_of(reader, episode, starts, mark) for episode, starts in STARTS.items()}


def expected(index: int, bounds, mark: str = "") -> str | None:
    """Text that is active at a frame, from the definition."""
    episode = int(np.searchsorted(bounds[:, 1], index, side="right"))
    t = (index - bounds[episode, 0]) / 10
    started = [start for start in STARTS.get(episode, ()) if start <= t + 1e-6]
    return f"Step {started[-1]} of episode {episode}{mark}" if started else None


def check(root: Path, mark: str = "") -> None:
    dataset = LeRobotDataset("tests/coc", root=root)
    episodes = dataset.meta.episodes
    bounds = np.array([(e["dataset_from_index"], e["dataset_to_index"]) for e in episodes])
    lookup = labels_by_index(dataset.meta)
    texts = lookup(np.arange(len(dataset)))
    assert lookup.n_rows == 7
    for index in range(len(dataset)):
        row = dataset.hf_dataset[index]
        active = active_at(float(row["timestamp"]), persistent=row[LANGUAGE_PERSISTENT], style=COC_STYLE)
        text = active and active["content"]
        assert texts[index] == text, index
        wanted = expected(index, bounds, mark)
        assert (text is None) == (wanted is None) and (wanted is None or text.startswith(wanted)), index


PLAIN = """
    import sys
    from lerobot.datasets import LeRobotDataset
    from lerobot.datasets.language import PERSISTENT_STYLES
    from lerobot.datasets.language_render import active_at
    PERSISTENT_STYLES.add("coc")
    dataset = LeRobotDataset("tests/coc", root=sys.argv[1])
    assert dataset.meta.features["language_persistent"]["dtype"] == "language" and dataset.meta.has_language_columns
    item = dataset[12 + 4]
    print(item["observation.images.top"].shape[0], item["action"].shape[0], end=" ")
    print(active_at(float(item["timestamp"]), persistent=item["language_persistent"], style="coc")["content"])
    assert not [name for name in sys.modules if name.startswith(("coc_tools", "world_modality", "lerobot_policy"))]
"""


@pytest.mark.parametrize("target", ["source", "copy"])
def test_plain_lerobot_reads_the_rows(root, coc_source, tmp_path, target):
    before = {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}
    if target == "copy":
        written = write_copy(root, tmp_path / "copy", labels_for(root))
        assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
    else:
        backup, names = write_in_place(root, labels_for(root))
        written = root
        assert sorted(names) == ["data/chunk-000/file-000.parquet", "meta/info.json"]
        saved = {p.relative_to(backup): p.read_bytes() for p in backup.rglob("*") if p.is_file()}
        changed = {name for name, old in before.items() if (root / name).read_bytes() != old}
        assert saved == {name: before[name] for name in changed} and {str(name) for name in changed} == set(names)
    files = {p.relative_to(written) for p in written.rglob("*") if p.is_file()}
    assert set(before) == files - {Path(".coc_copy.json")}
    check(written)
    if target == "copy":  # in a process that knows nothing of us
        command = [sys.executable, "-I", "-c", textwrap.dedent(PLAIN), str(written)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("3 4 Step 0.3 of episode 1, because")
    # Everything else is as it was.
    features = LeRobotDatasetMetadata("x", root=coc_source).features
    new = LeRobotDatasetMetadata("x", root=written).features
    assert new == {**features, LANGUAGE_PERSISTENT: {"dtype": "language", "shape": (1,), "names": None}}
    table = pq.read_table(written / "data/chunk-000/file-000.parquet")
    assert pq.ParquetFile(written / "data/chunk-000/file-000.parquet").num_row_groups == 4
    source = (backup if target == "source" else root) / "data/chunk-000/file-000.parquet"
    assert table.drop_columns([LANGUAGE_PERSISTENT]).cast(pq.read_schema(source)).equals(pq.read_table(source))


def test_rows_of_lerobot_annotate_stay(root, tmp_path):
    staging = tmp_path / "staging"
    records = list(iter_episodes(root))
    for record in records:
        EpisodeStaging(staging, record.episode_index).write("plan", [
            {"role": "assistant", "content": f"reach {record.episode_index}", "style": "subtask", "timestamp": 0.0},
            {"role": "assistant", "content": "push", "style": "subtask", "timestamp": record.frame_timestamps[5]},
            {"role": "assistant", "content": "1. reach 2. push", "style": "plan", "timestamp": 0.0},
        ])  # fmt: skip
        EpisodeStaging(staging, record.episode_index).write("interjections", [
            {"role": "user", "content": "faster!", "style": "interjection", "timestamp": record.frame_timestamps[3]},
        ])  # fmt: skip
    LanguageColumnsWriter().write_all(records, staging, root)
    Executor._ensure_annotation_metadata_in_info(root)
    reader = EpisodeReader(root=str(root))
    assert [row["content"] for row in reader[1].language_rows] == ["1. reach 2. push", "reach 1", "push"]
    theirs = LeRobotDataset("tests/coc", root=root).hf_dataset
    before = [(row[LANGUAGE_PERSISTENT], row[LANGUAGE_EVENTS]) for row in theirs]
    for mark in ("", " again"):  # the second time our own rows are replaced
        write_in_place(root, labels_for(root, mark))
        ours = LeRobotDataset("tests/coc", root=root).hf_dataset
        others = [[r for r in row[LANGUAGE_PERSISTENT] if r["style"] != COC_STYLE] for row in ours]
        assert list(zip(others, [row[LANGUAGE_EVENTS] for row in ours], strict=True)) == before
        check(root, mark)
    # A label for one more episode leaves those that are there.
    reader = EpisodeReader(root=str(root))
    write_in_place(root, {2: label_of(reader, 2, (0.2,))})
    lookup = labels_by_index(root)
    assert lookup.n_rows == 8 and lookup([0])[0].startswith("Step 0.0 of episode 0 again")
    assert lookup([12 + 17 + 1, 12 + 17 + 2])[0] is None and "episode 2" in lookup([12 + 17 + 2])[0]


def test_row_groups_need_not_be_episodes(root):
    path = next((root / "data").rglob("*.parquet"))
    pq.write_table(pq.read_table(path), path, row_group_size=10)
    write_in_place(root, labels_for(root))
    check(root)
    assert pq.ParquetFile(path).num_row_groups == 7


def test_tool_calls_of_other_rows_survive(root):
    write_in_place(root, labels_for(root))
    path = next((root / "data").rglob("*.parquet"))
    call = {"type": "function", "function": {"name": "say", "arguments": {"text": "hm"}}}
    from coc_tools import dataset_writer

    row = {"role": "assistant", "content": None, "style": "memory", "timestamp": 0.0, "tool_calls": [call]}
    table = pq.read_table(path)
    pieces = dataset_writer._repeated(dataset_writer._rows([row], None, np.array([])), table.num_rows)
    place = table.schema.get_field_index(LANGUAGE_PERSISTENT)
    pq.write_table(table.set_column(place, LANGUAGE_PERSISTENT, pieces), path)
    write_in_place(root, labels_for(root))
    check(root)
    rows = LeRobotDataset("tests/coc", root=root).hf_dataset[0][LANGUAGE_PERSISTENT]
    assert [r["tool_calls"] for r in rows if r["style"] == "memory"] == [[call]]


def test_the_companion_can_hold_them(tiny_companion, tmp_path):
    companion = Path(shutil.copytree(tiny_companion.companion_root, tmp_path / "companion"))
    source = EpisodeReader(root=str(tiny_companion.source_root))
    path = tmp_path / "labels.jsonl"
    with LabelFile(path) as labels:
        for episode in (0, 2):
            labels.append(label_of(source, episode, (0.0, 0.4)))
    cfg = LabelConfig(
        DatasetConfig(root=str(tiny_companion.source_root)), str(path), "none",
        write=WriteConfig("companion", str(companion)),
    )  # fmt: skip
    label(cfg)
    lookup = labels_by_index(companion)
    assert lookup.n_rows == 4 and "Step 0.4 of episode 2" in lookup([12 + 17 + 5])[0]
    assert lookup([11, 12]) == [lookup.texts[1], None]
    from world_modality_core.latents.companion import open_companion

    opened = open_companion(root=companion)  # still a companion of that source, with its latents
    opened.check_source(LeRobotDatasetMetadata("x", root=tiny_companion.source_root))
    assert opened.table.n_frames == 63
    assert LeRobotDataset("c", root=companion)[0]["world.latents"].shape == (16,)


KILL = """
    import os, signal, sys
    from pathlib import Path
    from coc_tools import dataset_writer
    from coc_tools.store import read_labels

    def write_and_die(root, name, at):
        owner = os if name == "replace" else dataset_writer
        real, calls = getattr(owner, name), []
        def dying(*args, **kwargs):
            calls.append(args)
            if len(calls) == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(owner, name, dying)
        dataset_writer.write_in_place(Path(root), read_labels(sys.argv[1]))

    for case in sys.argv[2:]:  # each in a process of its own, without importing everything again
        root, name, at = case.split(":")
        child = os.fork()
        if not child:
            write_and_die(root, name, int(at))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
# Renames: the plan, the journal, the data file, info.json.
KILLS = [("_write_files", 1, "old"), ("link_or_copy", 2, "old"), ("replace", 2, "old"), ("replace", 3, "new"),
         ("replace", 4, "new")]  # fmt: skip


@pytest.mark.slow
def test_sigkill_at_any_moment_leaves_the_old_dataset_or_the_new_one(coc_source, tmp_path):
    labels = tmp_path / "labels.jsonl"
    with LabelFile(labels) as file:
        for found in labels_for(coc_source).values():
            file.append(found)
    roots = [Path(shutil.copytree(coc_source, tmp_path / f"{name}-{at}" / "source")) for name, at, _ in KILLS]
    cases = [f"{root}:{name}:{at}" for root, (name, at, _) in zip(roots, KILLS, strict=True)]
    command = [sys.executable, "-c", textwrap.dedent(KILL), str(labels), *cases]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.stdout.split() == [str(-signal.SIGKILL)] * len(KILLS), done.stderr
    before = {p.relative_to(coc_source): p.read_bytes() for p in coc_source.rglob("*") if p.is_file()}
    for root, (_, _, outcome) in zip(roots, KILLS, strict=True):
        assert (root / ".coc_write").exists()
        # The next run of the command repairs it, whatever it was started for.
        label(LabelConfig(DatasetConfig(root=str(root)), str(root.parent / "l.jsonl"), "none", dry_run=True))
        assert not (root / ".coc_write").exists() and recover(root) is None
        backups = [p for p in root.parent.iterdir() if p.name.startswith("source.coc_backup")]
        if outcome == "old":
            assert {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()} == before
            assert not backups
        else:
            check(root)
            assert len(backups) == 1
            saved = {p.relative_to(backups[0]): p.read_bytes() for p in backups[0].rglob("*") if p.is_file()}
            assert len(saved) == 2 and saved.items() <= before.items()


def test_a_copy_that_was_killed_leaves_nothing_in_its_place(root, tmp_path, monkeypatch):
    target = tmp_path / "copy"

    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", dies)
        with pytest.raises(KeyboardInterrupt):
            write_copy(root, target, labels_for(root))
    assert not target.exists()
    (tmp_path / "link").symlink_to(target)  # which isn't there yet
    check(write_copy(root, tmp_path / "link", labels_for(root)))
    assert (tmp_path / "link").is_symlink() and not target.with_name("copy.partial").exists()
    before = {path: path.stat().st_mtime_ns for path in target.rglob("*")}
    write_copy(root, target, labels_for(root))  # as after a kill between the copy and the command's end
    assert {path: path.stat().st_mtime_ns for path in target.rglob("*")} == before
    fewer = dict(list(labels_for(root).items())[:1])
    with pytest.raises(WriteError, match="exists"):
        write_copy(root, target, fewer)


def test_a_folder_of_the_users_beside_a_copy_stays(root, tmp_path):
    (tmp_path / "copy.partial").mkdir()
    (tmp_path / "copy.partial/mine").touch()
    with pytest.raises(ConfigError, match="copy.partial was not written by this command"):
        write_copy(root, tmp_path / "copy", labels_for(root))
    assert (tmp_path / "copy.partial/mine").exists()


def test_labels_of_another_dataset_change_nothing(root):
    before = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
    strange = label_of(EpisodeReader(root=str(root)), 0).model_copy(update={"episode_index": 4})
    for write in (
        lambda: write_in_place(root, {4: strange}),
        lambda: write_copy(root, root.parent / "c", {4: strange}),
    ):
        with pytest.raises(WriteError, match="labels of another dataset"):
            write()
    assert {p: p.read_bytes() for p in root.rglob("*") if p.is_file()} == before


def test_frames_with_different_rows_are_refused(root):
    write_in_place(root, labels_for(root))
    path = next((root / "data").rglob("*.parquet"))
    table = pq.read_table(path)
    index = table.schema.get_field_index(LANGUAGE_PERSISTENT)
    rows = table[LANGUAGE_PERSISTENT].combine_chunks()
    order = np.arange(len(rows))
    order[5] = 13  # a frame of episode 0 has the rows of episode 1
    pq.write_table(table.set_column(index, LANGUAGE_PERSISTENT, rows.take(order)), path)
    before = path.read_bytes()
    with pytest.raises(WriteError, match="frames of episode 0 hold different persistent language rows"):
        write_in_place(root, labels_for(root))
    assert path.read_bytes() == before
    assert not (root / ".coc_write").exists()


def test_lookup_from_jsonl_is_that_of_the_rows(root, tmp_path):
    labels, path = labels_for(root), tmp_path / "l.jsonl"
    with LabelFile(path) as file:
        for found in labels.values():
            file.append(found)
    write_in_place(root, labels)
    meta = LeRobotDatasetMetadata("x", root=root)
    everywhere = np.arange(meta.total_frames)
    assert labels_from_jsonl(path, meta)(everywhere) == labels_by_index(root)(everywhere)
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"episode_index": 2, "coc_text": "It pushes."}\n{"episode_id": "0", "coc_text": "It opens."}\n')
    assert labels_from_jsonl(plain, meta)([0, 11, 12, 28, 29, 42, 43]) == [
        "It opens.", "It opens.", None, None, "It pushes.", "It pushes.", None,
    ]  # fmt: skip
    plain.write_text('{"episode_index": 4, "coc_text": "x"}\n')
    with pytest.raises(StoreError, match="file of another dataset"):
        labels_from_jsonl(plain, meta)


def test_lookup_of_a_dataset_without_labels(coc_source):
    lookup = labels_by_index(coc_source)
    assert lookup([0, 62]) == [None, None] and lookup.n_rows == 0
    with pytest.raises(FileNotFoundError):
        labels_by_index(coc_source / "meta")


def test_two_steps_at_one_frame_are_no_ambiguity(root):
    reader = EpisodeReader(root=str(root))
    write_in_place(root, {0: label_of(reader, 0, (0.0, 0.41, 0.44, 0.6))})
    row = LeRobotDataset("x", root=root).hf_dataset[5]
    assert active_at(0.5, persistent=row[LANGUAGE_PERSISTENT], style="coc")["content"].startswith("Step 0.44")
