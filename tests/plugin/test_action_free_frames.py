"""world_A co-trained on the robot's future states of episodes whose actions are never read."""

import pytest
import torch
from lerobot.utils.constants import ACTION, OBS_STATE

from tests.plugin.helpers import batch_of, build
from world_modality_core.io.errors import ConfigError

OPTIONS = {"lambda_states": 1.0, "future_stride": 4}
LABELLED = [3, 9]  # of the first episode, frames 0 to 11; the others are 12..28, 29..42, 43..62


@pytest.fixture(scope="module")
def trained(tiny_companion):
    """A policy that learnt episode 2's states beside actions of episode 0, and how its losses went."""
    policy, dataset, (preprocessor, _) = build(tiny_companion, "world_A", action_free_episodes=[2], **OPTIONS)
    batch = batch_of(dataset, preprocessor, LABELLED)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=3e-3)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss, values = policy(batch)
        loss.backward()
        optimizer.step()
        policy.update()
        losses.append({name: float(value) for name, value in values.items()} | {"loss": float(loss)})
    return policy, dataset, batch, losses


def test_drawn_frames_are_what_was_recorded(trained):
    policy, dataset, *_ = trained
    seen, moved, is_pad = policy.action_free.draw(policy.latent_reader, 7, policy.device)
    stats = dataset.meta.stats[OBS_STATE]
    episode = [dataset[i] for i in range(29, 43)]
    states = (torch.stack([item[OBS_STATE] for item in episode]) - torch.tensor(stats["mean"])) / stats["std"]
    rows = (seen.state[:, None].cpu() - states).abs().sum(-1).argmin(1)
    assert rows.unique().numel() == 14  # all of that episode, and no other
    torch.testing.assert_close(seen.state.cpu(), states[rows].float(), rtol=1e-4, atol=1e-4)
    for k, offset in enumerate((4, 8)):
        inside = rows + offset < 14
        assert torch.equal(~inside, is_pad[:, k].cpu())
        expected = (states[(rows + offset).clamp(max=13)] - states[rows])[inside].float()
        torch.testing.assert_close(moved[:, k].cpu()[inside], expected, rtol=1e-4, atol=1e-4)
    table = policy.latent_reader.companion.table.gather(29 + rows, [0])[0][:, 0]
    torch.testing.assert_close(
        seen.current.cpu(), policy.space.standardise_rows(table[:, None].to(policy.device))[:, 0].cpu()
    )
    again = policy.action_free.draw(policy.latent_reader, 7, policy.device)
    assert torch.equal(again[1], moved) and not torch.equal(
        policy.action_free.draw(policy.latent_reader, 8, policy.device)[1], moved
    )


def test_the_trunk_learns_the_states_and_the_actions(trained):
    policy, _, batch, losses = trained
    assert losses[-1]["loss_world"] < 0.5 * losses[0]["loss_world"]
    assert losses[-1]["loss_action"] < 0.5 * losses[0]["loss_action"]
    assert losses[0]["loss"] == pytest.approx(losses[0]["loss_action"] + losses[0]["loss_world"], rel=1e-5)
    policy.zero_grad()
    batch = {**batch, ACTION: policy.plan_recorded(batch)}  # nothing left to learn of the actions
    policy.train()(batch)[0].backward()
    assert policy.trunk.latent.weight.grad.abs().max() > 0  # the states alone reach the trunk


def test_it_starts_as_the_plain_policy(tiny_companion):
    plain, dataset, (preprocessor, _) = build(tiny_companion, "world_A")
    policy, *_ = build(tiny_companion, "world_A", **OPTIONS)
    batch = batch_of(dataset, preprocessor, LABELLED)
    assert torch.equal(plain.plan_recorded(batch), policy.plan_recorded(batch))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"action_free_episodes": [1]}, "action_free_episodes without lambda_states"),
        ({"lambda_states": 1.0, "use_state": False}, "--policy.use_state=true"),
        ({"lambda_states": 1.0, "action_free_episodes": [9]}, "action_free_episodes: 9 is no episode"),
    ],
)
def test_what_can_t_be_learnt_is_refused(tiny_companion, options, said):
    with pytest.raises(ConfigError, match=said):
        build(tiny_companion, "world_A", **options)
