"""The past of a memory: one rule, recorded and live; nothing of other episodes, nothing later; each frame once."""

import numpy as np
import pytest
import torch

from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.latents.past_frames import RecordedPast

LENGTHS = (23, 9, 30)
P, D = 2, 3
CAMERA = "observation.image"


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    ends = np.cumsum(LENGTHS)
    latents = rng.normal(size=(ends[-1], P * D)).cumsum(0).astype(np.float16)
    return latents, np.stack([ends - LENGTHS, ends], axis=1)


def expected(latents, bounds, row, n, stride, select):
    """Rows by the rule in words, oldest first."""
    start = max(start for start, _ in bounds.tolist() if start <= row)
    candidates = list(range(start, row, stride))
    values = latents.astype(np.float32)
    moved = {at: ((values[at] - values[at - stride]) ** 2).sum() if at > start else np.inf for at in candidates}
    most = sorted(candidates, key=lambda at: (-moved[at], at))
    n_moved = {"stride": 0, "change": n, "both": n // 2}[select]
    newest = candidates[-(n - n_moved) :] if n > n_moved else []
    return sorted(most[:n_moved] + newest)


CHOICES = [(4, 1, "stride"), (4, 3, "stride"), (3, 2, "change"), (40, 2, "change"), (5, 2, "both"), (2, 4, "both")]


@pytest.mark.parametrize("n, stride, select", CHOICES)
def test_recorded_and_live_choose_by_the_same_rule(table, n, stride, select):
    latents, bounds = table
    past = RecordedPast(latents, bounds, n, stride, select, torch.device("cpu"))
    rows, is_pad, age = past.rows(torch.arange(len(latents)))
    for row in range(len(latents)):
        chosen = rows[row][~is_pad[row]].tolist()
        assert chosen == expected(latents, bounds, row, n, stride, select), row
        assert age[row].tolist() == [0] * int(is_pad[row].sum()) + [row - at for at in chosen]

    # Two environments live two episodes at once, planning every 4 steps; frames hold their row's number.
    class Encoder:
        def __init__(self):
            self.seen = []

        def encode(self, windows):
            at = windows[CAMERA][:, -1, 0, 0, 0].long()
            self.seen += at.tolist()
            return torch.tensor(latents[at].astype(np.float32)).unflatten(-1, (P, D))

    encoder = Encoder()
    frames = FrameHistory([CAMERA], 2, 1, 1, 1, past=(n, stride, select))
    for episodes in ((0, 2), (2, 0)):  # the second time round nothing of the first may be left
        frames.clear()
        encoder.seen.clear()
        starts = bounds[list(episodes), 0]
        for t in range(20):
            frames.append({CAMERA: torch.tensor(starts + t, dtype=torch.float32)[:, None, None, None]})
            if t % 4:
                continue
            frames.latents(encoder)
            got, got_pad, got_age = frames.past()
            index = torch.tensor(starts + t)
            rows, is_pad, age = past.rows(index)
            assert torch.equal(got_pad, is_pad) and torch.equal(got_age, age)
            values = torch.tensor(latents[rows.numpy()].astype(np.float32)).unflatten(-1, (P, D))
            assert torch.equal(got[~got_pad], values[~is_pad])
        counts = np.unique(encoder.seen, return_counts=True)[1]
        assert counts.max() == 1  # each frame once ...
        assert len(counts) <= 2 * (20 / stride + 1 + 2 * 5)  # ... one in `stride`, and the history of each plan


def test_what_comes_later_changes_nothing_and_what_came_before_does(table):
    latents, bounds = table
    row = 18
    changed = latents.copy()
    changed[row:] += 100
    choose = lambda values: RecordedPast(values, bounds, 3, 2, "change", torch.device("cpu")).rows(torch.tensor([row]))  # noqa: E731
    before = choose(latents)
    assert all(torch.equal(a, b) for a, b in zip(before, choose(changed), strict=True))
    changed = latents.copy()
    changed[10] += 100  # a frame at which everything moved, and so is the next
    assert {10, 12} <= set(choose(changed)[0][0].tolist()) and not torch.equal(before[0], choose(changed)[0])


def test_the_past_of_a_long_episode_costs_what_a_short_one_does(table):
    latents, bounds = table
    rows, is_pad, _ = RecordedPast(latents, bounds, 64, 1, "change", torch.device("cpu")).rows(torch.tensor([22, 61]))
    assert rows.shape == is_pad.shape == (2, 64)
    assert (~is_pad).sum(1).tolist() == [22, 29]
