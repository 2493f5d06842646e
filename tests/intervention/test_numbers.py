"""The numbers of `wm-intervene`, each against its definition (docs/interventions.md)."""

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_policy_world_modality.intervention.examined_policy import ExaminedPolicy
from lerobot_policy_world_modality.intervention.forecasts import ForecastScores
from lerobot_policy_world_modality.intervention.frames import Frames, targets
from lerobot_policy_world_modality.intervention.memories import plans, scored_frames
from lerobot_policy_world_modality.intervention.results import (
    SHUT_GATE,
    Bootstrap,
    action_errors,
    action_spread,
    chunk_changes,
    gate_note,
    read_source,
    summarise_forecast,
)
from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint
from tests.intervention.helpers import HELD_OUT, make_checkpoint
from world_modality_core.latents.companion import open_companion
from world_modality_core.latents.latent_normaliser import LatentNormaliser
from world_modality_core.memory.sources import MemorySource
from world_modality_core.precompute.precompute_options import SourceConfig
from world_modality_core.prophet.network import Futures


@pytest.fixture(scope="module")
def table(tiny_companion):
    """Standardised latents (f, p, d) of all frames, their tokens (f, n), and each frame's first and last frame."""
    companion = open_companion(root=tiny_companion.companion_root)
    space = LatentNormaliser(companion.spec)
    space.fill(companion.mean, companion.std, companion.pca, None)
    latents = space.standardise_rows(torch.from_numpy(np.array(companion.table.latents)))
    bounds = np.repeat(companion.bounds, companion.bounds[:, 1] - companion.bounds[:, 0], axis=0)
    return latents, torch.from_numpy(np.array(companion.table.tokens)), bounds


def make_examined(tiny_companion, folder, policy_type="world_F", batch_size=16, **options):
    checkpoint = Checkpoint.open(str(make_checkpoint(folder, tiny_companion, policy_type, **options)))
    dataset = SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root))
    meta = LeRobotDatasetMetadata(dataset.repo_id, root=dataset.root)
    config = PreTrainedConfig.from_pretrained(checkpoint.folder)
    examined = ExaminedPolicy(config, checkpoint, meta)
    return examined, Frames(config, dataset, meta, HELD_OUT, 0, batch_size, 0, seed=1)


@pytest.fixture(scope="module")
def foreteller(tiny_companion, tmp_path_factory):
    """A world_F with an open gate."""
    return make_examined(tiny_companion, tmp_path_factory.mktemp("F") / "checkpoint", n_future_steps=3)


def truth_of(history, latents, bounds, k):
    """The recorded future (b, k, p, d) of histories, found by their current latent."""
    now = history[:, -1].flatten(1)
    rows = torch.cdist(now, latents.flatten(1)).argmin(1).numpy()
    steps = np.minimum(rows[:, None] + np.arange(1, k + 1), bounds[rows, 1, None] - 1)
    return latents[torch.from_numpy(steps)]


def test_oracle_is_pred_when_the_prophet_is_right(foreteller, table):
    examined, frames = foreteller
    latents, _, bounds = table

    def chunks(source):
        found = [(part, plan) for part, _, _, plan in plans(examined, frames, source, 0, 4)]
        return torch.cat([plan for _, plan in found])[np.argsort(np.concatenate([part for part, _ in found]))]

    is_whole = torch.from_numpy(frames.left >= 3)  # beyond the episode the oracle is masked
    before = (chunks(MemorySource.pred) - chunks(MemorySource.oracle)).abs()[is_whole].amax((1, 2))
    assert (before > 1e-3).all()  # the control: this Prophet doesn't

    def tell(module, args, out):
        truth = truth_of(args[0], latents, bounds, 3)[:, None]
        return Futures(truth, out.scores, out.hidden)

    handle = examined.prophet.register_forward_hook(tell)
    try:
        torch.testing.assert_close(
            chunks(MemorySource.pred)[is_whole], chunks(MemorySource.oracle)[is_whole], rtol=0, atol=1e-5
        )
        seer = ForecastScores(examined, frames, n_rounds=2)
        for part, batch in zip(frames.parts, frames.batches(), strict=True):
            seer.look(part, examined.preprocess(dict(batch)))
        found = summarise_forecast(seer.rows(), "latents", Bootstrap(100, 0))
        assert [row["skill"] for row in found] == pytest.approx([1, 1, 1], abs=1e-5)
    finally:
        handle.remove()


