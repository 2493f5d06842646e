"""The example server takes checkpoints from a client and answers with actions of this episode, over real gRPC."""

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors

grpc = pytest.importorskip("grpc")

from lerobot.async_inference.helpers import (  # noqa: E402
    RemotePolicyConfig,
    TimedObservation,
    raw_observation_to_observation,
)
from lerobot.transport import services_pb2, services_pb2_grpc  # noqa: E402
from lerobot.transport.utils import send_bytes_in_chunks  # noqa: E402

from tests import fork_server  # noqa: E402
from tests.plugin.helpers import build as build_world  # noqa: E402
from tests.plugin.helpers import open_gates  # noqa: E402
from tests.plugin.smolvla_helpers import build  # noqa: E402
from wm_tools.doctor.smolvlm_backbone import make_smolvlm  # noqa: E402
from world_modality_core.configs import MemoryConfig, PastConfig  # noqa: E402

SERVER = Path(__file__).parents[2] / "examples" / "policy_server.py"


@pytest.fixture
def stub(tmp_path):
    ours = socket.socket()  # keeps the port for the server, which gRPC lets share it; this one never listens
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    ours.bind(("127.0.0.1", 0))
    port = ours.getsockname()[1]
    command = [sys.executable, str(SERVER), "--host=127.0.0.1", f"--port={port}", "--fps=10"]
    log = (tmp_path / "server.log").open("w")
    server = fork_server.start(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(timeout=120)
        yield services_pb2_grpc.AsyncInferenceStub(channel)
        channel.close()
    finally:
        server.terminate()
        server.wait(timeout=120)
        ours.close()
        log.close()
        print((tmp_path / "server.log").read_text()[-3000:])


FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "grip"]},
    **{
        f"observation.images.{name}": {"dtype": "image", "shape": (64, 64, 3), "names": ["h", "w", "c"]}
        for name in ("top", "wrist")
    },
}


def serve(stub, policy_type, path):
    """What a client begins with: the policy is loaded anew."""
    stub.Ready(services_pb2.Empty())
    specs = RemotePolicyConfig(policy_type, str(path), FEATURES, actions_per_chunk=4, device="cpu")
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(specs)))


def save(policy, dataset, path):
    open_gates(policy)
    policy.save_pretrained(path)
    for processor in make_pre_post_processors(policy.config, dataset_stats=dataset.meta.stats):
        processor.save_pretrained(path)
    return path


def shown(brightness):
    """A robot whose state hardly moves, as LeRobot's filter of similar observations sees it."""
    motors = {name: 0.001 * brightness for name in ("x", "y", "z", "grip")}
    images = {name: np.full((64, 64, 3), brightness, dtype=np.uint8) for name in ("top", "wrist")}
    return motors | images | {"task": "push the puck"}


def send(stub, at_s, number, brightness, must_go=True):
    observation = TimedObservation(at_s, number, shown(brightness), must_go=must_go)
    chunks = send_bytes_in_chunks(pickle.dumps(observation), services_pb2.Observation, silent=True)
    stub.SendObservations(chunks)


def actions(stub):
    return np.stack([each.get_action().numpy() for each in pickle.loads(stub.GetActions(services_pb2.Empty()).data)])


def episode(stub, start_s, brightness):
    """Ten frames at 10 fps, planned at the first, the sixth and the last: the plans."""
    plans = []
    for t, value in enumerate(brightness):
        send(stub, start_s + t / 10, t, value, must_go=t in (0, 5, 9))
        if t in (0, 5, 9):
            plans.append(actions(stub))
    return plans


def test_a_client_is_served(stub, tiny_companion, tmp_path):
    policy, dataset, _ = build(tiny_companion, make_smolvlm(tmp_path / "vlm"))
    serve(stub, "smolvla_world", save(policy, dataset, tmp_path / "checkpoint"))
    send(stub, time.time(), 0, 30)
    first = actions(stub)
    send(stub, time.time() + 0.5, 5, 200)
    second = actions(stub)
    assert first.shape == second.shape == (4, 4)
    assert np.isfinite(first).all() and not np.allclose(first, second)


def test_two_episodes_over_one_connection_are_as_fresh_ones(stub, tiny_companion, tmp_path):
    """History and past are those of every frame, at the robot's times, and of this episode."""
    memory = MemoryConfig(past=PastConfig(3, 2, "both"))
    policy, dataset, _ = build_world(tiny_companion, "world_F", history_stride=2, memory=memory)
    path = save(policy, dataset, tmp_path / "checkpoint")
    one, other = [20 * t for t in range(10)], [250 - 20 * t for t in range(10)]
    serve(stub, "world_F", path)
    at_s = time.time()
    episode(stub, at_s, one)
    second = episode(stub, at_s + 1.2, other)
    serve(stub, "world_F", path)
    np.testing.assert_array_equal(second, episode(stub, at_s + 100.0, other))

    # A robot that shows every frame, one call a step.
    policy.eval().reset()
    before, after = make_pre_post_processors(policy.config, pretrained_path=str(path))
    features = {key: PolicyFeature(FeatureType.VISUAL, (3, 64, 64)) for key in FEATURES if "image" in key}
    for value in other:
        batch = before(raw_observation_to_observation(shown(value), FEATURES, features))
        plan = policy.predict_action_chunk(batch)
    expected = torch.stack([after(action) for action in plan.unbind(1)], 1)[0].numpy()
    np.testing.assert_allclose(second[-1], expected, atol=1e-5)
    policy.reset()
    blank = torch.stack([after(action) for action in policy.predict_action_chunk(batch).unbind(1)], 1)[0].numpy()
    assert np.abs(blank - expected).max() > 1e-3  # the history matters
