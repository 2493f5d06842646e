"""What the code computes and the options it takes are what they were when the record was made (make.py)."""

import json

import numpy as np
import pytest

from tests.equality import make

RECORD = json.loads(make.NUMBERS.read_text())
OPTIONS = json.loads(make.OPTIONS.read_text())
VARIANTS = make.variants()
IS_EXACT = make.arithmetic() == RECORD["arithmetic"]
# Where torch's kernels round otherwise (another CPU, other versions) numbers can't be held to the last bit. AVX2 with
# MKL_CBWR=SSE4_2 against the record's AVX512: at most 8.3e-5 apart, of numbers up to 1 that ten AdamW steps came to.
RTOL, ATOL = 1e-4, 3e-4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("equality")
    with make.one_thread():
        make.make_inputs(folder)
    return folder


def moved(made, expected):
    """The first value that moved, in words; None where none did."""
    if set(made) != set(expected):
        return f"recorded are {sorted(expected)}, computed {sorted(made)}"
    # In the order of time: steps, validation, rollout.
    last = ("validation", "actions", "chunk")
    numbers = [name for name, values in expected.items() if isinstance(values, list)]
    places = [(name.startswith(last), i, name) for name in numbers for i in range(len(expected[name]))]
    for _, i, name in sorted(places):
        was, is_now = expected[name][i], made[name][i]
        if not (is_now == was if IS_EXACT else np.isclose(is_now, was, RTOL, ATOL, equal_nan=True)):
            return f"{name}[{i}]: recorded is {was!r}, computed {is_now!r}"
    for name in ("state_dict", *(["weights"] if IS_EXACT else [])):
        if made[name] != expected[name]:
            return f"{name}: recorded is {expected[name]}, computed {made[name]}"
    return None


def compute(folder, policy_type, gate, options):
    with make.one_thread():
        return make.record(folder, policy_type, gate, options)


def test_every_variant_is_recorded():
    assert set(RECORD["variants"]) == set(VARIANTS), "python tests/equality/make.py"


@pytest.mark.skipif(not IS_EXACT, reason="kernels round otherwise than where the record was made")
def test_the_companion_is_the_recorded_one(folder):
    assert make.hash_companion(folder) == RECORD["companion"]


@pytest.mark.parametrize("name", VARIANTS)
def test_nothing_moved(folder, name):
    found = moved(compute(folder, *VARIANTS[name]), RECORD["variants"][name])
    assert found is None, f"{name}, {found}"


def test_a_gate_that_is_a_hair_more_open_would_be_seen(folder):
    # The control, beside a number that the memory has no part in.
    policy_type, gate, options = VARIANTS["world_F per_head"]
    expected = RECORD["variants"]["world_F per_head"]
    made = compute(folder, policy_type, gate * 1.01, options)
    assert "[0]: recorded is" in moved(made, expected)
    assert made["chunk"] != expected["chunk"]
    assert made["copy_cosine"] == pytest.approx(expected["copy_cosine"], abs=ATOL)


def test_each_variant_s_numbers_are_its_own():
    # Two types that differ only in a head that no action sees act alike.
    alike = [("world_B", "world_C no world input")]
    chunks = {name: made["chunk"] for name, made in RECORD["variants"].items()}
    for name, chunk in chunks.items():
        others = [other for other in chunks if other != name and chunks[other] == chunk]
        assert not others or any({name, *others} == set(pair) for pair in alike), (name, others)
        assert np.isfinite(chunk).all() and len(chunk) == 2 * 4 * 4


@pytest.mark.slow
def test_every_command_takes_the_options_that_it_took():
    if make.arithmetic()["lerobot"] != RECORD["arithmetic"]["lerobot"]:
        pytest.skip("many options are LeRobot's, and this is another LeRobot")
    found = make.read_all_options()
    assert set(found) == set(OPTIONS)
    for name, options in OPTIONS.items():
        new, gone = sorted(set(found[name]) - set(options)), sorted(set(options) - set(found[name]))
        assert not new and not gone, f"{name}: new {new}, gone {gone}"