def test_skill_per_step_against_a_plain_loop(foreteller, table):
    examined, frames = foreteller
    latents, _, bounds = table
    forecast_scores = ForecastScores(examined, frames, n_rounds=3)
    predicted = {}
    for part, batch in zip(frames.parts, frames.batches(), strict=True):
        batch = examined.preprocess(dict(batch))
        forecast_scores.look(part, batch)
        imagined = examined.space.standardise(examined.policy.predict_latents(batch))
        predicted |= dict(zip(frames.index[part].tolist(), imagined, strict=True))

    def distance(a, b):
        a, b = a.flatten().double(), b.flatten().double()
        return float(1 - a @ b / (a.norm() * b.norm()))

    rows = forecast_scores.rows()
    found = summarise_forecast(rows, "latents", Bootstrap(200, 0))
    rolled = summarise_forecast(rows, "rollout", Bootstrap(200, 0))
    assert [row["step"] for row in found] == [1, 2, 3] and [row["step"] for row in rolled] == list(range(1, 10))
    for step in (1, 2, 3):
        inside = [i for i in predicted if i + step < bounds[i, 1]]  # the last `step` frames of an episode don't count
        error = [distance(predicted[i][step - 1], latents[i + step]) for i in inside]
        copy = [distance(latents[i], latents[i + step]) for i in inside]
        row = found[step - 1]
        assert row["frames"] == len(inside) == len(predicted) - 3 * step
        assert row["value"] == pytest.approx(np.mean(error), rel=1e-4)
        assert row["copy"] == pytest.approx(np.mean(copy), rel=1e-4)
        assert row["skill"] == pytest.approx(1 - np.sum(error) / np.sum(copy), rel=1e-4)
        assert row["skill_low"] < row["skill"] < row["skill_high"]
        assert {key: rolled[step - 1][key] for key in row} == row  # the rollout starts as the one-shot prediction


@pytest.mark.parametrize("policy_type", ["world_B", "world_C"])
def test_token_accuracy_of_heads_that_know_all_or_nothing(policy_type, tiny_companion, table, tmp_path):
    examined, frames = make_examined(tiny_companion, tmp_path / "checkpoint", policy_type)
    _, tokens, bounds = table
    n_codes = examined.config.tokens.n_codes

    def accuracy(shift):
        forecast_scores = ForecastScores(examined, frames, n_rounds=1)
        for part, batch in zip(frames.parts, frames.batches(), strict=True):
            batch = examined.preprocess(dict(batch))
            rows = batch["index"].numpy()[:, None] + np.arange(1, 3)
            rows = np.minimum(rows, bounds[batch["index"].numpy(), 1, None] - 1)
            codes = (tokens[torch.from_numpy(rows)].long() + shift) % n_codes  # (b, k, n)
            logits = torch.nn.functional.one_hot(codes, n_codes).float().flatten(2)
            handle = examined.policy.future_head.register_forward_hook(lambda *_, logits=logits: logits)
            forecast_scores.look(part, batch)
            handle.remove()
        return summarise_forecast(forecast_scores.rows(), "tokens", Bootstrap(100, 0))

    assert [row["value"] for row in accuracy(0)] == [1.0, 1.0]
    wrong = accuracy(1)
    assert [row["value"] for row in wrong] == [0.0, 0.0]
    for row in wrong:  # what the current tokens would score
        inside = [i for i in frames.index if i + row["step"] < bounds[i, 1]]
        same = [float((tokens[i] == tokens[i + row["step"]]).float().mean()) for i in inside]
        assert row["copy"] == pytest.approx(np.mean(same)) and row["frames"] == len(inside)


def test_earlier_frames_are_those_of_the_same_episode(foreteller):
    _, frames = foreteller
    for part, earlier in zip(frames.parts, frames.earlier(5), strict=True):
        back = np.minimum(5, frames.step[part])
        assert earlier["index"].tolist() == (frames.index[part] - back).tolist()
        assert earlier["episode_index"].tolist() == frames.episode[part].tolist()
    assert scored_frames(frames, MemorySource.stale, 5, 1).tolist() == (frames.step >= 5).tolist()


def test_another_frames_memory_is_what_the_prophet_predicts_there(foreteller):
    examined, frames = foreteller
    seen = []
    hook = examined.policy.memory.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    try:
        pred = {}
        for part, _, _, _ in plans(examined, frames, MemorySource.pred, 0, 5):
            pred |= dict(zip(frames.index[part].tolist(), seen.pop(), strict=True))
        for part, _, _, _ in plans(examined, frames, MemorySource.stale, 0, 5):
            memory = seen.pop()
            for place, index in enumerate(frames.index[part].tolist()):
                at = index - min(5, int(frames.step[part][place]))
                torch.testing.assert_close(memory[place], pred[at], rtol=0, atol=1e-5)
    finally:
        hook.remove()
    assert len(pred) == len(frames)


