"""Unfinished work lies beside the output in a folder of the command's own; a user's folder is never touched."""

import os

import pytest

from world_modality_core.io import work_folder
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.work_folder import WorkFolder, write_folder


def write(text):
    def write_to(folder):
        folder.mkdir()
        (folder / "a").write_text(text)

    return write_to


def content(root):
    return {str(path.relative_to(root)): path.read_text() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("names", [["notes.txt"], ["dataset/a"], ["episodes/1.npy", "pca"], ["lock", "old"]])
def test_a_users_folder_of_that_name_stays(tmp_path, names):
    for name in names:
        path = tmp_path / "out.partial" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    before = content(tmp_path)
    with pytest.raises(ConfigError, match="out.partial was not written by this command .*move it away"):
        write_folder(tmp_path / "out", {}, write("new"))
    WorkFolder(tmp_path / "out.partial").remove()
    assert content(tmp_path) == before


def test_an_output_is_replaced_and_folders_beside_it_stay(tmp_path):
    for name in ("out.old", "out.replaced"):
        write("mine")(tmp_path / name)
    write_folder(tmp_path / "out", {"n": 1}, write("first"))
    write_folder(tmp_path / "out", {"n": 2}, write("second"))
    assert content(tmp_path) == {"out/a": "second", "out.old/a": "mine", "out.replaced/a": "mine"}


@pytest.mark.parametrize("at", range(1, 9))
def test_stopped_at_any_moment_the_output_is_the_old_or_the_new_one_after_the_next_run(tmp_path, monkeypatch, at):
    """Where `at` is past the last operation nothing stops it: the control."""
    write_folder(tmp_path / "out", {"n": 1}, write("first"))
    count = 0

    def stopping(operation):
        def stop(*args, **kwargs):
            nonlocal count
            count += 1
            if count == at:
                raise KeyboardInterrupt
            return operation(*args, **kwargs)

        return stop

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", stopping(os.replace))
        patched.setattr(work_folder.shutil, "rmtree", stopping(work_folder.shutil.rmtree))
        try:
            write_folder(tmp_path / "out", {"n": 2}, write("second"))
        except KeyboardInterrupt:
            assert "first" in str(content(tmp_path)) or content(tmp_path / "out")["a"] == "second"
    write_folder(tmp_path / "out", {"n": 2}, write("second"))
    assert content(tmp_path) == {"out/a": "second"}


def test_the_work_of_another_request_stays_unless_it_is_to_be_overwritten(tmp_path):
    work = WorkFolder(tmp_path / "w")
    work.begin({"n": 1}).release()
    (work.root / "done").write_text("an hour's work")
    with pytest.raises(ConfigError, match="n: 1 there, 2 asked.*--overwrite"):
        work.begin({"n": 2})
    work.remove({"n": 2})
    work.begin({"n": 1}).release()
    assert (work.root / "done").exists()
    work.begin({"n": 2}, overwrite=True).release()
    assert not (work.root / "done").exists()
    work.remove({"n": 2})
    assert not work.root.exists()


def test_whoever_waited_while_another_process_finished_is_told(tmp_path, monkeypatch):
    work = WorkFolder(tmp_path / "w")
    lock = work.begin({})
    acquire = work_folder.FileLock.acquire

    def acquire_late(self, **options):
        work.remove()
        lock.release()
        return acquire(self, **options)

    monkeypatch.setattr(work_folder.FileLock, "acquire", acquire_late)
    with pytest.raises(ConfigError, match="has finished"):
        work.begin({})
    assert not work.root.exists()


def test_two_at_once_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(work_folder, "LOCK_TIMEOUT_S", 0.1)
    lock = WorkFolder(tmp_path / "w").begin({})
    with pytest.raises(ConfigError, match="another process is at work"):
        WorkFolder(tmp_path / "w").begin({})
    lock.release()
    WorkFolder(tmp_path / "w").begin({}).release()
