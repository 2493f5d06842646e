"""Windows, masks, alignment and configs against plain loops, for inputs that nobody would think of."""

import json
import math
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coc_tools.language_rows import LabelLookup
from lerobot_policy_world_modality.policies.world.configuration_world_modality import WorldFConfig
from world_modality_core.configs import MemoryConfig, ProphetConfig
from world_modality_core.encoders.spec import EncoderSpec, parse_pooling
from world_modality_core.encoders.windows import causal_windows
from world_modality_core.io.files import as_dataclass, parse_json
from world_modality_core.latents.gpu_latent_table import GpuLatentTable
from world_modality_core.prophet.data import CompanionFrames
from world_modality_core.prophet.episode_split import parse_episodes
from world_modality_core.prophet.losses import masked_mean
from world_modality_core.studies.report.records import read_metrics

few = settings(deadline=None, max_examples=40)
lengths_of = st.lists(st.integers(1, 7), min_size=1, max_size=5)
offsets_of = st.lists(st.integers(-9, 9), min_size=1, max_size=5)
picks_of = st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=6)


class Table:
    """Frame i of companion c has the latent (i, c)."""

    def __init__(self, lengths, number=0):
        ends = np.cumsum(lengths)
        self.bounds = np.stack([ends - lengths, ends], axis=1)
        n = int(ends[-1])
        self.tokens = None
        self.latents = np.stack([np.arange(n), np.full(n, number)], axis=1).astype(np.float16)

    def window(self, i, offsets):
        """By a loop: rows clamped to the episode of frame i, and where they were."""
        first, end = next((a, b) for a, b in self.bounds if a <= i < b)
        return [min(max(i + o, first), end - 1) for o in offsets], [not first <= i + o < end for o in offsets]


@few
@given(lengths=lengths_of, picks=picks_of, offsets=offsets_of)
def test_windows_on_the_device_stay_in_their_episode(lengths, picks, offsets):
    table = Table(lengths)
    index = [int(x * sum(lengths)) for x in picks]
    latents, is_pad = GpuLatentTable(table, torch.device("cpu")).gather(torch.tensor(index), offsets)
    expected = [table.window(i, offsets) for i in index]
    assert latents[..., 0].int().tolist() == [rows for rows, _ in expected]
    assert is_pad.tolist() == [pad for _, pad in expected]


@few
@given(lengths=st.lists(lengths_of, min_size=1, max_size=3), picks=picks_of, offsets=offsets_of)
def test_windows_over_several_companions_stay_in_theirs(lengths, picks, offsets):
    tables = [Table(each, number) for number, each in enumerate(lengths)]
    frames = CompanionFrames.__new__(CompanionFrames)  # without files: only what the windows are made of
    frames.companions = [SimpleNamespace(bounds=table.bounds) for table in tables]
    frames._starts = np.cumsum([0, *(len(table.latents) for table in tables)])
    frames._gpu_tables = [GpuLatentTable(table, torch.device("cpu")) for table in tables]
    index = [int(x * frames.n_frames) for x in picks]
    latents, is_pad = frames.latents(torch.tensor(index), offsets, torch.device("cpu"))
    for row, i in enumerate(index):
        owner = int(np.searchsorted(frames._starts[1:], i, side="right"))
        rows, pad = tables[owner].window(i - int(frames._starts[owner]), offsets)
        assert latents[row, :, 0].int().tolist() == rows and is_pad[row].tolist() == pad
        assert set(latents[row, :, 1].int().tolist()) == {owner}


@few
@given(n=st.integers(1, 12), m=st.integers(1, 5), stride=st.integers(1, 4))
def test_causal_windows_end_at_their_frame_and_repeat_the_first(n, m, stride):
    frames = torch.arange(n).view(n, 1, 1, 1)
    windows = causal_windows(frames, m, stride)[:, :, 0, 0, 0]
    assert windows.tolist() == [[max(0, t - (m - 1 - j) * stride) for j in range(m)] for t in range(n)]


