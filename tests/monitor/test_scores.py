"""What each score says of hand-made pasts and forecasts."""

import pytest
import torch

from world_modality_core.monitor.score_types.chunk_disagreement import ChunkDisagreement
from world_modality_core.monitor.score_types.command_error import CommandError, CommandModel
from world_modality_core.monitor.score_types.disagreement import Disagreement
from world_modality_core.monitor.score_types.elapsed_time import ElapsedTime
from world_modality_core.monitor.score_types.end_mismatch import EndMismatch
from world_modality_core.monitor.score_types.forecast_error import ForecastError
from world_modality_core.monitor.score_types.nearest_latent import LatentBank, NearestLatent
from world_modality_core.monitor.score_types.score import View
from world_modality_core.monitor.score_types.state_error import StateError
from world_modality_core.monitor.score_types.stillness import Stillness

K = 2
X, Y = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])  # (p, d) = (1, 2)


def view(tick: int = 0, latents=None, forecasts=None, plans=(), phase=(0, 0)) -> View:
    """Two episodes; latents {tick: two (p, d)}, forecasts {tick: two [m][n][k] of (p, d)}."""
    latents = {t: torch.stack(pair) for t, pair in (latents or {}).items()}
    forecasts = {t: torch.stack([_forecast(one) for one in pair]) for t, pair in (forecasts or {}).items()}
    return View(4 * tick, tick, torch.tensor([0, 0]), torch.tensor(phase), latents, forecasts, list(plans))


def _forecast(nested) -> torch.Tensor:
    return torch.stack([torch.stack([torch.stack(steps) for steps in member]) for member in nested])


def test_forecast_error_is_of_the_right_age_and_of_the_nearest_hypothesis():
    now = view(2, {2: [X, Y]}, {0: [[[[Y, X]]], [[[Y, X]]]], 1: [[[[Y, Y]]], [[[Y, Y]]]]})
    assert ForecastError(K)(now).tolist() == [[1.0, 0.0], [0.0, 1.0]]
    two = view(2, {2: [X, X]}, {1: [[[[Y, Y], [X, X]]]] * 2})  # one Prophet, two hypotheses
    assert ForecastError(K)(two)[0, 0] == 0 and ForecastError(K)(two)[0, 1].isnan()
    ensemble = view(2, {2: [X, X]}, {1: [[[[Y, Y]], [[X, X]]]] * 2})  # two Prophets
    assert ForecastError(K)(ensemble)[0, 0] == 0.5


def test_end_mismatch_tells_a_missing_change_from_one_that_nobody_foresaw():
    big_x, big_y = 10 * X, 10 * Y
    still, moves = [[[big_x, big_x]]], [[[big_x, big_y]]]
    as_foreseen = view(2, {0: [big_x, big_x], 2: [big_x, big_y]}, {0: [still, moves]})
    assert EndMismatch(K)(as_foreseen).flatten().tolist() == [0, 0]
    otherwise = view(2, {0: [big_x, big_x], 2: [big_y, big_x]}, {0: [still, moves]})
    assert EndMismatch(K)(otherwise).flatten().tolist() == pytest.approx([1, 1], abs=0.01)
    assert EndMismatch(K)(view(1, {1: [X, X]})).isnan().all()


def test_state_error_is_of_the_right_age_and_the_mean_of_prophets():
    now = view(2)
    now.states = {2: torch.tensor([[1.0, 1.0], [0.0, 0.0]])}
    one_ago = torch.tensor([[[[1.0, 1.0], [9, 9]], [[2, 2], [9, 9]]]] * 2)  # (b, m, k, s): right, and one off
    now.state_forecasts = {1: one_ago, 0: one_ago.flip(2)}
    assert StateError(K)(now).tolist() == [[0.5, 0.5], [1.5, 1.5]]
    now.state_forecasts.pop(0)
    assert StateError(K)(now)[:, 1].isnan().all()


def test_command_error_tells_commands_that_were_not_executed():
    torch.manual_seed(0)
    commands = torch.randn(400, 2, 1)
    states = torch.randn(400, 1, 2).expand(-1, 3, -1).clone()
    states[:, 2, :1] += 0.5 * commands[:, 1]  # the first dimension obeys the last command, the second stays
    states[:, 1:] += 0.01 * torch.randn(400, 2, 2)
    model = CommandModel(state_dim=2, action_dim=1)
    model.fit(states, commands)
    assert model.error(states, commands).mean() == pytest.approx(1, abs=0.2)
    now = view(2)
    now.states = {tick: states[:2, tick] for tick in range(3)}
    now.commands = {1: commands[:2, 0], 2: commands[:2, 1] + torch.tensor([[0.0], [2.0]])}  # the second wasn't heeded
    obeyed, ignored = CommandError(model)(now).flatten().tolist()
    assert obeyed < 4 and ignored > 20
    now.commands.pop(1)
    assert CommandError(model)(now).isnan().all()


def test_disagreement_is_zero_for_equal_forecasts_and_one_for_orthogonal_ones():
    same, apart = [[[X, X], [X, X]]], [[[X, X]], [[Y, Y]]]
    assert Disagreement()(view(0, forecasts={0: [same, same]})).flatten().tolist() == pytest.approx([0, 0])
    assert Disagreement()(view(0, forecasts={0: [apart, apart]})).flatten().tolist() == pytest.approx([1, 1])


def test_the_nearest_latent_is_looked_for_in_the_phase_and_anywhere():
    bank = LatentBank(n_tasks=1, n_phases=3, n_kept=4, width=2)
    bank.keep(0, 0, torch.stack([X, 3 * X]))
    bank.keep(0, 1, torch.stack([Y] * 9))  # more than fit
    now = view(0, {0: [X, X]}, phase=(0, 1))
    assert NearestLatent(bank)(now).tolist() == [[0.0, 0.0], [1.0, 0.0]]
    empty = view(0, {0: [X, X]}, phase=(2, 2))
    assert NearestLatent(bank)(empty)[0].tolist() == [float("inf"), 0.0]


def test_baselines():
    moved = view(2, {0: [X, X], 2: [X, 3 * X]})
    assert Stillness(K)(moved).flatten().tolist() == pytest.approx([0, -(2**0.5)])
    assert Stillness(K)(view(1, {1: [X, X]})).isnan().all()
    assert ElapsedTime()(view(3)).flatten().tolist() == [12, 12]


def test_chunks_are_compared_where_they_overlap():
    before = torch.arange(4.0).reshape(1, 4, 1).expand(2, -1, -1)  # actions 0, 1, 2, 3 of steps 0 to 3
    now = torch.tensor([[2.0, 3, 9, 9], [4, 5, 9, 9]])[..., None]
    assert ChunkDisagreement()(view(plans=[(0, before), (2, now)])).flatten().tolist() == [0, 2]
    assert ChunkDisagreement()(view(plans=[(0, before), (4, now)])).isnan().all()  # nothing in common
    assert ChunkDisagreement()(view(plans=[(0, before)])).isnan().all()
