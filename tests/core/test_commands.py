"""What every command does with its options, with errors, and with a reader that stops reading."""

import argparse
import os
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field

import pytest

from world_modality_core.io.commands import run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.quoting import quoted

PRINTS = "print('line\\n' * {n})"
OTHER_PIPE = "import os; r, w = os.pipe(); os.close(r); os.write(w, b'x')"


def start(body: str, stdout: int = subprocess.PIPE) -> subprocess.Popen:
    text = f"""
from world_modality_core.io.commands import command_errors
with command_errors('wm-x'):
    {body}
"""
    return subprocess.Popen([sys.executable, "-c", text], stdout=stdout, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("n", [1, 100_000])  # what Python keeps back until the end, and what it writes at once
def test_a_reader_that_has_gone_is_no_fault(n):
    reader, writer = os.pipe()
    os.close(reader)  # before the command starts: one that is quick would have said it all to a reader still there
    process = start(PRINTS.format(n=n), stdout=writer)
    os.close(writer)
    assert process.stderr.read() == "" and process.wait(timeout=120) == 141


def test_another_broken_pipe_keeps_its_traceback():
    process = start(OTHER_PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "BrokenPipeError" in err and out == ""


HELPERS = {
    "pool": """
        from concurrent.futures import ProcessPoolExecutor
        with ProcessPoolExecutor(1) as pool:
            pool.submit(eval, "__import__('os')._exit(9)").result()""",
    "pipe": """
        from multiprocessing import Pipe
        here, there = Pipe()
        there.close()
        here.recv()""",
    "half a message": """
        from multiprocessing import Pipe
        here, there = Pipe()
        os.write(there.fileno(), b"\\0\\0\\0\\x09half")
        there.close()
        here.recv()""",
    "loader": """
        from torch.utils.data import DataLoader
        class Killed:
            __len__ = lambda self: 2
            __getitem__ = lambda self, i: os._exit(9)
        list(DataLoader(Killed(), num_workers=1))""",
}


@pytest.mark.parametrize("helper", HELPERS)
def test_a_helper_that_was_killed_is_told_in_one_line(helper):
    process = start("import os" + textwrap.indent(textwrap.dedent(HELPERS[helper]), "    "))
    out, err = process.communicate(timeout=120)
    last = err.splitlines()[-1]
    assert process.returncode == 1 and last.startswith("wm-x: a helper process was killed"), err
    assert "Traceback" not in err and last.endswith("then the same command goes on from here")


def test_a_folder_that_is_gone_or_read_only_is_told_in_one_line(tmp_path):
    (tmp_path / "work").mkdir()
    gone = f"import shutil; shutil.rmtree({str(tmp_path / 'work')!r}); open({str(tmp_path / 'work/part')!r}, 'w')"
    for body, said in [
        (gone, "work/part: its folder is gone"),
        (f"raise OSError(30, 'Read-only file system', {str(tmp_path / 'a')!r})", "a: Read-only file system"),
        (f"open({str(tmp_path)!r})", f"{tmp_path} is a folder, where a file belongs"),
        (f"import os; os.replace({__file__!r}, {str(tmp_path)!r})", f"{tmp_path} is a folder, where a file belongs"),
        (f"import os; os.mkdir({__file__!r})", "test_commands.py is a file, where a folder belongs"),
        (f"import os; os.listdir({__file__!r})", "test_commands.py is a file, where a folder belongs"),
    ]:
        process = start(body)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1 and said in err and err.count("\n") == 1
    out, err = start(f"open({str(tmp_path / 'missing')!r})").communicate(timeout=120)
    assert "Traceback" in err  # a file that we thought was there: a fault of ours


HOSTILE = "a\x1b[2J\x1b]0;title\x07b\x00\u202ec\r\x9b5n"


def test_what_a_terminal_would_act_upon_is_written_out():
    shown = ascii(HOSTILE)[1:-1]
    raised = f"from world_modality_core.io.errors import UserError; raise UserError({HOSTILE!r})"
    process = start(f"print({HOSTILE!r}); {raised}")
    out, err = process.communicate(timeout=120)
    assert out == shown + "\n" and err == f"wm-x: {shown}\n".replace("\\r", " ")
    assert quoted("plain: \u00e9\u4e2d\U0001f600\tx\n") == "plain: \u00e9\u4e2d\U0001f600\tx\n"


def test_what_is_read_is_printed():
    process = start(PRINTS.format(n=3))
    assert process.communicate(timeout=120) == ("line\n" * 3 + "\n", "") and process.returncode == 0


@dataclass
class Part:
    size: int = 1

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"part.size={self.size}: expected at least 1")
        if self.size > 9:
            raise ValueError("a library's own words")


@dataclass
class Options:
    part: Part = field(default_factory=Part)
    # For the help.
    merge: bool = False
    dry_run: "bool" = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.name == "bad":
            raise ConfigError("name='bad': expected another")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--merge", "--name=x"], Options(merge=True, name="x")),
        (["--merge", "false", "--dry_run"], Options(dry_run=True)),
        (["--merge=false", "--name", "--part.size=2"], None),  # no flag: a value is missing
        (["--part.size=2"], Options(part=Part(2))),
    ],
)
def test_a_bare_flag_is_a_true_one(arguments, expected):
    seen = []
    if expected is None:
        with pytest.raises(SystemExit):
            run_command("wm-x", Options, seen.append, arguments)
    else:
        assert run_command("wm-x", Options, seen.append, arguments) == 0 and seen == [expected]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--name=bad", "wm-x: name='bad': expected another"),
        ("--part.size=0", "wm-x: part.size=0: expected at least 1"),
        ("--part.size=many", "wm-x: `part.size`: Couldn't parse 'many' into an int"),
        ("--part.size=10", "wm-x: Couldn't instantiate class Part using the given arguments. a library's own words"),
    ],
)
@pytest.mark.parametrize("status", [1, 2])
def test_an_option_that_cannot_work_is_one_line(argument, said, status, capsys):
    def work(options):
        raise AssertionError("begun")

    with pytest.raises(SystemExit) as stop:
        run_command("wm-x", Options, work, [argument], status=status)
    line = stop.value.code if status == 1 else capsys.readouterr().err.strip()
    assert line == said and (status == 1 or stop.value.code == 2)


