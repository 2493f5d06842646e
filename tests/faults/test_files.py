"""What every command's files go through: written aside, refused by name, a full disk told in one line, locks."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from tests.faults.commands import At, fill, run, small_disk
from world_modality_core.io import files
from world_modality_core.io.commands import command_errors
from world_modality_core.io.errors import ConfigError, DamagedFileError, DiskFullError
from world_modality_core.io.files import (
    as_dataclass,
    inside,
    is_disk_full,
    naming_full_disk,
    read_json,
    read_json_lines,
    read_parquet,
    read_tensors,
    write_text,
    writing,
)
from world_modality_core.io.work_folder import write_folder


@dataclass
class Spec:
    name: str
    sizes: list[int]
    factor: float = 1.0
    more: dict[str, int] = field(default_factory=dict)


def test_a_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "a.json"
    write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), writing(path) as aside:
        aside.write_text("half of the n")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]

    def main():
        write_text(path, "new")

    done = run(main, log=tmp_path / "log", at=At("os.rename", "a.json"))
    assert done.status == 128 + signal.SIGKILL and path.read_text() == "old"
    (left_over,) = tmp_path.glob("*.partial")
    machine, number = left_over.name.split(".")[2].split("-")
    number = int(number)  # of a process that has ended
    kept = [f"a.json.{machine}-{os.getpid()}.partial"]  # of one that is still at work
    kept += [f"a.json.{'0' * 12}-{number}.partial"]  # of one on another machine, or in another container
    kept += ["a.json.mine.partial", f"a.json.{number}.partial", f"b.json.{machine}-{number}.partial"]  # a user's
    for name in kept:
        (tmp_path / name).touch()
    (tmp_path / "a.json.mine.partial").touch()
    old = tmp_path / f"a.json.{'1' * 12}-{os.getpid()}.partial"  # begun on another machine, long ago
    old.touch()
    os.utime(old, (0, time.time() - 25 * 3600))
    assert run(main, log=tmp_path / "log").status == 0 and path.read_text() == "new"
    assert sorted(p.name for p in tmp_path.glob("*.partial")) == sorted(kept)


def test_a_power_cut_leaves_all_of_what_was_renamed(tmp_path, monkeypatch):
    """What a rename makes visible is on the disk before, and the name itself before anything is deleted for it."""
    order = []
    fsync, replace, rmtree = os.fsync, os.replace, shutil.rmtree

    def synced(descriptor):
        order.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))
        return fsync(descriptor)

    def replaced(source, target):
        order.append(("rename", str(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(
        shutil, "rmtree", lambda *given, **named: order.append(("delete", "")) or rmtree(*given, **named)
    )

    with writing(tmp_path / "a") as aside:
        aside.write_text("x")
    assert order == [("sync", str(aside)), ("rename", str(tmp_path / "a")), ("sync", str(tmp_path))]

    def write(folder):
        (folder / "meta").mkdir(parents=True)
        for name in ("meta/info.json", "data.parquet"):
            (folder / name).write_text("x")

    write_folder(tmp_path / "out", {}, write)
    renamed = order.index(("rename", str(tmp_path / "out")))
    inside = tmp_path / "out.partial/dataset"
    assert {path for what, path in order[:renamed] if what == "sync"} >= {
        str(inside / name) for name in ("", "meta", "meta/info.json", "data.parquet")
    }
    assert order[renamed + 1] == ("sync", str(tmp_path)) and order[renamed + 2][0] == "delete"


def test_processes_of_another_container_are_known_as_such():
    """Where a process's number means another process, the name differs: in a pid namespace of its own."""
    ask = [sys.executable, "-c", "from world_modality_core.io import files; print(files._machine())"]
    here = subprocess.run(ask, capture_output=True, text=True, check=True).stdout
    assert here.strip() == files._machine()
    unshare = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]
    inner = subprocess.run([*unshare, *ask], capture_output=True, text=True)
    if inner.returncode:
        pytest.skip(f"this machine makes no pid namespaces: {inner.stderr.strip()[-200:]}")
    assert inner.stdout != here


@pytest.mark.parametrize("kind", ["text", "parquet", "safetensors", "npy", "png"])
def test_a_full_disk_is_told_whatever_library_writes(tmp_path, kind):
    from PIL import Image

    def write(path):
        values = np.random.default_rng(0).random((200, 200)).astype(np.float32)
        if kind == "text":
            path.write_text("x" * values.nbytes)
        elif kind == "parquet":
            pq.write_table(pa.table({"x": values.reshape(-1)}), path, compression="none")
        elif kind == "safetensors":
            save_file({"x": torch.from_numpy(values)}, path)
        elif kind == "npy":
            with path.open("wb") as file:
                np.save(file, values)
        else:
            Image.fromarray((values * 255).astype(np.uint8)).save(path, "PNG")

    with small_disk(tmp_path / "disk", 1 << 20) as disk:
        ballast = fill(disk, 16 << 10)
        with pytest.raises(DiskFullError, match=rf"{disk}/file: no room left .* Make room on that disk"):
            with writing(disk / "file") as aside:
                write(aside)
        assert os.listdir(disk) == ["ballast"]  # no half of a file, which would also take the room
        ballast.unlink()
        with writing(disk / "file") as aside:
            write(aside)
        assert (disk / "file").stat().st_size


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path):
    with pytest.raises(FileNotFoundError), writing(tmp_path / "no/such/folder"):
        raise FileNotFoundError(errno.ENOENT, "no")
    assert not is_disk_full(OSError(errno.EIO, "broken")) and is_disk_full(OSError(errno.EDQUOT, "quota"))
    wrapped = RuntimeError("the encoder stopped")
    wrapped.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(DiskFullError), naming_full_disk(tmp_path):
        raise wrapped


