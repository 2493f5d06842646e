"""Pseudo-actions come from states or latents of the same episode; labelled episodes and the source stay as they are."""

import importlib.util
import json
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
    for was, labels, episode in zip(old["action"], new["action"], old["episode_index"], strict=True):
        assert np.array_equal(labels, was if episode == 1 else np.full(4, 0.25, np.float32))
    assert not list(tmp_path.glob(".*.partial"))


def test_states_are_told_from_latents_of_labelled_frames(pseudo):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(400, 6)).astype(np.float32)
    states = (latents @ rng.normal(size=(6, 2)) + 3).astype(np.float32)
    episodes, is_labelled = np.repeat(np.arange(4), 100), np.arange(400) < 200
    hidden = np.where(is_labelled[:, None], states, np.nan)  # states of the others are never read
    labels = pseudo.pseudo_label_states(latents, hidden, episodes, is_labelled)
    assert labels.dtype == np.float32 and pseudo.r_squared(labels[200:], states[200:]) > 0.9
    assert pseudo.r_squared(np.broadcast_to(states.mean(0), states.shape), states) == pytest.approx(0, abs=1e-5)


def test_with_images_only_states_are_told_too(pseudo, tmp_path, monkeypatch):
    make_dataset(tmp_path / "source", lengths=(12, 9, 5), cameras=())
    old = pq.read_table(tmp_path / "source" / "data").to_pandas()
    seen = []

    def fit(inputs, actions, seed):
        seen.append(inputs)
        return lambda x: torch.full((len(x), 4), 0.25)

    monkeypatch.setattr(pseudo, "fit", fit)
    latents = np.stack(old["observation.state"])[:, :3].astype(np.float32)
    fitness = pseudo.write_copy(tmp_path / "source", tmp_path / "copy", [1], [0, 2], seed=0, latents=latents)
    assert set(fitness) == {"observation.state", "action"}
    assert json.loads((tmp_path / "copy/meta/pseudo_actions.json").read_text())["r_squared"] == fitness
    # Seen otherwise, an episode's latents may tell nothing of its states; those of the labelled ones are kept.
    blank = np.zeros_like(latents)
    pseudo.write_copy(tmp_path / "source", tmp_path / "blank", [1], [0, 2], 0, latents, otherwise=blank)
    told = np.stack(pq.read_table(tmp_path / "blank" / "data").to_pandas()["observation.state"])
    assert np.ptp(told[:12], axis=0).max() < 1e-6 and np.ptp(told[12:21], axis=0).max() > 0.1
    new = pq.read_table(tmp_path / "copy" / "data").to_pandas()
    labels = pseudo.pseudo_label_states(
        latents, np.stack(old["observation.state"]), old["episode_index"].to_numpy(), old["episode_index"] == 1
    )
    for i, episode in enumerate(old["episode_index"]):
        is_labelled = episode != 1
        assert np.array_equal(new["action"][i], np.full(4, 0.25, np.float32) if is_labelled else old["action"][i])
        assert np.array_equal(new["observation.state"][i], labels[i] if is_labelled else old["observation.state"][i])
    # Actions come from pseudo-labelled states in labelled episodes too, so that one model serves all.
    wide = pseudo.windows(labels, old["episode_index"].to_numpy(), pseudo.FAR_OFFSETS)
    assert np.array_equal(seen[0].numpy(), wide[old["episode_index"] == 1])
