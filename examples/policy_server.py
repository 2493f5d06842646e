"""LeRobot's asynchronous policy server, with this plugin's types among those that it accepts.

    python examples/policy_server.py --host=127.0.0.1 --port=8080

LeRobot 0.6.1 checks a client's policy type against a fixed list, plugins not included; everything behind that check
works with any policy. Options and protocol are LeRobot's (`python -m lerobot.async_inference.policy_server --help`).
"""

from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.policy_server import serve
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins

PLUGIN = "lerobot_policy_world_modality"


def main() -> None:
    """Register the plugin's types, put them on the list, and serve."""
    register_third_party_plugins()
    choices = PreTrainedConfig.get_known_choices()
    SUPPORTED_POLICIES.extend(name for name, choice in choices.items() if choice.__module__.startswith(PLUGIN))
    serve()


if __name__ == "__main__":
    main()
