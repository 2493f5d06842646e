"""Heads: rectified flow integrates what it is told, one time per sample; proprioception and alignment start at 0."""

import torch

from lerobot_policy_world_modality.policies.qwen_world_fplus.configuration_qwen_world_fplus import ActionHeadConfig
from lerobot_policy_world_modality.policies.qwen_world_fplus.heads import FlowHead, FutureAlignment, Proprioception

CONFIG = ActionHeadConfig(kind="flow", d_model=32, n_layers=1, n_heads=4, n_flow_steps=7)


def test_straight_paths_are_integrated_exactly(monkeypatch):
    head, goal, noise = FlowHead(16, 3, 5, CONFIG), torch.randn(2, 5, 3), torch.randn(2, 5, 3)
    times = []

    def velocity(x, t, states):
        times.append(t.tolist())
        return (x - goal) / t[:, None, None]  # noise - actions, on the straight path

    monkeypatch.setattr(head, "velocity", velocity)
    torch.testing.assert_close(head.sample(torch.zeros(2, 5, 16), noise), goal)
    torch.testing.assert_close(torch.tensor(times)[:, 0], 1 - torch.arange(7) / 7)


def test_training_sees_one_time_per_sample_on_the_path(monkeypatch):
    head, actions, seen = FlowHead(16, 3, 5, CONFIG), torch.randn(4, 5, 3), {}

    def velocity(x, t, states):
        seen.update(x=x, t=t)
        return torch.zeros_like(x)

    monkeypatch.setattr(head, "velocity", velocity)
    error = head.error(torch.zeros(4, 5, 16), actions)
    assert seen["t"].shape == (4,) and len(set(seen["t"].tolist())) == 4
    t = seen["t"][:, None, None]
    noise = (seen["x"] - (1 - t) * actions) / t
    torch.testing.assert_close(error, (noise - actions).square(), rtol=1e-3, atol=1e-3)


def test_the_flow_head_reads_time_state_and_place():
    head = FlowHead(16, 3, 5, CONFIG).eval()
    x, t, states = torch.randn(1, 5, 3).expand(2, -1, -1), torch.tensor([0.2, 0.9]), torch.randn(2, 5, 16)
    same = states[:1].expand(2, -1, -1)
    velocity = head.velocity(x, t, same)
    assert (velocity[0] - velocity[1]).abs().max() > 1e-4
    velocity = head.velocity(x, t[:1].expand(2), states)
    assert (velocity[0] - velocity[1]).abs().max() > 1e-4
    flat = head.velocity(torch.zeros(1, 5, 3), t[:1], torch.zeros(1, 5, 16))[0]
    assert (flat[0] - flat[1]).abs().max() > 1e-4


def test_proprioception_starts_shut():
    part, states, robot = Proprioception(16, 4), torch.randn(2, 5, 16), torch.randn(2, 4)
    assert torch.equal(part(states, robot), states)
    torch.nn.init.constant_(part.gate.value, 0.5)
    assert not torch.equal(part(states, robot), states)


def test_alignment_starts_as_a_copy_of_the_present():
    part, current = FutureAlignment(16, 8, 3, 2, 6), torch.randn(2, 2, 6)
    predicted = part(torch.randn(2, 5, 16), current)
    assert torch.equal(predicted, current[:, None].expand(-1, 3, -1, -1))
