"""What a long job tells: a line now and then in a pipe, one bar on a terminal, and nobody else's bars."""

import os
import pty
import re
import subprocess
import sys
import termios
import textwrap

import pytest

# A command of ours whose work draws tqdm's and datasets' bars inside, as LeRobot's does.
COMMAND = textwrap.dedent(
    """
    import argparse, select, sys
    from tqdm import trange
    from world_modality_core.io import progress
    from world_modality_core.io.commands import run_command

    progress.LINE_AT_MOST_EVERY_S, progress.LINE_EVERY_S = 0.0, 1000.0

    def work(options):
        import datasets
        with progress.Progress("Encoding", 40, "frames", done=10) as bar:
            for i in trange(30, desc="foreign", disable=False):
                for _ in trange(3, desc="nested", leave=False, disable=False):
                    pass
                bar.note(failed=i // 20)
                bar.update()
        datasets.Dataset.from_dict({"a": [1] * 10}).map(lambda row: row)
        print("a warning that matters", file=sys.stderr)
        progress.LINE_EVERY_S = 0.1
        with progress.Progress("Slow", 2, "episodes") as bar:
            select.select([sys.stdin], [], [], 120)  # as long as it takes until that is told
            bar.update()

    sys.exit(run_command("wm-test", argparse.ArgumentParser(), work, []))
    """
)


def test_a_pipe_gets_few_lines_that_say_it_all():
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process, told = subprocess.Popen([sys.executable, "-c", COMMAND], **pipes), ""
    for line in process.stderr:
        told += line
        if line == "Slow: 0/2 episodes (0%)\n":  # nothing is done for a while, and that is told too
            process.stdin.close()
    assert process.wait(120) == 0, told
    assert not re.search(r"[\r\x1b]|foreign|nested|Map|%\|", process.stdout.read() + told)
    lines = told.splitlines()
    encoding = [line for line in lines if line.startswith("Encoding: ")]
    assert len(encoding) == 15  # every 5 % of 40
    assert re.fullmatch(r"Encoding: 12/40 frames \(30%\), [\d.e+]+ frames/s, about \d+ s left, failed=0", encoding[0])
    assert re.fullmatch(r"Encoding: 40/40 frames \(100%\), [\d.e+]+ frames/s, failed=1", encoding[-1])
    assert "Slow: 0/2 episodes (0%)" in lines and lines[-1].startswith("Slow: 1/2 episodes (50%), ")
    assert "a warning that matters" in lines


def test_a_terminal_gets_one_bar():
    parent, child = pty.openpty()
    termios.tcsetwinsize(child, (24, 120))
    process = subprocess.Popen([sys.executable, "-c", COMMAND], stdin=child, stdout=child, stderr=child)
    os.close(child)
    os.write(parent, b"\n")
    said = b""
    while True:
        try:
            chunk = os.read(parent, 65536)
        except OSError:  # Linux's way to say that the other side has closed
            break
        if not chunk:
            break
        said += chunk
    os.close(parent)
    text = said.decode()
    assert process.wait() == 0, text
    assert not re.search(r"foreign|nested|Map|\x1b", text)
    assert re.search(r"\rEncoding: 100%\|.*\| 40/40 \[.*failed=1\]", text) and "a warning that matters" in text


@pytest.mark.parametrize(("seconds", "words"), [(12.4, "about 12 s"), (600, "about 10 min"), (3 * 3600, "about 3.0 h")])
def test_time_left_in_words(seconds, words):
    from world_modality_core.io.progress import _in_words

    assert _in_words(seconds) == words
