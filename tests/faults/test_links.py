"""Outputs that are links to where nothing is yet: each command writes there, beside it its locks, and the link stays.

Of wm-precompute, wm-prophet, wm-record and coc-label's copies: in the tests of these commands.
"""

import pytest

from coc_tools.store import LabelFile, read_labels
from tests.coc.helpers import label_of
from tests.faults.commands import run
from tests.intervention.helpers import make_checkpoint
from tests.studies.matrix.helpers import Fakes
from tests.studies.report.synthetic import write_study
from world_modality_core.studies.evidence import compare_cli
from world_modality_core.studies.matrix.cli import main as matrix_main
from world_modality_core.studies.report import cli as report_cli


@pytest.fixture
def link(tmp_path):
    """A link beside a disk, to what isn't on it yet."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk/out")
    yield tmp_path / "link"
    assert (tmp_path / "link").is_symlink() and (tmp_path / "disk/out").exists()


def test_pages_and_figures(tmp_path, link):
    study = str(write_study(tmp_path / "study", n_seeds=1, n_scenes=2))
    done = run(report_cli.main, study, f"--output={link}", "--no_videos", log=tmp_path / "log")
    assert done.status == 0 and "<html" in (tmp_path / "disk/out").read_text()
    (tmp_path / "disk/out").unlink()
    done = run(compare_cli.main, study, "--baseline=A_k4", f"--json={link}", log=tmp_path / "log")
    assert done.status == 0, done.err[-800:]


def test_studies(tmp_path, link, monkeypatch):
    fakes = Fakes(tmp_path)
    monkeypatch.setenv("FAKE_LOG", str(fakes.log))
    monkeypatch.setenv("FAKE_STEP_S", "0")

    def main():
        import sys

        return matrix_main(sys.argv[1:], find_program=lambda name: f"{fakes.bin}/{name}", check=lambda jobs: None)

    done = run(main, str(fakes.write()), f"--root={link}", "--jobs=1", log=tmp_path / "log")
    assert done.status == 0, done.err[-800:]
    assert any((tmp_path / "disk/out").glob("*/job.json"))


def test_labels(tiny_companion, tmp_path, link):
    from coc_tools.episodes import EpisodeReader

    with LabelFile(link) as labels:
        labels.append(label_of(EpisodeReader("tests/source", str(tiny_companion.source_root)), 0))
    assert len(read_labels(link)) == 1 and {path.name for path in tmp_path.iterdir()} == {"disk", "link"}


def test_interventions(tiny_companion, tmp_path, link):
    from lerobot_policy_world_modality.intervention.cli import main

    checkpoint = make_checkpoint(tmp_path / "F", tiny_companion)
    options = ["--sources=zero", "--n_bootstrap=100", "--n_frames=8", "--batch_size=8", "--device=cpu"]
    done = run(main, f"--policy.path={checkpoint}", f"--output_dir={link}", *options, log=tmp_path / "log")
    assert done.status == 0 and (tmp_path / "disk/out/interventions.json").is_file(), done.err[-800:]
