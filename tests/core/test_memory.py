"""Every memory source does what its name says, and nothing else."""

import pytest
import torch

from world_modality_core.configs import MemoryConfig, MemorySource, PastConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.memory.sources import (
    PAST_SOURCES,
    TRAINING_SOURCES,
    MemoryInputs,
    make_memory,
    may_show,
    oracle_share,
    random_partners,
)

B, N, K, P, D = 6, 2, 3, 2, 4
SHAPE = (B, N, K, P, D)


def tagged():
    """Values that say where they come from: sample * 1000 + hypothesis * 100 + step * 10 + token."""
    b, n, k, p = (torch.arange(i) for i in SHAPE[:4])
    tags = b[:, None, None, None] * 1000 + n[:, None, None] * 100 + k[:, None] * 10 + p
    return tags[..., None].expand(SHAPE).float()


def make(source, seed=0, **given):
    generator = torch.Generator().manual_seed(seed)
    defaults = {
        "predicted": tagged(),
        "future": tagged()[:, 0] + 0.5,
        "future_is_pad": torch.zeros(B, K, dtype=torch.bool),
        "current": tagged()[:, 0, 0],
        "episode": torch.arange(B),
        "task": torch.zeros(B, dtype=torch.int64),
    }
    return make_memory(source, MemoryInputs(SHAPE, torch.device("cpu"), generator, **defaults | given))


@pytest.mark.parametrize("source", TRAINING_SOURCES)
def test_every_source_fills_the_same_shape(source):
    memory = make(source, oracle_share=0.5)
    assert memory.tokens.shape == (B, N * K * P, D)
    assert memory.is_pad is None or memory.is_pad.shape == (B, N * K * P)


def test_pred_keeps_the_order_of_hypotheses_steps_and_tokens():
    assert torch.equal(make(MemorySource.pred).tokens.view(SHAPE), tagged())


def test_oracle_is_the_true_future_and_masks_what_lies_beyond_the_episode():
    is_pad = torch.zeros(B, K, dtype=torch.bool)
    is_pad[2, 1:] = True
    memory = make(MemorySource.oracle, future_is_pad=is_pad)
    assert torch.equal(memory.tokens.view(SHAPE)[:, 0], tagged()[:, 0] + 0.5)
    assert torch.equal(memory.tokens.view(SHAPE)[:, 1], tagged()[:, 0] + 0.5)
    assert torch.equal(memory.is_pad.view(B, N, K, P), is_pad[:, None, :, None].expand(B, N, K, P))


def test_zero_random_and_copy_current():
    assert make(MemorySource.zero).tokens.abs().max() == 0
    noise = make(MemorySource.random).tokens
    torch.testing.assert_close(noise.norm(dim=-1), torch.full((B, N * K * P), D**0.5))
    assert torch.equal(noise, make(MemorySource.random).tokens)
    assert not torch.equal(noise, make(MemorySource.random, seed=1).tokens)
    copied = make(MemorySource.copy_current).tokens.view(SHAPE)
    for step in range(K):
        assert torch.equal(copied[:, 0, step], tagged()[:, 0, 0])


def test_reversed_shows_the_last_step_first():
    shown = make(MemorySource.reversed).tokens.view(SHAPE)
    for step in range(K):
        assert torch.equal(shown[:, :, step], tagged()[:, :, K - 1 - step])