@few
@given(
    values=st.lists(st.lists(st.floats(-1e3, 1e3), min_size=3, max_size=3), min_size=1, max_size=4),
    bits=st.integers(0, 4095),
    junk=st.sampled_from([0.0, 1e30, float("inf"), float("nan")]),
)
def test_padding_never_reaches_a_mean(values, bits, junk):
    values = torch.tensor(values, dtype=torch.float64)
    is_pad = torch.tensor([bits >> i & 1 for i in range(values.numel())], dtype=torch.bool).view_as(values)
    dirty = values.masked_fill(is_pad, junk)
    for row, got in enumerate(masked_mean(dirty, is_pad, dim=-1).tolist()):
        kept = [v for v, pad in zip(values[row].tolist(), is_pad[row].tolist(), strict=True) if not pad]
        assert math.isclose(got, sum(kept) / max(1, len(kept)), abs_tol=1e-9)
    kept = values[~is_pad]
    assert math.isclose(masked_mean(dirty, is_pad).item(), kept.sum().item() / max(1, len(kept)), abs_tol=1e-9)


@few
@given(changes=st.dictionaries(st.integers(0, 30), st.sampled_from([None, "a", "b"]), max_size=8))
def test_a_label_is_active_until_the_next_change(changes):
    lookup = LabelLookup(sorted(changes.items()))
    for i, text in enumerate(lookup(torch.arange(35))):
        before = [frame for frame in changes if frame <= i]
        assert text == (changes[max(before)] if before else None)


@few
@given(episodes=st.sets(st.integers(0, 40), min_size=1))
def test_lists_of_episodes_are_read_as_they_are_written(episodes):
    ordered, ranges = sorted(episodes), []
    for e in ordered:
        if ranges and ranges[-1][1] == e - 1:
            ranges[-1][1] = e
        else:
            ranges.append([e, e])
    text = ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)
    assert parse_episodes(f"{text};", [41, 3], "episodes") == [episodes, None]


poolings = st.lists(
    st.sampled_from(["cls", "mean", "grid:2x3", "s2d:4x4", "mean@-1", "grid:1x1@3"]), min_size=1, max_size=3
).map("+".join)
specs = st.builds(
    EncoderSpec,
    family=st.text(max_size=8), model_id=st.text(max_size=8), revision=st.none() | st.text(max_size=8),
    cameras=st.lists(st.text(max_size=6), unique=True, max_size=3), height_px=st.integers(0, 512), pooling=poolings,
    width_px=st.integers(0, 512), layer=st.integers(-5, 5), n_frames=st.integers(1, 4), pca_dim=st.integers(0, 64),
    raw_dims=st.lists(st.integers(1, 9), max_size=3), dtype=st.sampled_from(["float32", "bfloat16"]),
)  # fmt: skip


@few
@given(spec=specs, other=specs)
def test_an_encoder_spec_survives_json_and_its_id_tells_specs_apart(spec, other):
    back = as_dataclass(EncoderSpec, parse_json(json.dumps(asdict(spec))), "spec.json")
    assert back == spec and back.spec_id == spec.spec_id and not spec.differences(back)
    assert (spec == other) == (spec.spec_id == other.spec_id) == (not spec.differences(other))
    assert sum(part.n_tokens for part in parse_pooling(spec.pooling)) >= len(spec.parts)


@few
@given(
    d_model=st.sampled_from([8, 16, 64]), n_layers=st.integers(1, 4), use_state=st.booleans(),
    dropout=st.floats(0, 0.9), k=st.integers(1, 9),
)  # fmt: skip
def test_a_policy_s_config_survives_its_file(tmp_path_factory, d_model, n_layers, use_state, dropout, k):
    folder = tmp_path_factory.mktemp("config")
    prophet = ProphetConfig(d_model=d_model, n_layers=n_layers, use_state=use_state)
    config = WorldFConfig(prophet=prophet, memory=MemoryConfig(), n_future_steps=k, dropout=dropout, device="cpu")
    config._save_pretrained(folder)
    back = WorldFConfig.from_pretrained(folder)
    assert asdict(back) == asdict(config)


@few
@given(
    steps=st.lists(st.integers(0, 20), max_size=12), cut=st.integers(0, 40),
    junk=st.sampled_from([b"", b"nul\n", b"[1]\n", b'{"step": "x"}\n', b"\xff\xfe\n"]),
)  # fmt: skip
def test_the_last_line_of_a_step_counts_and_torn_ones_do_not(tmp_path_factory, steps, cut, junk):
    path = tmp_path_factory.mktemp("metrics") / "m.jsonl"
    lines = [json.dumps({"step": step, "loss": i}).encode() + b"\n" for i, step in enumerate(steps)]
    path.write_bytes(b"".join(lines[:1]) + junk + b"".join(lines[1:]) + b'{"step": 99, "loss": 1'[:cut])
    assert read_metrics(path) == [
        {"step": step, "loss": max(i for i, s in enumerate(steps) if s == step)} for step in sorted(set(steps))
    ]
