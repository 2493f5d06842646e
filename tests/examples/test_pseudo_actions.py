"""Pseudo-actions come from states of the same episode, and leave labelled episodes and the source alone."""

import importlib.util
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from tests.fixtures_datasets import make_dataset

FILE = Path(__file__).parents[2] / "examples" / "studies" / "pseudo_actions.py"


@pytest.fixture(scope="module")
def pseudo():
    spec = importlib.util.spec_from_file_location("pseudo_actions", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_windows_stay_in_their_episode(pseudo):
    states = np.arange(7, dtype=np.float32)[:, None] ** 2
    rows = pseudo.windows(states, np.array([0, 0, 0, 0, 1, 1, 1]))
    assert rows[3].tolist() == [9, 1 - 9, 4 - 9, 0, 0, 0, 0]  # the last of its episode: what follows is itself
    assert rows[4].tolist() == [16, 0, 0, 25 - 16, 36 - 16, 36 - 16, 36 - 16]


def test_it_learns_what_moved_the_state(pseudo):
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (600, 2)).astype(np.float32)
    states = np.concatenate([np.zeros((1, 2)), np.cumsum(actions, 0)[:-1]]).astype(np.float32)
    inputs = torch.from_numpy(pseudo.windows(states, np.repeat(np.arange(6), 100)))
    model = pseudo.fit(inputs[:300], torch.from_numpy(actions[:300]), seed=0)
    error = (model(inputs[300:]) - torch.from_numpy(actions[300:])).square().mean()
    assert error < 0.1 * actions.var()


def test_only_unlabelled_actions_are_told(pseudo, tmp_path, monkeypatch):
    make_dataset(tmp_path / "source", lengths=(12, 9, 5), cameras=())
    monkeypatch.setattr(pseudo, "fit", lambda inputs, actions, seed: lambda x: torch.full((len(x), 4), 0.25))
    before = {file: file.read_bytes() for file in (tmp_path / "source").rglob("*.parquet")}
    pseudo.write_copy(tmp_path / "source", tmp_path / "copy", [1], [0, 2], seed=0)
    assert before == {file: file.read_bytes() for file in (tmp_path / "source").rglob("*.parquet")}
    old, new = (pq.read_table(tmp_path / name / "data").to_pandas() for name in ("source", "copy"))
    for name in set(old) - {"action"}:
        assert all(np.array_equal(a, b) for a, b in zip(old[name], new[name], strict=True)), name
    for was, told, episode in zip(old["action"], new["action"], old["episode_index"], strict=True):
        assert np.array_equal(told, was if episode == 1 else np.full(4, 0.25, np.float32))
    assert not list(tmp_path.glob(".*.partial"))
