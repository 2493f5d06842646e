"""Latent actions: what moves a scene ends up in the codes, and nothing of the robot reaches the copy."""

import importlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.fixtures_datasets import make_dataset

FOLDER = Path(__file__).parents[2] / "examples" / "studies"


@pytest.fixture(scope="module")
def latent():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)  # as for a script
        yield importlib.import_module("latent_actions")


def moved(n_episodes, n_frames, rng):
    """Latents (n, 6) that two numbers move, those numbers (n, 2) over SPAN frames, and the episode of each frame."""
    steps = rng.normal(size=(n_episodes, n_frames, 2))
    places = np.cumsum(steps, axis=1).reshape(-1, 2)
    return places @ rng.normal(size=(2, 6)) / 4, np.repeat(np.arange(n_episodes), n_frames)


def test_changes_end_at_their_episodes_last_frame(latent):
    latents = np.arange(14, dtype=np.float32)[:, None] ** 2
    found = latent.changes(latents, np.repeat([0, 1], 7))[:, 0]
    assert found.tolist() == [16, 24, 32, 27, 20, 11, 0, 72, 80, 88, 69, 48, 25, 0]


def test_codes_hold_what_moved_and_copies_nothing_of_the_robot(latent, tmp_path):
    lengths = (120, 150, 90)
    make_dataset(tmp_path / "source", lengths=lengths, cameras=())
    rng = np.random.default_rng(0)
    latents = np.concatenate([moved(1, length, rng)[0] for length in lengths]).astype(np.float32)
    shares = latent.label(tmp_path / "source", tmp_path / "copy", latents, seed=3)
    assert shares["with_codes"] > 0.9 > 0.5 > shares["without"]
    old, new = (pq.read_table(tmp_path / name / "data").to_pandas() for name in ("source", "copy"))
    states, actions = (np.stack(new[name].to_numpy()) for name in ("observation.state", "action"))
    assert len(np.unique(states, axis=0)) == 1
    recorded = np.stack(old["action"].to_numpy())
    assert np.allclose(actions.mean(0), recorded.mean(0), atol=1e-3) and np.allclose(
        actions.std(0), recorded.std(0), rtol=0.01
    )
    assert not np.allclose(actions, recorded)
    for name in set(old) - {"action", "observation.state"}:
        assert all(np.array_equal(a, b) for a, b in zip(old[name], new[name], strict=True)), name
    assert json.loads((tmp_path / "copy/meta/latent_actions.json").read_text())["shares"] == shares


def test_the_share_of_recorded_actions_is_that_of_the_best_linear_map(latent):
    codes = np.random.default_rng(0).normal(size=(500, 4))
    assert latent.linear_share(codes, codes @ np.ones((4, 2)) + 3) == pytest.approx(1)
    assert latent.linear_share(codes, np.random.default_rng(1).normal(size=(500, 2))) < 0.05
