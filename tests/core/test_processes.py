"""Which device each of several processes takes."""

from types import SimpleNamespace

import pytest
import torch

from world_modality_core.io import processes


@pytest.mark.parametrize(
    ("wanted", "n_processes", "n_gpus", "found"),
    [
        (None, 4, 2, ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]),
        ("cuda", 2, 1, ["cuda:0", "cuda:0"]),
        ("cuda:1", 2, 2, ["cuda:1", "cuda:1"]),
        ("cpu", 2, 1, ["cpu", "cpu"]),
        (None, 2, 0, ["state's", "state's"]),
        ("cuda", 1, 2, ["cuda"]),
        (None, 1, 2, ["state's"]),
    ],
)
def test_processes_share_what_gpus_there_are(monkeypatch, wanted, n_processes, n_gpus, found):
    asked = []

    def state(cpu, timeout):
        asked.append(cpu)
        return SimpleNamespace(device="state's", local_process_index=len(asked) - 1, num_processes=n_processes)

    monkeypatch.setenv("WORLD_SIZE", str(n_processes))
    monkeypatch.setattr(processes, "PartialState", state)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: n_gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: n_gpus)
    assert [str(processes.join_processes(wanted)[1]) for _ in range(n_processes)] == found
    assert asked == [n_processes > 1 or wanted == "cpu"] * n_processes  # several wait through the CPU
