"""The gather of windows from the memory map, against a plain loop."""

from __future__ import annotations

import copy
import multiprocessing
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from world_modality_core.latents.latent_table import LATENTS, TOKENS, ContentHash, LatentTable, build_table

WIDTH = 3


def make_table(folder, lengths, with_tokens=True) -> LatentTable:
    """Frame i has latents (i, i + 0.25, i + 0.5) and tokens (10 * i, 10 * i + 1)."""
    n = sum(lengths)
    np.save(folder / "latents.npy", (np.arange(n)[:, None] + [0, 0.25, 0.5]).astype(np.float16))
    np.save(folder / "tokens.npy", (10 * np.arange(n)[:, None] + [0, 1]).astype(np.int32))
    ends = np.cumsum(lengths)
    bounds = np.stack([ends - lengths, ends], axis=1)
    return LatentTable(folder / "latents.npy", folder / "tokens.npy" if with_tokens else None, bounds)


def naive_rows(bounds, index, offsets):
    """The rows and padding that a loop over samples and offsets would give."""
    rows, is_pad = [], []
    for i in index:
        first, end = next((a, b) for a, b in bounds if a <= i < b)
        rows.append([min(max(i + o, first), end - 1) for o in offsets])
        is_pad.append([not first <= i + o < end for o in offsets])
    return rows, is_pad


@settings(deadline=None, max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    picks=st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=8),
    offsets=st.lists(st.integers(-12, 12), min_size=1, max_size=6),
)
def test_gather_equals_a_loop(tmp_path_factory, lengths, picks, offsets):
    table = make_table(tmp_path_factory.mktemp("table"), lengths)
    index = [int(x * table.n_frames) for x in picks]
    rows, is_pad = naive_rows(table.bounds, index, offsets)
    latents, pad = table.gather(torch.tensor(index), offsets)
    tokens, token_pad = table.gather_tokens(np.array(index), offsets)
    assert latents.dtype == torch.float16 and tokens.dtype == torch.int64
    assert torch.equal(latents[..., 0], torch.tensor(rows, dtype=torch.float16))
    assert torch.equal(latents[..., 2] - latents[..., 0], torch.full(latents.shape[:2], 0.5, dtype=torch.float16))
    assert torch.equal(tokens, 10 * torch.tensor(rows)[..., None] + torch.tensor([0, 1]))
    assert pad.tolist() == token_pad.tolist() == is_pad


def test_windows_do_not_cross_an_episode_boundary(tmp_path):
    table = make_table(tmp_path, [4, 5])
    latents, is_pad = table.gather(torch.tensor([4, 3]), [-2, -1, 0, 1, 2])
    assert latents[0, :, 0].tolist() == [4, 4, 4, 5, 6]  # the first frame of episode 1: no history
    assert is_pad[0].tolist() == [True, True, False, False, False]
    assert latents[1, :, 0].tolist() == [1, 2, 3, 3, 3]  # the last frame of episode 0: no future
    assert is_pad[1].tolist() == [False, False, False, True, True]
    assert table.episode_index.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("index", [-1, 9])
def test_an_index_out_of_range_is_named(tmp_path, index):
    table = make_table(tmp_path, [4, 5])
    with pytest.raises(IndexError, match=f"index {index} is not a frame"):
        table.gather(torch.tensor([0, index]), [0])


def test_tokens_of_a_companion_without_tokens_are_an_error(tmp_path):
    with pytest.raises(ValueError, match="tokens.n_codes"):
        make_table(tmp_path, [4, 5], with_tokens=False).gather_tokens(torch.tensor([0]), [0])


def test_gather_gives_new_memory(tmp_path):
    table = make_table(tmp_path, [4, 5])
    table.gather(torch.tensor([2]), [0])[0].zero_()
    assert table.gather(torch.tensor([2]), [0])[0][0, 0].tolist() == [2, 2.25, 2.5]


def test_copies_map_the_file_again(tmp_path):
    table = make_table(tmp_path, [4, 5])
    for other in (copy.deepcopy(table), pickle.loads(pickle.dumps(table))):
        assert isinstance(other.latents, np.memmap) and isinstance(other.tokens, np.memmap)
        assert torch.equal(other.gather([7], [-1, 0])[0], table.gather([7], [-1, 0])[0])


# The flat cache.


def write_parquet(folder, lengths, index_shift=0):
    """The data file of a companion of such episodes, and its content hash."""
    table = make_table(folder, lengths)
    digest = ContentHash()
    digest.update(np.array(table.latents), np.array(table.tokens))
    path = folder / "data/chunk-000/file-000.parquet"
    path.parent.mkdir(parents=True)
    columns = {
        "index": np.arange(table.n_frames) + index_shift,
        LATENTS: pa.FixedSizeListArray.from_arrays(pa.array(np.array(table.latents).reshape(-1)), WIDTH),
        TOKENS: pa.FixedSizeListArray.from_arrays(pa.array(np.array(table.tokens).reshape(-1)), 2),
    }
    pq.write_table(pa.table(columns), path, row_group_size=4)
    return path, table, digest.hexdigest()


def open_cache(folder, path, bounds, content):
    return build_table([path], bounds, folder / "cache", n_values=WIDTH, n_tokens=2, content_sha256=content)


def test_cache_holds_what_the_parquet_holds_and_is_made_once(tmp_path):
    path, expected, content = write_parquet(tmp_path, [4, 5, 2])
    table = open_cache(tmp_path, path, expected.bounds, content)
    assert np.array_equal(table.latents, expected.latents) and np.array_equal(table.tokens, expected.tokens)
    path.unlink()  # not read again
    assert np.array_equal(open_cache(tmp_path, path, expected.bounds, content).latents, expected.latents)


def test_leftovers_of_a_killed_build_do_no_harm(tmp_path):
    path, expected, content = write_parquet(tmp_path, [4, 5, 2])
    (tmp_path / "cache").mkdir()
    for kind in ("latents", "tokens"):
        (tmp_path / f"cache/{kind}-{content[:16]}.part").write_bytes(b"half of a file")
    assert np.array_equal(open_cache(tmp_path, path, expected.bounds, content).tokens, expected.tokens)


def test_damaged_data_is_refused_and_leaves_no_cache(tmp_path):
    path, expected, content = write_parquet(tmp_path, [4, 5, 2])
    with pytest.raises(ValueError, match="damaged"):
        open_cache(tmp_path, path, expected.bounds, "0" * 64)
    assert not list((tmp_path / "cache").glob("*.npy"))


def test_shuffled_data_is_refused(tmp_path):
    path, expected, content = write_parquet(tmp_path, [4, 5, 2], index_shift=1)
    with pytest.raises(ValueError, match="order of `index`"):
        open_cache(tmp_path, path, expected.bounds, content)


def _open_and_sum(args):
    folder, path, bounds, content = args
    return float(open_cache(folder, path, bounds, content).latents.astype(np.float64).sum())


def test_processes_that_open_at_once_agree(tmp_path):
    path, expected, content = write_parquet(tmp_path, [40, 50, 20])
    with multiprocessing.get_context("fork").Pool(4) as pool:
        sums = pool.map(_open_and_sum, [(tmp_path, path, expected.bounds, content)] * 8, chunksize=1)
    assert set(sums) == {float(expected.latents.astype(np.float64).sum())}
    assert len(list((tmp_path / "cache").glob("*.npy"))) == 2 and not list((tmp_path / "cache").glob("*.part"))
