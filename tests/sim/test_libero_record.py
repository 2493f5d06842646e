"""The recorder of examples/libero, on a scene that stands for the simulator: what it keeps, and that it goes on."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from lerobot.datasets import LeRobotDataset

from world_modality_core.io.errors import ConfigError

SIZE, N_STEPS, HARD = 32, 6, 11  # in initial state 11 the expert never succeeds
LABEL = np.array([0.5, 0, 0, 0, 0, 0, -1], dtype=np.float32)


@pytest.fixture
def recorder(monkeypatch, tmp_path):
    """The example's module with a stand-in for its `Scene`, and options; `executed` notes the actions."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "libero")
    import record

    executed = []

    class StillScene:
        fps, instruction = 20, "take it"
        expert = SimpleNamespace(act=lambda: LABEL)

        def __init__(self, suite, task_id, size_px):
            pass

        def reset(self, init_state):
            self.init_state, self.n_steps = init_state, 0
            return self.see()

        def step(self, action):
            executed.append(action)
            self.n_steps += 1
            return self.see(), self.n_steps == N_STEPS and self.init_state != HARD

        def see(self):
            rng = np.random.default_rng([self.init_state, self.n_steps])
            images = {name: rng.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8) for name in record.CAMERAS}
            return {**images, "observation.state": np.full(8, self.init_state, dtype=np.float32)}

        def close(self):
            pass

    monkeypatch.setattr(record, "Scene", StillScene)
    monkeypatch.setattr(record, "check_libero_is_set_up", lambda: None)
    options = argparse.Namespace(
        tasks="libero_object:3", n_episodes=2, first_init_state=10, action_noise=0.2, episode_length=9, size_px=SIZE,
        repo_id="tests/libero", root=tmp_path / "dataset",
    )  # fmt: skip
    return SimpleNamespace(module=record, options=options, executed=executed)


def test_failures_are_replaced_and_labels_are_clean(recorder, capsys):
    recorder.module.record(recorder.options)
    dataset = LeRobotDataset("tests/libero", root=recorder.options.root)
    assert [int(i) for i in dataset.hf_dataset["init_state"]] == [10] * N_STEPS + [12] * N_STEPS
    assert dataset.fps == 20 and dataset[0]["task"] == "take it"
    np.testing.assert_array_equal(np.stack(dataset.hf_dataset["action"]), np.tile(LABEL, (12, 1)))
    noise = np.stack(recorder.executed) - LABEL
    assert noise[:, :3].std() > 0.1 and (noise[:, 3:] == 0).all()
    told = json.loads((recorder.options.root / "meta" / "libero_record.json").read_text())
    assert told["init_states"] == {"libero_object:3": {"kept": [10, 12], "failed": [11]}}
    n_executed = len(recorder.executed)
    recorder.module.record(recorder.options)
    assert "holds this recording already" in capsys.readouterr().out and len(recorder.executed) == n_executed


def test_it_goes_on_after_a_kill_and_refuses_other_options(recorder, monkeypatch):
    step, record_episode = recorder.module.Scene.step, recorder.module.record_episode

    def stop(self, action):
        if self.init_state == 12 and self.n_steps == 3:
            raise KeyboardInterrupt
        return step(self, action)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(recorder.module.Scene, "step", stop)
        recorder.module.record(recorder.options)
    assert not recorder.options.root.exists()
    other = argparse.Namespace(**vars(recorder.options) | {"action_noise": 0.0})
    with pytest.raises(ConfigError, match="other options"):
        recorder.module.record(other)
    states = []
    monkeypatch.setattr(recorder.module, "record_episode", lambda *a: (states.append(a[1]), record_episode(*a))[1])
    recorder.options.n_episodes = 3
    recorder.module.record(recorder.options)
    assert states == [12, 13]
    assert LeRobotDataset("tests/libero", root=recorder.options.root).num_episodes == 3
    with pytest.raises(ConfigError, match="other options"):
        recorder.module.record(other)