def test_a_disk_quota_is_told_too(tmp_path):
    """A limit on a file's size (`ulimit -f`), as batch systems set it."""
    import resource

    def main():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
        with command_errors("wm-x"):
            write_text(tmp_path / "a", "x" * 100_000)

    done = run(main, log=tmp_path / "log")
    assert done.status == 1 and done.told.startswith(f"wm-x: {tmp_path / 'a'}: no room left")


@pytest.mark.parametrize(
    "content",
    [b"", b'{"a": 1', b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"9" * 10_000 + b"}", b'{"a": 1, "a": 2}', b"[1]"],
)
def test_damaged_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DamagedFileError, match=rf"^{tmp_path}/a\.json .*(delete it|take a copy)") as told:
        read_json(tmp_path / "a.json", dict)
    assert "\n" not in str(told.value) and len(str(told.value)) < 600


def test_good_files_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, "ä"]}')
    assert read_json(tmp_path / "a.json", dict) == {"a": [1, "ä"]}
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read_json_lines(tmp_path / "a.jsonl", ["step"]) == [{"step": 1}, {"step": 2}]
    with pytest.raises(FileNotFoundError):  # not damaged: missing
        read_json(tmp_path / "b.json")
    spec = as_dataclass(Spec, {"name": "n", "sizes": [1], "factor": 2}, "x")
    assert spec == Spec("n", [1], 2)


def test_a_line_in_the_middle_is_no_torn_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"st\n{"step": 2}\n')
    with pytest.raises(DamagedFileError, match=r"a\.jsonl, line 2: "):
        read_json_lines(tmp_path / "a.jsonl", ["step"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sizes": ["1"]}, "x: sizes: 0: "), ({"name": 3}, "x: name: "), ({"other": 1}, "no field 'other'"),
        ({"factor": "2"}, "x: factor: "), ({"more": {"a": None}}, "x: more: a: "),
    ],
)  # fmt: skip
def test_fields_of_another_type_are_named(changes, told):
    with pytest.raises(DamagedFileError, match=told):
        as_dataclass(Spec, {"name": "n", "sizes": [1]} | changes, "x")
    with pytest.raises(DamagedFileError, match="sizes is missing"):
        as_dataclass(Spec, {"name": "n"}, "x")


def test_truncated_safetensors_and_parquet_are_named(tmp_path):
    save_file({"x": torch.zeros(100)}, tmp_path / "a.safetensors")
    pq.write_table(pa.table({"x": list(range(100))}), tmp_path / "a.parquet")
    assert read_tensors(tmp_path / "a.safetensors", ["x"])["x"].shape == (100,)
    assert read_parquet(tmp_path / "a.parquet", ["x"]).num_rows == 100
    for name, read in (("a.safetensors", read_tensors), ("a.parquet", read_parquet)):
        path = tmp_path / name
        for n in (path.stat().st_size - 9, 20, 0):
            path.write_bytes(path.read_bytes()[:n])
            with pytest.raises(DamagedFileError, match=f"^{path} can't be read"):
                read(path)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "", ".", "..", "a/..", "x\0y"])
def test_names_that_lead_out_of_a_folder_are_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="leads out of"):
        inside(tmp_path, name, "repo_id")
    assert inside(tmp_path, "user/name", "repo_id") == tmp_path / "user/name"


@pytest.mark.parametrize("second", ["none", "while it ends", "while the line is printed", "at the very end"])
def test_ctrl_c_once_and_twice_is_one_line_and_130(tmp_path, second):
    def again(moment):
        if second == moment:
            os.kill(os.getpid(), signal.SIGINT)

    class Stderr:
        def write(self, text):
            again("while the line is printed")
            return sys.__stderr__.write(text)

        def flush(self):
            sys.__stderr__.flush()

    def main():
        sys.__stderr__, sys.stderr = sys.stderr, Stderr()
        try:
            with command_errors("wm-x"):
                try:
                    with writing(tmp_path / "a") as aside:
                        aside.write_text("half")
                        os.mkdir(tmp_path / "now")
                        time.sleep(600)
                finally:
                    again("while it ends")
        finally:
            again("at the very end")

    done = run(main, log=tmp_path / "log", at=At("os.mkdir", "now", signal.SIGINT))
    assert done.status == 130 and "Traceback" not in done.err
    assert done.told == "wm-x: stopped; the same command goes on from here"
    assert not (tmp_path / "a").exists() and not list(tmp_path.glob("*.partial"))


def test_a_fault_of_ours_keeps_its_traceback(tmp_path):
    def main():
        with command_errors("wm-x"):
            raise RuntimeError("a fault")

    done = run(main, log=tmp_path / "log")
    assert done.status == 1 and "Traceback" in done.err and "a fault" in done.err


def test_several_lines_become_one(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop, command_errors("wm-x"):
        raise ConfigError("first\nsecond")
    assert stop.value.code == "wm-x: first second"
    with pytest.raises(SystemExit) as stop, command_errors("wm-x", status=2):
        raise ConfigError("no")
    assert stop.value.code == 2 and capsys.readouterr().err == "wm-x: no\n"