def test_raw_errors_are_in_the_units_of_the_dataset(foreteller, tiny_companion):
    examined, frames = foreteller
    stats = LeRobotDatasetMetadata(tiny_companion.source_repo_id, root=tiny_companion.source_root).stats["action"]
    _, loaded, batch, plan = next(plans(examined, frames, MemorySource.pred, 0, 4))
    actions, is_pad = targets(loaded)
    expected = plan * torch.as_tensor(stats["std"]) + torch.as_tensor(stats["mean"])
    raw = action_errors(examined.postprocess(plan), actions, is_pad)
    assert raw.tolist() == pytest.approx(action_errors(expected, actions, is_pad).tolist(), rel=1e-4)
    assert not np.allclose(raw, action_errors(plan, targets(batch)[0], is_pad), rtol=0.05)


def test_errors_and_changes_by_hand():
    actions = torch.tensor([[[0.0, 0.0], [1.0, 1.0], [5.0, 5.0]]])
    plan = torch.tensor([[[1.0, 0.0], [1.0, 4.0], [float("inf"), 0.0]]])
    is_pad = torch.tensor([[False, False, True]])
    assert action_errors(plan, actions, is_pad).tolist() == [1.0]  # (1 + 0 + 0 + 3) / 4
    spread = torch.tensor([2.0, 0.0])  # the second entry never varies
    clean = torch.tensor([[[3.0, 0.0], [1.0, 9.0], [0.0, 0.0]]])
    assert chunk_changes(plan, clean, is_pad, spread).tolist() == pytest.approx([np.sqrt(0.5)])  # steps: 1 and 0
    inside = torch.tensor([[[1.0, 4.0], [3.0, 4.0], [99.0, 9.0]]])
    assert action_spread(inside, is_pad).tolist() == [1.0, 0.0]


def test_what_ratios_are_said_to_mean():
    def reading(source, low, high, own=MemorySource.pred, gate=0.2, episodes=10):
        ratio = low and (low + high) / 2
        row = {"ratio": ratio, "ratio_low": low, "ratio_high": high, "episodes": episodes}
        return read_source(source, row, own, gate)

    assert reading(MemorySource.shuffle, 1.1, 1.3, episodes=5) == "5 episodes are too few to tell: 10 are needed"
    assert reading(MemorySource.shuffle, 1.001, 1.007).startswith("a difference of less than 2%")
    assert reading(MemorySource.shuffle, 1.1, 1.3) == "relies on its memory"
    assert reading(MemorySource.shuffle, 0.98, 1.3) == "not shown that it relies on its memory"
    assert reading(MemorySource.zero, 0.8, 0.9) == "better without its own memory"
    assert reading(MemorySource.copy_current, 1.1, 1.3).startswith("relies on the predicted change")
    assert reading(MemorySource.oracle, 0.8, 0.9) == "better predictions would improve its actions"
    assert reading(MemorySource.oracle, 0.8, 1.1) == "not shown that better predictions would help"
    assert reading(MemorySource.oracle, 1.1, 1.2) == "the true future makes its actions worse"
    assert reading(MemorySource.pred, 0.8, 0.9, own=MemorySource.zero) == "the Prophet's memory would be better"
    assert "the gate is shut" in reading(MemorySource.shuffle, 1.1, 1.3, gate=SHUT_GATE / 2)
    assert "at least 2 episodes" in reading(MemorySource.shuffle, None, None)
    assert gate_note({"a": {"gate": SHUT_GATE / 2}, "b": {"gate": 0.3}})[0] == 0.3
    assert "never opened" in gate_note({"a": {"gate": SHUT_GATE / 2}})[1] and gate_note({}) == (None, None)


def test_steps_that_no_episode_reaches_are_left_out():
    rows = pd.DataFrame(
        [("rollout", 0, 1, 1.0, 2.0, 4), ("rollout", 1, 1, 2.0, 2.0, 4), ("rollout", 0, 2, 1.0, 1.0, 1)],
        columns=["kind", "episode", "step", "value", "copy", "count"],
    )
    first, second = summarise_forecast(rows, "rollout", Bootstrap(100, 0))
    assert (first["value"], first["copy"], first["skill"], first["frames"]) == (3 / 8, 4 / 8, 0.25, 8)
    assert first["skill_low"] == 0.0 and first["skill_high"] == 0.5
    assert second["skill"] == 0.0 and second["skill_low"] is None  # one episode: no interval
    assert summarise_forecast(rows, "tokens", Bootstrap(100, 0)) is None
