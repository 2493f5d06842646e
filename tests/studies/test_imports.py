"""Comparing and showing records needs no torch and no LeRobot; help and errors about options come at once."""

import json
import subprocess
import sys

import pytest

HEAVY = ("torch", "lerobot", "transformers", "pandas", "scipy", "pyarrow", "matplotlib")
# Where records are read, pandas and scipy have work to do.
NEVER = HEAVY[:3]
EVERY_MODULE = """
import importlib, pkgutil
from world_modality_core import studies
names = [module.name for module in pkgutil.walk_packages(studies.__path__, studies.__name__ + ".")]
for name in names:
    importlib.import_module(name)
assert len(names) > 25, names
"""
A_COMMAND = """
import runpy, sys
sys.argv = {argv}
try:
    runpy.run_module({module!r}, run_name="__main__")
except SystemExit as stop:
    assert bool(stop.code) == {is_wrong}, stop.code
"""


def heavy_imports(code: str) -> set[str]:
    """Which of the heavy packages a piece of code brings."""
    code += f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_no_module_brings_torch_or_lerobot():
    brought = heavy_imports(EVERY_MODULE)
    assert "pandas" in brought and not brought & set(NEVER)


@pytest.mark.parametrize(
    ("module", "wrong"),
    [("evidence.compare_cli", "--alpha=7"), ("matrix.cli", "--jobs=0"), ("report.cli", "--max_videos=-1")],
)
def test_help_and_wrong_options_bring_nothing_heavy(module, wrong):
    module = f"world_modality_core.studies.{module}"
    for argv, is_wrong in ((["wm", "--help"], False), (["wm", "somewhere", wrong], True)):
        assert heavy_imports(A_COMMAND.format(argv=argv, module=module, is_wrong=is_wrong)) == set()
