"""Well-formed files of the wrong type are refused in a line, by every reader of parquet files, and none hangs."""

import shutil

import pytest

from tests.fuzz.readers import TOLD, time_limit
from tests.fuzz.wrong_types import wrong_files
from tests.studies.report.synthetic import write_eval
from world_modality_core.precompute.source import SourceDataset
from world_modality_core.studies.evidence.episode_records import read_episodes


def read_source(root):
    SourceDataset("tests/source", str(root)).check_ends()


READERS = {
    "source: frames": (read_source, "source", "data/chunk-000/file-000.parquet"),
    "source: tasks": (read_source, "source", "meta/tasks.parquet"),
    "episodes": (read_episodes, "eval", "episodes.parquet"),
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    from tests.fixtures_datasets import make_dataset

    base = tmp_path_factory.mktemp("valid")
    make_dataset(base / "source", lengths=(3, 2), cameras=["observation.images.top"], use_videos=False, size=16)
    write_eval(base / "eval", "F", 0, {"intact": 0.5}, n_scenes=2)
    shutil.rmtree(base / "eval/episodes")
    return base


@pytest.mark.parametrize("name", READERS)
def test_what_has_the_wrong_type_is_refused_by_name(valid, tmp_path, name):
    read, folder, file = READERS[name]
    root = shutil.copytree(valid / folder, tmp_path / folder)
    read(root)
    n_refused, found = 0, []
    for what, content in wrong_files(valid / folder / file):
        (root / file).write_bytes(content)
        try:
            with time_limit(20):
                read(root)
        except TOLD:
            n_refused += 1
        except Exception as error:
            found.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")
    assert not found, "\n".join(found)
    assert n_refused > 5  # the control
