"""Datasets whose frames can be told by their colour."""

from __future__ import annotations

import pytest

from tests.core.precompute_helpers import LENGTHS
from tests.fixtures_datasets import make_dataset, solid_frame


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Root of a dataset of solid colours, as videos."""
    root = tmp_path_factory.mktemp("videos") / "source"
    make_dataset(root, "tests/solid", LENGTHS, draw=solid_frame)
    return root


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """The same dataset with images in parquet."""
    root = tmp_path_factory.mktemp("images") / "source"
    make_dataset(root, "tests/solid", LENGTHS, draw=solid_frame, use_videos=False)
    return root
