"""Shared datasets of the label tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from coc_tools.episodes import EpisodeReader
from tests.coc.many_episodes import make_many
from tests.fixtures_datasets import make_dataset, solid_frame

CAMERA = "observation.images.top"


@pytest.fixture(scope="session")
def coc_source(tmp_path_factory) -> Path:
    """4 episodes (12, 17, 14, 20 frames at 10 fps), 2 video cameras, 2 tasks; do not write there."""
    root = tmp_path_factory.mktemp("coc") / "source"
    make_dataset(root, "tests/coc", draw=solid_frame, size=32)
    return root


@pytest.fixture(scope="session")
def one_episode(tmp_path_factory) -> Path:
    """One episode of 4 frames with an image camera of 8 px, stored in parquet; do not write there."""
    root = tmp_path_factory.mktemp("coc") / "one"
    make_dataset(root, "tests/one", lengths=[4], cameras=[CAMERA], use_videos=False, size=8)
    return root


@pytest.fixture(scope="session")
def forty(one_episode, tmp_path_factory) -> Path:
    """40 episodes of 4 frames, each with a task of its own; do not write there."""
    return make_many(one_episode, tmp_path_factory.mktemp("coc") / "forty", 40)


@pytest.fixture
def reader(coc_source) -> EpisodeReader:
    return EpisodeReader("tests/coc", str(coc_source))


@pytest.fixture
def many(forty) -> EpisodeReader:
    return EpisodeReader("tests/forty", str(forty))
