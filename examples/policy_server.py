"""LeRobot's asynchronous policy server, for this plugin's types.

    python examples/policy_server.py --host=127.0.0.1 --port=8080

What is beside LeRobot's server:

- Every type with a world is among those that it accepts, of this plugin or another: LeRobot checks a client's policy
  type against a fixed list.
- Every frame that a client sends is kept, those too that LeRobot leaves out because they resemble the last one: a
  policy with a world sees frames at fixed distances. Which frame is how old says the robot's own clock.
- A timestep that goes back is a new episode. LeRobot's server never resets a policy, and would show it frames of the
  last one.

Options and protocol are LeRobot's (`python -m lerobot.async_inference.policy_server --help`).
"""

from collections import deque

from lerobot.async_inference import policy_server
from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.helpers import TimedAction, TimedObservation, raw_observation_to_observation
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_policy_world_modality.policies.shared.host import host_of
from lerobot_policy_world_modality.policies.shared.world_options import WorldOptions


class WorldPolicyServer(policy_server.PolicyServer):
    """LeRobot's server, which shows a policy with a world the frames that its history is made of."""

    prefix = "policy_server"

    def __init__(self, config):
        self._seen: deque[TimedObservation] = deque()
        self._shown: set[float] = set()  # times of the frames that the policy was shown
        self._is_new_episode, self._world = True, None
        super().__init__(config)

    def SendPolicyInstructions(self, request, context):  # noqa: N802
        """Load the policy, and what it looks at the world through."""
        done = super().SendPolicyInstructions(request, context)
        self._world = host_of(self.policy)
        if self._world is not None:
            self._world.config.fps = self._world.config.fps or self.config.fps  # checkpoints from before it was noted
            self.policy.reset()  # loads the encoders
        return done

    def _reset_server(self) -> None:
        super()._reset_server()
        self._begin_episode()

    def _begin_episode(self) -> None:
        self._seen.clear()
        self._shown.clear()
        self._is_new_episode = True
        self.last_processed_obs = None  # by which LeRobot finds a frame to be like the last one
        with self._predicted_timesteps_lock:
            self._predicted_timesteps = set()

    def _enqueue_observation(self, obs: TimedObservation) -> bool:
        if self._seen and obs.get_timestep() < self._seen[-1].get_timestep():
            self._begin_episode()
        self._seen.append(obs)
        return super()._enqueue_observation(obs)

    def _predict_action_chunk(self, observation_t: TimedObservation) -> list[TimedAction]:
        if self._world is not None:
            self._show_history(observation_t)
        return super()._predict_action_chunk(observation_t)

    def _show_history(self, now: TimedObservation) -> None:
        """Let the policy see the frames that its history is made of, and tell it the time."""
        if self._is_new_episode:
            self.policy.reset()
            self._is_new_episode = False
        reader = self._world.latent_reader
        seen = [each for each in list(self._seen) if each.get_timestamp() < now.get_timestamp()]
        chosen = reader.frames_needed([each.get_timestamp() for each in seen], now.get_timestamp())
        for each in (seen[i] for i in chosen):
            reader.now_s = each.get_timestamp()
            if reader.now_s in self._shown:
                continue
            raw = raw_observation_to_observation(
                each.get_observation(), self.lerobot_features, self.policy_image_features
            )
            self._world.remember(self.preprocessor(raw))
            self._shown.add(reader.now_s)
        reader.now_s = now.get_timestamp()
        self._shown.add(reader.now_s)
        oldest_s = (seen[chosen[0]].get_timestamp() - 1.0) if chosen else now.get_timestamp()
        while self._seen and self._seen[0].get_timestamp() < oldest_s:
            self._seen.popleft()


def main() -> None:
    """Register the plugin's types, put them on the list, and serve."""
    register_third_party_plugins()
    choices = PreTrainedConfig.get_known_choices()
    SUPPORTED_POLICIES.extend(name for name, choice in choices.items() if issubclass(choice, WorldOptions))
    policy_server.PolicyServer = WorldPolicyServer  # which `serve` makes
    policy_server.serve()


if __name__ == "__main__":
    main()
