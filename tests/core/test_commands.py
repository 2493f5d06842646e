"""A command whose output goes to a reader that stops reading ends quietly; another broken pipe is a fault."""

import subprocess
import sys

import pytest

PRINTS = "print('line\\n' * {n})"
OTHER_PIPE = "import os; r, w = os.pipe(); os.close(r); os.write(w, b'x')"


def start(body: str) -> subprocess.Popen:
    text = f"""
from world_modality_core.io.commands import command_errors
with command_errors('wm-x'):
    {body}
"""
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("n", [1, 100_000])  # what Python keeps back until the end, and what it writes at once
def test_a_reader_that_has_gone_is_no_fault(n):
    process = start(PRINTS.format(n=n))
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=120) == 141


def test_another_broken_pipe_keeps_its_traceback():
    process = start(OTHER_PIPE)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "BrokenPipeError" in err and out == ""


def test_what_is_read_is_printed():
    process = start(PRINTS.format(n=3))
    assert process.communicate(timeout=120) == ("line\n" * 3 + "\n", "") and process.returncode == 0