def test_a_tilde_is_the_home_folder_where_a_shell_does_not_know_it(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    for typed, meant in (
        ("~/a", f"{tmp_path}/a"), ("~", str(tmp_path)), ("~/a,~/b", f"{tmp_path}/a,{tmp_path}/b"),
        ("a~/b", "a~/b"), ("~a/b", "~a/b"), ("x/~/b", "x/~/b"),
    ):  # fmt: skip
        seen = []
        run_command("wm-x", parser, lambda given, seen=seen: seen.append(given.out), [f"--out={typed}"])
        assert seen == [meant]


def test_a_fault_of_ours_is_not_taken_for_the_users():
    """A ValueError is how Python and its libraries say that a call is wrong: it keeps its traceback."""

    def work(options):
        raise ValueError("a fault")

    with pytest.raises(ValueError, match="^a fault$"):
        run_command("wm-x", Options, work, [])


def test_a_parser_serves_as_well_and_work_may_give_the_exit_status():
    parser = argparse.ArgumentParser(prog="wm-x")
    parser.add_argument("n", type=int)
    assert run_command("wm-x", parser, lambda given: given.n, ["3"]) == 3
    assert run_command("wm-x", parser, lambda given: "a result", ["3"]) == 0


LIGHT = ["world_modality_core.precompute", "world_modality_core.prophet", "wm_tools.push"]


@pytest.mark.parametrize("package", LIGHT)
@pytest.mark.parametrize("wrong", [False, True])
def test_help_and_wrong_options_need_no_heavy_imports(package, wrong):
    """Each of these libraries takes seconds to import."""
    heavy = ["torch", "lerobot", "transformers", "datasets", "faiss", "pandas", "accelerate", "huggingface_hub"]
    text = f"""
import sys
sys.argv = ["x", {"'--seed=many'" if wrong else "'--help'"}]
from {package}.cli import main
try:
    main()
except SystemExit as stop:
    print(bool(stop.code), [name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == f"{wrong} []", done.stderr