@pytest.mark.parametrize("seed", range(20))
def test_shuffle_never_shows_a_memory_of_the_same_episode(seed):
    episode = torch.tensor([0, 0, 0, 1, 1, 2])
    memory = make(MemorySource.shuffle, seed=seed, episode=episode)
    partner = (memory.tokens[:, 0, 0] // 1000).long()
    assert (episode[partner] != episode).all()
    assert not memory.is_pad.any()


@pytest.mark.parametrize("seed", range(20))
def test_shuffle_within_task_stays_in_the_task_and_leaves_the_lonely_without_memory(seed):
    episode, task = torch.tensor([0, 1, 2, 3, 4, 5]), torch.tensor([0, 0, 0, 1, 1, 2])
    memory = make(MemorySource.shuffle_within_task, seed=seed, episode=episode, task=task)
    partner = (memory.tokens[:5, 0, 0] // 1000).long()
    assert (task[partner] == task[:5]).all() and (partner != torch.arange(5)).all()
    assert memory.is_pad[5].all() and not memory.is_pad[:5].any()


@pytest.mark.parametrize("seed", range(20))
def test_wrong_task_shows_another_task(seed):
    task = torch.tensor([0, 0, 0, 1, 1, 2])
    memory = make(MemorySource.wrong_task, seed=seed, task=task)
    partner = (memory.tokens[:, 0, 0] // 1000).long()
    assert (task[partner] != task).all() and not memory.is_pad.any()


def test_shuffle_draws_all_partners():
    seen = set()
    allowed = ~torch.eye(4, dtype=torch.bool)
    for seed in range(60):
        partner, alone = random_partners(allowed, torch.Generator().manual_seed(seed))
        seen |= {(i, int(j)) for i, j in enumerate(partner)}
        assert not alone.any()
    assert len(seen) == 12


def test_shuffle_of_one_sample_is_refused():
    with pytest.raises(ValueError, match="batch size of at least 2"):
        make_memory(MemorySource.shuffle, MemoryInputs((1, N, K, P, D), torch.device("cpu")))


def test_scheduled_goes_from_oracle_to_pred():
    assert oracle_share(0, 100) == 1.0 and oracle_share(50, 100) == 0.5 and oracle_share(500, 100) == 0.0
    start, end = make(MemorySource.scheduled, oracle_share=1.0), make(MemorySource.scheduled, oracle_share=0.0)
    assert torch.equal(start.tokens, make(MemorySource.oracle).tokens)
    assert torch.equal(end.tokens, make(MemorySource.pred).tokens)
    is_pad = torch.ones(B, K, dtype=torch.bool)
    half = make(MemorySource.scheduled, oracle_share=0.5, future_is_pad=is_pad)
    is_oracle = (half.tokens[:, 0, 0] % 1) == 0.5
    assert 0 < is_oracle.sum() < B
    assert torch.equal(half.is_pad.all(-1), is_oracle)  # padding counts for oracle memory only


@pytest.mark.parametrize("source", TRAINING_SOURCES)
def test_a_source_reads_what_its_entry_says_that_it_needs(source):
    """All else is left out, as it is in a rollout."""
    needs = source.traits
    is_needed = {
        "predicted": needs.runs_prophet, "future": needs.is_offline, "future_is_pad": needs.is_offline,
        "current": needs.reads_current, "episode": False, "task": needs.partner in ("same_task", "other_task"),
    }  # fmt: skip
    given = {name: None for name, is_read in is_needed.items() if not is_read}
    assert make(source, oracle_share=0.5, **given).tokens.isfinite().all()


@pytest.mark.parametrize("source", [s for s in MemorySource if s not in TRAINING_SOURCES])
def test_what_only_tests_do_to_a_memory_is_refused_as_a_source(source):
    with pytest.raises(ConfigError, match=f"memory.source='{source}': expected one of 'pred', 'oracle'"):
        MemoryConfig(source=source)
    with pytest.raises(ConfigError, match=f"memory.eval_source='{source}'"):
        MemoryConfig(eval_source=source)


def test_may_show_says_the_same_of_bools_and_tensors():
    for partner in ("any_task", "same_task", "other_task"):
        for other in (True, False):
            for same in (True, False):
                is_allowed = may_show(partner, torch.tensor(other), torch.tensor(same))
                assert bool(is_allowed) is may_show(partner, other, same)


def test_rollouts_never_ask_for_the_recorded_future():
    assert MemoryConfig(source=MemorySource.scheduled).rollout_source is MemorySource.pred
    assert MemoryConfig(source=MemorySource.zero).rollout_source is MemorySource.zero
    assert MemoryConfig(eval_source=MemorySource.shuffle).rollout_source is MemorySource.shuffle
    with pytest.raises(ConfigError, match="eval_source"):
        MemoryConfig(eval_source=MemorySource.oracle)
    with pytest.raises(ConfigError, match="gate"):
        MemoryConfig(gate="open")


# Past frames of three samples, of four places: padding first, then the frames, oldest first.
PAST = torch.tensor([[0, 0, 1, 2], [0, 0, 0, 0], [11, 12, 13, 14]]).float()[..., None, None].expand(3, 4, P, D)
PAST_IS_PAD = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]]).bool()


def changed_past(source, episode=(0, 1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    given = MemoryInputs((3, N, K, P, D), torch.device("cpu"), generator, episode=torch.tensor(episode))
    past, is_pad = source.traits.past(PAST, PAST_IS_PAD, given)
    assert past.shape == PAST.shape and (past == past[..., :1, :1]).all()
    return past[..., 0, 0], is_pad


@pytest.mark.parametrize(
    "source, expected",
    [
        ("past_zero", [[0, 0], [], [0, 0, 0, 0]]),
        ("past_reversed", [[2, 1], [], [14, 13, 12, 11]]),
        ("past_frozen", [[1, 1], [], [11, 11, 11, 11]]),
    ],
)
def test_a_changed_past_keeps_its_places(source, expected):
    past, is_pad = changed_past(MemorySource(source))
    assert torch.equal(is_pad, PAST_IS_PAD)
    assert [row[~pad].tolist() for row, pad in zip(past, is_pad, strict=True)] == expected


def test_the_past_of_another_episode():
    seen = set()
    for seed in range(20):
        past, is_pad = changed_past(MemorySource.past_shuffle, seed=seed)
        assert past[2].tolist() in (PAST[0, :, 0, 0].tolist(), PAST[1, :, 0, 0].tolist())
        assert torch.equal(is_pad, PAST_IS_PAD)  # as much of it as of its own
        seen.add(tuple(past[2].tolist()))
    assert len(seen) == 2
    assert changed_past(MemorySource.past_shuffle, episode=(0, 0, 0))[1].all()  # nobody to borrow from: nothing is read


@pytest.mark.parametrize("source", PAST_SOURCES)
def test_a_past_source_is_no_source_of_futures_and_needs_a_past(source):
    assert source not in TRAINING_SOURCES
    with pytest.raises(ConfigError, match="of which this memory has none"):
        MemoryConfig().check_content(source)
    with pytest.raises(ConfigError, match="memory.past.n_frames"):
        PastConfig(source=source)
    with pytest.raises(ConfigError, match="memory.past.source='zero'"):
        PastConfig(n_frames=2, source="zero")
    MemoryConfig(past=PastConfig(n_frames=2, source=source)).check_content(source)
