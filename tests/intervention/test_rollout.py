"""Open-loop rollouts of a Prophet."""

import pytest
import torch

from lerobot_policy_world_modality.intervention.rollout import needs_interpolation, open_loop
from lerobot_policy_world_modality.policies.shared.world_batch import WorldBatch
from world_modality_core.configs import ProphetConfig
from world_modality_core.prophet.network import Futures, Prophet


class LineProphet(torch.nn.Module):
    """Goes on in a straight line from the last two latents of a history, in units of frames."""

    def __init__(self, n_history: int, n_future: int, history_stride: int, future_stride: int):
        super().__init__()
        self.n_history, self.n_future = n_history, n_future
        self.history_stride, self.future_stride = history_stride, future_stride
        self.seen: list[torch.Tensor] = []

    def forward(self, history, is_pad, state, language):
        self.seen.append(is_pad)
        speed = (history[:, -1] - history[:, -2]) / self.history_stride
        steps = [history[:, -1] + self.future_stride * i * speed for i in range(1, self.n_future + 1)]
        latents = torch.stack(steps, dim=1)[:, None]
        return Futures(latents, latents.new_zeros(len(latents), 1))


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 4), (3, 2), (2, 3), (4, 2)])
def test_a_straight_line_goes_on_straight_whatever_the_strides(strides):
    history_stride, future_stride = strides
    start, speed = torch.randn(3, 1, 2, 5), torch.randn(3, 1, 2, 5)

    def line(offsets):
        at = torch.tensor(offsets, dtype=torch.float32)[None, :, None, None]
        return start + at * speed, torch.zeros(3, len(offsets), dtype=torch.bool)

    asked = []

    def recorded(offsets):
        asked.extend(offsets)
        return line(offsets)

    prophet = LineProphet(3, 2, history_stride, future_stride)
    history, is_pad = line([-2 * history_stride, -history_stride, 0])
    predicted = open_loop(
        prophet, WorldBatch(3, history=history, history_is_pad=is_pad), recorded, *strides, n_rounds=4
    )
    truth, _ = line([future_stride * i for i in range(1, 9)])
    torch.testing.assert_close(predicted, truth, rtol=1e-4, atol=1e-4)
    assert all(at <= 0 for at in asked)  # the future is not looked up
    assert len(prophet.seen) == 4


def test_padding_of_the_recorded_part_of_a_history_is_kept():
    prophet = LineProphet(4, 1, 1, 1)
    history = torch.zeros(2, 4, 1, 3)
    is_pad = torch.tensor([[True, True, True, False], [False] * 4])

    def recorded(offsets):
        assert offsets == [-2, -1, 0] or offsets == [-1, 0]
        return torch.zeros(2, len(offsets), 1, 3), torch.tensor([[at < 0 for at in offsets], [False] * len(offsets)])

    open_loop(prophet, WorldBatch(2, history=history, history_is_pad=is_pad), recorded, 1, 1, n_rounds=3)
    assert prophet.seen[1].tolist() == [[True, True, False, False], [False] * 4]
    assert prophet.seen[2].tolist() == [[True, False, False, False], [False] * 4]


def test_its_first_steps_are_the_one_shot_prediction():
    torch.manual_seed(0)
    config = ProphetConfig(d_model=16, n_layers=1, n_heads=2, residual=False, n_hypotheses=3, use_state=True)
    prophet = Prophet(2, 6, 3, 4, config, state_dim=3).eval()
    world_batch = WorldBatch(
        5, state=torch.randn(5, 3), history=torch.randn(5, 3, 2, 6), history_is_pad=torch.zeros(5, 3).bool()
    )
    with torch.no_grad():
        once = prophet(world_batch.history, world_batch.history_is_pad, world_batch.state).best()
    recorded = lambda offsets: (world_batch.history[:, -len(offsets) :], world_batch.history_is_pad[:, -len(offsets) :])  # noqa: E731
    predicted = open_loop(prophet, world_batch, recorded, 1, 1, n_rounds=3)
    assert predicted.shape == (5, 12, 2, 6)
    assert torch.equal(predicted[:, :4], once)
    # The second round starts from what the first one said: its last three steps.
    with torch.no_grad():
        again = prophet(once[:, -3:], world_batch.history_is_pad, world_batch.state).best()
    torch.testing.assert_close(predicted[:, 4:8], again)
    assert open_loop(prophet, world_batch, recorded, 1, 1, n_rounds=1).shape == (5, 4, 2, 6)


def test_when_histories_have_to_be_interpolated():
    assert needs_interpolation(3, 1, 4) and needs_interpolation(2, 3, 2)
    assert not needs_interpolation(3, 4, 2) and not needs_interpolation(1, 1, 4)
