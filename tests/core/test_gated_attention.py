"""Gated cross-attention: no effect at gate 0, gradients that let it open, masks, the reference formula."""

import math

import pytest
import torch

from world_modality_core.memory.gated_attention import Gate, GatedCrossAttention

B, H, D, M, D_WORLD = 3, 5, 16, 6, 7
GATES = ["scalar", "per_head", "per_token"]


def build(gate="scalar", opened=0.0):
    torch.manual_seed(0)
    layer = GatedCrossAttention(D, D_WORLD, M, n_heads=4, gate=gate)
    with torch.no_grad():
        layer.gate.value += opened
    return layer, torch.randn(B, H, D), torch.randn(B, M, D_WORLD)


@pytest.mark.parametrize("gate", GATES)
def test_closed_gate_is_the_identity_bit_for_bit(gate):
    layer, queries, memory = build(gate)
    assert torch.equal(layer(queries, memory), queries)
    opened, _, _ = build(gate, opened=0.5)
    assert not torch.allclose(opened(queries, memory), queries, atol=1e-3)


@pytest.mark.parametrize("gate", GATES)
def test_the_gate_gets_a_gradient_when_closed_and_the_rest_when_it_has_moved(gate):
    layer, queries, memory = build(gate)
    memory.requires_grad_()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(queries, memory).square().sum().backward()
    assert layer.gate.value.grad.abs().max() > 0
    assert memory.grad.abs().max() == 0  # at gate 0 nothing reaches the memory ...
    optimiser.step()
    optimiser.zero_grad()
    layer(queries, memory).square().sum().backward()
    assert memory.grad.abs().max() > 0  # ... and one step later it does
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_it_is_the_formula_of_its_docstring():
    layer, queries, memory = build(opened=0.7)
    attention = torch.nn.MultiheadAttention(D, 4, batch_first=True)
    with torch.no_grad():
        key, value = layer.to_key_value.weight.chunk(2)
        key_bias, value_bias = layer.to_key_value.bias.chunk(2)
        normed, context = layer.norm_query(queries), layer.norm_memory(memory)
        # torch's attention with our projections applied outside, so that its own are identities
        attention.in_proj_weight.copy_(torch.eye(D).repeat(3, 1))
        attention.in_proj_bias.zero_()
        attention.out_proj.weight.copy_(layer.to_out.weight)
        attention.out_proj.bias.zero_()
        keys = context @ key.T + key_bias + layer.position
        expected = attention(layer.to_query(normed), keys, context @ value.T + value_bias)[0]
        expected = queries + math.tanh(0.7) * expected
        torch.testing.assert_close(layer(queries, memory), expected)


@pytest.mark.parametrize("garbage", [1e6, float("nan"), float("inf")])
def test_padded_tokens_can_hold_anything(garbage):
    layer, queries, memory = build(opened=1.0)
    is_pad = torch.zeros(B, M, dtype=torch.bool)
    is_pad[:, 4:] = True
    expected = layer(queries, memory, is_pad)
    assert torch.equal(layer(queries, memory.masked_fill(is_pad[..., None], garbage), is_pad), expected)
    # positive control: the tokens that are not padded do matter
    changed = memory.clone()
    changed[:, 0] *= -1
    assert not torch.allclose(layer(queries, changed, is_pad), expected, atol=1e-4)


def test_a_row_without_memory_reads_nothing_and_disturbs_no_other_row():
    layer, queries, memory = build(opened=1.0)
    is_pad = torch.zeros(B, M, dtype=torch.bool)
    is_pad[1] = True
    out = layer(queries, memory, is_pad)
    assert torch.equal(out[1], queries[1])
    torch.testing.assert_close(out[[0, 2]], layer(queries[[0, 2]], memory[[0, 2]]))
    out.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_keys_and_values_projected_once_give_the_same():
    layer, queries, memory = build(opened=1.0)
    projected = layer.project(memory)
    assert torch.equal(layer(queries, keys_values=projected), layer(queries, memory))
    with pytest.raises(ValueError, match="either"):
        layer(queries)


def test_positions_tell_equal_tokens_apart():
    layer, queries, memory = build(opened=1.0)
    with torch.no_grad():
        layer.position.normal_()
    swapped = memory[:, [1, 0, 2, 3, 4, 5]]
    assert not torch.allclose(layer(queries, swapped), layer(queries, memory), atol=1e-3)


def test_attention_mass_is_a_distribution_over_memory_tokens():
    layer, queries, memory = build(opened=1.0)
    layer(queries, memory)
    torch.testing.assert_close(layer.last_attention_mass.sum(), torch.tensor(1.0))
    assert 0 < layer.last_attention_entropy <= 1
    torch.testing.assert_close(layer.last_gate, torch.tensor(math.tanh(1.0)))


@pytest.mark.parametrize("gate", GATES)
def test_gates_stay_fp32(gate):
    layer, queries, memory = build(gate)
    layer = layer.to(torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in layer.gate.parameters())
    assert layer.to_out.weight.dtype == torch.bfloat16
    out = layer(queries.bfloat16(), memory.bfloat16())
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert layer.gate.value.grad.dtype == torch.float32


def test_gate_kinds():
    queries = torch.randn(B, H, D)
    assert Gate("scalar", D, 4)(queries).shape == (1, 1, 1)
    assert Gate("per_head", D, 4)(queries).shape == (1, 1, 4)
    per_token = Gate("per_token", D, 4)
    assert per_token(queries).shape == (B, H, 1)
    with torch.no_grad():
        per_token.weight.normal_()
    assert per_token(queries).std() > 0


def test_wrong_shapes_are_refused():
    layer, queries, memory = build()
    with pytest.raises(ValueError, match="expected"):
        layer(queries, memory[..., :-1])
    with pytest.raises(ValueError, match="n_heads"):
        GatedCrossAttention(D, D_WORLD, M, n_heads=3)
