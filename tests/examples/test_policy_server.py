"""The example server takes a smolvla_world checkpoint from a client and answers with fresh actions, over real gRPC."""

import pickle
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lerobot.policies import make_pre_post_processors

grpc = pytest.importorskip("grpc")

from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation  # noqa: E402
from lerobot.transport import services_pb2, services_pb2_grpc  # noqa: E402
from lerobot.transport.utils import send_bytes_in_chunks  # noqa: E402

from tests.plugin.helpers import open_gates  # noqa: E402
from tests.plugin.smolvla_helpers import build  # noqa: E402
from wm_tools.doctor.smolvlm_backbone import make_smolvlm  # noqa: E402

SERVER = Path(__file__).parents[2] / "examples" / "policy_server.py"


@pytest.fixture
def stub():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(SERVER), "--host=127.0.0.1", f"--port={port}", "--fps=10"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(timeout=120)
        yield services_pb2_grpc.AsyncInferenceStub(channel)
        channel.close()
    finally:
        server.terminate()
        server.wait(timeout=20)


def observe(stub, number, brightness):
    motors = {name: 0.1 * number for name in ("x", "y", "z", "grip")}
    images = {name: np.full((64, 64, 3), brightness, dtype=np.uint8) for name in ("top", "wrist")}
    observation = TimedObservation(time.time(), number, motors | images | {"task": "push the puck"}, must_go=True)
    chunks = send_bytes_in_chunks(pickle.dumps(observation), services_pb2.Observation, silent=True)
    stub.SendObservations(chunks)
    return np.stack([each.get_action().numpy() for each in pickle.loads(stub.GetActions(services_pb2.Empty()).data)])


def test_a_client_is_served(stub, tiny_companion, tmp_path):
    vlm = make_smolvlm(tmp_path / "vlm")
    policy, dataset, _ = build(tiny_companion, vlm, frame_clock="wall")
    open_gates(policy)
    path = tmp_path / "checkpoint"
    policy.save_pretrained(path)
    for processor in make_pre_post_processors(policy.config, dataset_stats=dataset.meta.stats):
        processor.save_pretrained(path)
    features = {
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["x", "y", "z", "grip"]},
        **{f"observation.images.{name}": {"dtype": "image", "shape": (64, 64, 3), "names": ["h", "w", "c"]}
           for name in ("top", "wrist")},
    }  # fmt: skip
    stub.Ready(services_pb2.Empty())
    specs = RemotePolicyConfig("smolvla_world", str(path), features, actions_per_chunk=4, device="cpu")
    stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(specs)))
    first, second = observe(stub, 0, 30), observe(stub, 5, 200)
    assert first.shape == second.shape == (4, 4)
    assert np.isfinite(first).all() and not np.allclose(first, second)
