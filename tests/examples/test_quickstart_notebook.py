"""The quickstart's notebook, cell by cell, at sizes that take seconds."""

import json
import shlex

import matplotlib
import pytest
from matplotlib import pyplot

from tests.test_architecture import REPO
from tests.users.pages import run

pytestmark = pytest.mark.sim

NOTEBOOK = REPO / "examples" / "quickstart.ipynb"
SMALL = {"EPISODES": 3, "STEPS": 3, "SCENES": 2, "BATCH": 4, "PROCESSES": 1, "LENGTH": 8}


def code_cells() -> list[str]:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # what they show is made where it is run
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    pyplot.close("all")  # other tests' figures
    install, sizes, *cells = code_cells()
    assert install.startswith("%pip install")
    names = {}
    exec(sizes, names)
    assert set(SMALL) == {name for name in names if name.isupper()}
    names |= SMALL
    for cell in cells:
        if not cell.startswith("!"):
            exec(cell, names)
            continue
        for command in cell.replace("\\\n", " ").splitlines():
            printed = run(shlex.split(command.removeprefix("!").format_map(names)), tmp_path)
    assert (tmp_path / "report.html").exists() and "report.html" in printed
    assert len(pyplot.get_fignums()) == 3
    pyplot.close("all")
