"""The past of a memory: one rule, recorded and live; nothing of other episodes, nothing later; each frame once."""

import numpy as np
import pytest
import torch

from world_modality_core.encoders.windows import window_positions
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.latents.latent_table import LatentTable
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


class Study:
    """Episodes of a few values, so that frames alike and ties are common, and a rollout's options, drawn by a seed.

    A frame holds the number of its row; its latent the values of its window.
    """

    def __init__(self, seed, folder):
        self.rng = rng = np.random.default_rng(seed)
        self.lengths = rng.integers(1, 40, size=5)
        self.bounds = np.stack([self.lengths.cumsum() - self.lengths, self.lengths.cumsum()], axis=1)
        self.m, self.window_stride, self.every = (int(rng.integers(1, 4)) for _ in range(3))
        self.t, self.history_stride = int(rng.integers(1, 4)), self.every * int(rng.integers(1, 4))
        n = int(rng.choice([1, 2, 3, 5, 64]))
        self.past = n, self.every * int(rng.choice([1, 1, 2, 5, 50])), str(rng.choice(["stride", "change", "both"]))
        self.values = torch.tensor(rng.integers(0, 3, size=(self.lengths.sum(), 2)) * 1.0)
        latents = []
        for start, end in self.bounds:
            windows = start + window_positions(np.arange(end - start), self.m, self.window_stride)
            latents.append(self.values[windows[np.arange(end - start) // self.every * self.every]].flatten(1))
        np.save(folder / "table.npy", torch.cat(latents).half().numpy())
        self.table = LatentTable(folder / "table.npy", None, self.bounds)
        self.recorded = RecordedPast(self.table.latents, self.bounds, *self.past, torch.device("cpu"))
        self.offsets = [-i * self.history_stride for i in reversed(range(self.t))]

    def frames(self, tolerance=0):
        sizes = self.t, self.history_stride, self.m, self.window_stride
        return FrameHistory([CAMERA], *sizes, tolerance=tolerance, past=self.past, every=self.every)

    def encode(self, windows):
        return self.values[windows[CAMERA][..., 0, 0, 0].long()].flatten(1)[:, None]

    def differences(self, live, rows):
        """What differs between a rollout and what training reads at rows (b,), for those that aren't None."""
        history, history_pad = live.latents(self)
        past, past_pad, age = live.past()
        wrong = []
        for i, row in enumerate(rows):
            if row is None:
                continue
            chosen, is_pad, expected_age = self.recorded.rows(torch.tensor([row]))
            expected, expected_pad = self.table.gather(torch.tensor([row]), self.offsets)
            seen = ~past_pad[i]
            held = torch.tensor(self.table.latents[chosen[0].numpy()]).float()
            same = (
                torch.equal(past_pad[i], is_pad[0])
                and torch.equal(age[i], expected_age[0])
                and torch.equal(past[i].flatten(1)[seen], held[seen])
                and torch.equal(history[i].flatten(1), expected[0].float())
                and torch.equal(history_pad[i], expected_pad[0])
            )
            wrong += [] if same else [(i, row)]
        return wrong

    def roll(self, live):
        """Rollouts of three environments, planned at random steps, each of which has its episode end at its own."""
        wrong = []
        for _ in range(3):
            live.clear()
            episodes = self.rng.integers(0, len(self.bounds), size=3)
            starts, ends = self.bounds[episodes].T
            # A first end may be before the recorded one; what an environment shows after its end is any frame.
            ends = starts + np.ceil((ends - starts) * self.rng.uniform(0.3, 1.0, size=3)).astype(int)
            for step in range((ends - starts).max()):
                rows = [int(s) + step if s + step < e else None for s, e in zip(starts, ends, strict=True)]
                shown = [self.rng.integers(0, self.bounds[-1, 1]) if row is None else row for row in rows]
                live.append({CAMERA: torch.tensor(shown, dtype=torch.float32)[:, None, None, None]})
                if step == 0 or self.rng.random() < 0.3:
                    wrong += self.differences(live, rows)
        return wrong


@pytest.mark.parametrize("seed", range(60))
def test_whatever_the_options_a_rollout_reads_what_training_reads(tmp_path, seed):
    study = Study(seed, tmp_path)
    live = study.frames()
    assert not study.roll(live)
    assert live.n_encoded <= study.lengths.max()  # each frame once


def test_it_is_seen_when_a_reset_leaves_one_frame_behind(tmp_path):
    def leaky_clear(live):
        last = next(reversed(live._frames.values()), None)
        FrameHistory.clear(live)
        if last is not None:
            live.append(last)

    found = []
    for seed in range(20):
        study = Study(seed, tmp_path)
        live = study.frames()
        live.clear = lambda live=live: leaky_clear(live)
        found.append(bool(study.roll(live)))
    assert all(found)


@pytest.mark.parametrize("seed", range(20))
def test_who_shows_only_what_a_plan_needs_gives_it_the_same_memory(tmp_path, seed):
    """Frames at times of a robot's clock that jitters; a policy server shows what `needed` names."""
    study = Study(seed, tmp_path)
    start, end = study.bounds[study.lengths.argmax()]
    steps = np.unique(np.round(1000 + np.arange(end - start) * 1.1 + study.rng.normal(0, 0.6, end - start)).astype(int))
    everything, chosen = study.frames(tolerance=2), study.frames(tolerance=2)
    seen, shown = [], set()
    for i, step in enumerate(steps.tolist()):
        frame = {CAMERA: torch.full((1, 1, 1, 1), float(start + i))}
        everything.append(frame, step)
        if i and study.rng.random() < 0.2 or i == len(steps) - 1:
            for place in chosen.needed([at for at, _ in seen], step):
                if seen[place][0] not in shown:
                    chosen.append(seen[place][1], seen[place][0])
                    shown.add(seen[place][0])
            chosen.append(frame, step)
            shown.add(step)
            for mine, its in zip(chosen.latents(study), everything.latents(study), strict=True):
                assert torch.equal(mine, its)
            for mine, its in zip(chosen.past(), everything.past(), strict=True):
                assert torch.equal(mine, its)
        seen.append((step, frame))


@pytest.mark.parametrize("select", ["stride", "change", "both"])
def test_a_rollout_of_any_length_holds_as_much(table, select):
    class Encoder:
        def encode(self, windows):
            return windows[CAMERA][:, -1, 0, 0, :1, None].sin()

    live = FrameHistory([CAMERA], 1, 1, 1, 1, past=(4, 1, select))
    held = []
    for step in range(400):
        live.append({CAMERA: torch.tensor([step * step, 7.0 * step])[:, None, None, None]})
        if step % 10 == 0:
            live.latents(Encoder())
            held.append(len(live._latents))
    assert max(held[20:]) <= max(held[:20])


def test_a_frame_that_is_shown_again_leaves_the_past_as_it_was(table):
    class Encoder:
        def encode(self, windows):
            return windows[CAMERA][:, None, :, 0, 0, 0]  # the frames that a latent is made of

    live = FrameHistory([CAMERA], 1, 1, 2, 3, tolerance=2, past=(4, 4, "stride"))
    pasts = []
    for step in [*range(10), 4, 10]:
        live.append({CAMERA: torch.full((1, 1, 1, 1), float(step))}, step)
        if step >= 8:
            live.latents(Encoder())
            pasts.append(live.past()[0][0, :, 0].tolist())
    assert pasts[1][-3:] == pasts[-1][-3:] == [[0, 0], [1, 4], [5, 8]]
