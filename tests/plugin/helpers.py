"""Tiny policies on the tiny companion, shared by the policy tests."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from torch.distributed import TCPStore
from torch.utils.data import default_collate

from tests import fork_server
from tests.device import DEVICE
from world_modality_core.memory.gated_attention import Gate

TYPES = ["world_A", "world_B", "world_B_cont", "world_C", "world_F"]
SMALL = {
    "d_model": 32,
    "n_layers": 1,
    "n_heads": 2,
    "chunk_size": 4,
    "n_action_steps": 2,
    "n_obs_steps": 3,
    "n_future_steps": 2,
    "dropout": 0.0,
    "device": DEVICE,
    "push_to_hub": False,
}


# Seconds that processes have to end in, once a training has said that it is over.
TEARDOWN_S = 10


def run_training(command: list[str], n_processes: int = 1, timeout_s: float = 400) -> str:
    """Run `lerobot-train`, in one process or several, and return what it printed.

    Several are told of one another as torchrun does, whose launchers start interpreters of their own.

    Two processes on CPUs now and then never end, though the training has: torch's gloo group joins its thread in its
    destructor with the GIL held, for which that thread waits (seen with torch 2.11 by py-spy: ~ProcessGroupGloo below
    ~Reducer, and ~AsyncBarrierWork in gil_scoped_acquire). Only such processes are ended, after "End of training".
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        with log.open("w") as file:
            options = {"stdout": file, "stderr": subprocess.STDOUT, "start_new_session": True}
            store, ranks = None, [{}]
            if n_processes > 1:
                store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
                ranks = _ranks(n_processes, store.port)
            processes = [fork_server.start(command, env=os.environ | rank, **options) for rank in ranks]
        end, over = time.monotonic() + timeout_s, None
        while None in (codes := [process.poll() for process in processes]):
            time.sleep(0.2)
            if over is None and "End of training" in log.read_text():
                over = time.monotonic()
            hangs = over is not None and time.monotonic() - over > TEARDOWN_S
            if hangs or any(codes) or time.monotonic() > end:
                for pid in {pid for process in processes for pid in _session(process.pid)}:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                for process in processes:
                    process.wait()
                assert hangs, f"{codes}, or no end after {timeout_s} s: {log.read_text()[-3000:]}"
                return log.read_text()
        printed = log.read_text()
    assert not any(codes), printed[-3000:]
    return printed


def _ranks(n: int, port: int) -> list[dict[str, str]]:
    """What torchrun, whose store they meet in is at a port, tells each of n processes on one machine."""
    of_all = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    of_all |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
    return [of_all | {"RANK": str(i), "LOCAL_RANK": str(i)} for i in range(n)]


def _session(leader: int) -> list[int]:
    """A session's processes and those that they started in sessions of their own (torch's elastic agent does)."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    found = [leader]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def make_config(policy_type: str, companion_root=None, **options):
    """A small config of a type; `companion__root`-like names set nested fields."""
    config = PreTrainedConfig.get_choice_class(policy_type)(**SMALL | options)
    if companion_root is not None:
        config.companion.root = str(companion_root)
    return config


def open_dataset(tiny_companion, config) -> LeRobotDataset:
    """The tiny source dataset with the action windows of a config."""
    repo_id, root, _ = tiny_companion
    meta = LeRobotDataset(repo_id, root=root).meta
    delta = {"action": [i / meta.fps for i in config.action_delta_indices]}
    return LeRobotDataset(repo_id, root=root, delta_timestamps=delta)


def build(tiny_companion, policy_type: str, seed: int = 0, **options):
    """A policy in training mode, its dataset and its processors, as lerobot-train builds them."""
    config = make_config(policy_type, tiny_companion[2], **options)
    dataset = open_dataset(tiny_companion, config)
    torch.manual_seed(seed)
    policy = make_policy(config, ds_meta=dataset.meta)
    processors = make_pre_post_processors(config, dataset_stats=dataset.meta.stats)
    return policy.train(), dataset, processors


def batch_of(dataset, preprocessor, indices) -> dict:
    """A preprocessed batch of some frames."""
    return preprocessor(default_collate([dataset[i] for i in indices]))


def live_batch(dataset, preprocessor, indices) -> dict:
    """What an environment would show at some frames: images, state and task, no index."""
    items = [dataset[i] for i in indices]
    keys = [key for key in items[0] if key.startswith("observation.") and not key.endswith("_is_pad")]
    batch = {key: torch.stack([item[key] for item in items]) for key in keys}
    return preprocessor(batch | {"task": [item["task"] for item in items]})


def open_gates(policy, value: float = 0.5) -> None:
    """Open all gates, so that what they let through can be seen."""
    for module in policy.modules():
        if isinstance(module, Gate):
            torch.nn.init.constant_(module.value, value)
