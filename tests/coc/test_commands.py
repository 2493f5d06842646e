"""The three commands: what they import before they know what to do, and whose fault an error is."""

from __future__ import annotations

import subprocess
import sys

import pytest
from draccus.wrappers.dataclass_wrapper import DataclassWrapper

from coc_tools.config import LabelConfig
from coc_tools.judge import cli as judge_cli
from coc_tools.judge.cli import EvalConfig
from coc_tools.view import cli as view_cli
from coc_tools.view.cli import ViewConfig
from tests.coc.helpers import label_of

HEAVY = {"torch", "lerobot", "transformers", "accelerate", "datasets", "scipy", "pyarrow", "pandas"}
RUN = """
import runpy, sys
sys.argv = {argv}
try:
    runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
except SystemExit as end:
    print("status", end.code)
print("imported", *sorted({heavy} & set(sys.modules)))
"""


def imported(module: str, *arguments: str) -> tuple[str, set[str]]:
    """What a command printed, and which of the heavy packages it imported."""
    code = RUN.format(argv=[module, *arguments], module=module, heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    *printed, last = done.stdout.splitlines()
    assert last.startswith("imported"), done.stderr
    return "\n".join(printed), set(last.split()[1:])


@pytest.mark.parametrize("module", ["coc_tools.cli", "coc_tools.judge.cli", "coc_tools.view.cli"])
@pytest.mark.parametrize("argument", ["--help", "--labels=nowhere"])
def test_help_and_wrong_options_import_nothing_heavy(module, argument):
    printed, heavy = imported(module, argument)
    assert heavy == set()
    assert "--labels" in printed if argument == "--help" else "status coc-" in printed


@pytest.mark.parametrize("config", [LabelConfig, EvalConfig, ViewConfig])
def test_every_option_is_explained(config):
    for wrapper in DataclassWrapper(config)._children:
        for field in wrapper._children if isinstance(wrapper, DataclassWrapper) else [wrapper]:
            assert field.help, field.dest


def test_coc_eval_without_a_dataset_needs_neither_lerobot_nor_torch(reader, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(label_of(reader, episode).to_line() + "\n" for episode in range(4)))
    printed, heavy = imported("coc_tools.judge.cli", f"--labels={path}", f"--reference={path}", "--n_bootstrap=100")
    assert "4 of 4 episodes" in printed
    assert heavy == {"scipy"}  # the control: it did import something


@pytest.mark.parametrize("cli", [judge_cli, view_cli])
def test_a_fault_of_ours_keeps_its_traceback(cli, monkeypatch):
    def broken(_):
        raise ValueError("a fault of ours")

    monkeypatch.setattr(cli, "evaluate" if cli is judge_cli else "view", broken)
    monkeypatch.setattr(sys, "argv", ["coc"])
    with pytest.raises(ValueError, match="a fault of ours"):
        cli.main()
