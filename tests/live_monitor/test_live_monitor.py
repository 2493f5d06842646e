"""A monitor beside policies: it changes no action, shares their latents, and reacts where LeRobot runs it."""

import json
import logging
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.configs.default import EvalConfig
from lerobot.policies import get_policy_class, make_pre_post_processors

from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.evaluation.evaluate import evaluate
from lerobot_policy_world_modality.hub.trusted_files import open_checkpoint
from lerobot_policy_world_modality.live_monitor.evaluated_monitor import mark_alarm
from lerobot_policy_world_modality.live_monitor.live_monitor_run import LiveMonitorRun
from lerobot_policy_world_modality.live_monitor.monitor_step import MonitorAlarmError, MonitorStep
from tests.evaluation.dots import SIZE, DotsConfig
from tests.monitor.conftest import watched  # noqa: F401  a fixture
from tests.plugin.helpers import make_config, open_gates
from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.monitor.attach import STATE_FILE, attach
from world_modality_core.monitor.cli import make_parser
from world_modality_core.monitor.judging import eval_rows
from world_modality_core.monitor.monitor_rows import read_monitor_rows, scores_of_rows
from world_modality_core.monitor.saved_monitor import Monitor
from world_modality_core.studies.report.cli import make_parser as report_parser
from world_modality_core.studies.report.cli import report

CAMERA = "observation.image"


@pytest.fixture(scope="module")
def of_dots(watched, tmp_path_factory):  # noqa: F811
    """The monitor, as if it had been fitted on episodes of dots, with a line that random policies pass."""
    monitor = Monitor.load(watched.monitor)
    monitor.description.tasks = ["move the dot (dark)", "move the dot (bright)"]
    monitor.calibration_tensors.quantile.fill_(0.5)
    monitor.save(folder := tmp_path_factory.mktemp("of_dots"))
    return folder


@pytest.fixture(scope="module")
def checkpoint(of_dots, tmp_path_factory):
    """A world_F with random weights that sees by the monitor's encoder and windows, and plans every second step."""
    monitor = Monitor.load(of_dots)
    config = make_config(
        "world_F", use_language=False, n_obs_steps=2, future_stride=2,
        input_features={
            CAMERA: PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)),
            "observation.state": PolicyFeature(FeatureType.STATE, (4,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )  # fmt: skip
    config.encoder = monitor.spec
    torch.manual_seed(0)
    policy = get_policy_class("world_F")(config)
    policy.world.space.load_state_dict(monitor.space.state_dict())
    open_gates(policy)
    folder = tmp_path_factory.mktemp("policies") / "F" / "pretrained_model"
    policy.save_pretrained(folder)
    for processor in make_pre_post_processors(policy.config):
        processor.save_pretrained(folder)
    return folder


def options(checkpoint, output_dir, **changed) -> WorldEvalConfig:
    policy = PreTrainedConfig.from_pretrained(checkpoint)
    policy.pretrained_path = checkpoint
    evaluation = EvalConfig(n_episodes=3, batch_size=2, use_async_envs=False)
    named = {"env": DotsConfig(), "eval": evaluation, "policy": policy, "output_dir": output_dir, "seed": 5}
    return WorldEvalConfig(**named | {"train_seed": 0} | changed)


@pytest.fixture(scope="module")
def evaluated(checkpoint, of_dots, tmp_path_factory):
    base = tmp_path_factory.mktemp("evaluated")
    plain = evaluate(options(checkpoint, base / "plain"))
    seen = []
    original = LiveMonitorRun.tell

    def witness(self, host=None, action=None):
        reading = original(self, host, action)
        seen.append((self._frames.n_encoded, host.latent_reader.frames.n_encoded, reading is not None))
        return reading

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LiveMonitorRun, "tell", witness)
        rows = evaluate(options(checkpoint, base / "watched", monitor=str(of_dots), videos="all"))
    return base / "watched", plain, rows, seen


def test_a_monitor_changes_no_episode(evaluated):
    _, plain, rows, _ = evaluated
    left_out = ["wall_s", "video"]
    pd.testing.assert_frame_equal(plain.drop(columns=left_out), rows.drop(columns=left_out))


def test_rows_hold_scores_of_each_tick_and_the_alarm(evaluated, of_dots):
    folder, _, rows, _ = evaluated
    told = read_monitor_rows([folder])
    assert len(told) == len(rows) == 6 and told["alarm_step"].notna().any()
    monitor = Monitor.load(of_dots)
    for row, episode in zip(
        told.to_dict("records"), scores_of_rows(told, monitor.score_names, monitor.description.tasks, "x"), strict=True
    ):
        assert len(episode.steps) == -(-row["steps"] // 2) and row["every"] == 2 and row["monitor_s"] > 0
        level = monitor.calibration.level(episode.task, episode.steps, episode.values)
        np.testing.assert_allclose(row["level"], level, rtol=1e-9)
        above = episode.steps[level > 0.5]
        assert (row["alarm_step"] == above[0]) if len(above) else (row["alarm_step"] is pd.NA)
    long = max(range(len(told)), key=lambda i: told["steps"][i])
    assert np.isfinite(told["score_chunk_disagreement"][long][1:]).all()  # the policy tells its plans
    info = json.loads((folder / "eval.json").read_text())
    assert len(info["monitor"]) == 64


def test_the_policy_s_latents_are_taken_and_none_encoded_twice(evaluated):
    *_, seen = evaluated
    assert any(is_tick for *_, is_tick in seen)
    assert max(own for own, _, _ in seen) == 0 < max(its for _, its, _ in seen)


def test_a_page_shows_filmed_episodes_with_their_alarms(evaluated, of_dots, tmp_path):
    page = tmp_path / "page.html"
    given = ["eval", str(evaluated[0]), f"--monitor={of_dots}", f"--page={page}", "--n_films=4"]
    eval_rows(make_parser().parse_args(given))
    text = page.read_text()
    assert text.count('<div class="moment">') == 4 and text.count('class="now"') >= 1 and ", scene 5: " in text
    report_page = tmp_path / "report.html"
    report(report_parser().parse_args([str(evaluated[0]), f"--output={report_page}", "--max_videos=4"]))
    text = report_page.read_text()
    assert 'id="alarms"' in text and "promised" in text and text.count('class="now"') >= 1


def test_going_on_with_another_monitor_is_refused(evaluated, checkpoint, watched, tmp_path):  # noqa: F811
    copy = shutil.copytree(evaluated[0], tmp_path / "copy")
    with pytest.raises(ConfigError, match="monitor"):
        evaluate(options(checkpoint, copy, monitor=str(watched.monitor)))
    with pytest.raises(ConfigError, match="monitor='nowhere' has no monitor.json"):
        evaluate(options(checkpoint, tmp_path / "new", monitor="nowhere"))


def test_alarms_are_drawn_from_their_step_on():
    film = [np.full((64, 64, 3), 100, np.uint8)] * 4
    marked = mark_alarm(film, 2)
    assert [bool((picture != 100).any()) for picture in marked] == [False, False, True, True]
    assert (marked[2][5:-5, 5:-5] == 100).all() and (film[3] == 100).all()
    assert mark_alarm(film, None) is film


# Where LeRobot runs it.


@pytest.fixture
def attached(checkpoint, of_dots, tmp_path):
    def make(reaction="warn", *more):
        given = ["attach", str(checkpoint), f"--monitor={of_dots}", f"--reaction={reaction}"]
        return attach(make_parser().parse_args([*given, f"--output_dir={tmp_path / reaction}", *more]))

    return make


def processor_of(folder):
    """The preprocessor of a checkpoint, as lerobot-rollout and the policy server load it."""
    config = PreTrainedConfig.from_pretrained(open_checkpoint(folder))
    return make_pre_post_processors(config, pretrained_path=str(folder))[0]


def show(preprocessor, n_steps, seed=0):
    """Noise, frame by frame: nothing that the monitor knows."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(n_steps):
        frame = torch.rand(1, 3, SIZE, SIZE, generator=generator)
        preprocessor({CAMERA: frame, "observation.state": torch.zeros(1, 4), "task": ["move the dot (dark)"]})


def test_lerobot_loads_the_step_and_it_changes_nothing(attached, checkpoint):
    with_it, without = processor_of(attached()), processor_of(checkpoint)
    assert isinstance(with_it.steps[0], MonitorStep) and len(with_it.steps) == len(without.steps) + 1
    batch = {
        CAMERA: torch.rand(1, 3, SIZE, SIZE),
        "observation.state": torch.zeros(1, 4),
        "task": ["move the dot (dark)"],
    }
    seen, expected = with_it(dict(batch)), without(dict(batch))
    assert seen.keys() == expected.keys()
    assert all(torch.equal(seen[name], value) for name, value in expected.items() if isinstance(value, torch.Tensor))
    assert len(with_it.steps[0].run.readings) == 1


@pytest.mark.parametrize("reaction", ["log", "warn", "stop"])
def test_it_logs_warns_or_stops_at_an_alarm(attached, reaction, caplog):
    preprocessor = processor_of(attached(reaction))
    with caplog.at_level(logging.INFO):
        if reaction == "stop":
            with pytest.raises(MonitorAlarmError, match="the world isn't as it was forecast .* stopped"):
                show(preprocessor, 40)
            return
        show(preprocessor, 40)
    said = [record for record in caplog.records if "monitor: at step" in record.message]
    assert said and {record.levelno for record in said} == {logging.INFO if reaction == "log" else logging.WARNING}


def test_a_reset_starts_an_episode(attached):
    preprocessor = processor_of(attached())
    show(preprocessor, 8)
    first = [reading.values for reading in preprocessor.steps[0].run.readings]
    preprocessor.reset()
    assert not preprocessor.steps[0].run.readings
    show(preprocessor, 8)
    np.testing.assert_array_equal(first, [reading.values for reading in preprocessor.steps[0].run.readings])


def test_a_server_s_frames_are_timed_by_the_clock(attached, monkeypatch):
    preprocessor = processor_of(attached("warn", "--clock=wall"))
    times = iter([100.0, 100.21, 100.6, 100.61])  # at 10 fps steps 0, 2, 6, 6
    own = SimpleNamespace(monotonic=lambda: next(times))  # time's own is everybody's, threads that wait included
    monkeypatch.setattr("lerobot_policy_world_modality.live_monitor.live_monitor_run.time", own)
    show(preprocessor, 4)
    assert [reading.step for reading in preprocessor.steps[0].run.readings] == [0, 2, 6]


def test_what_can_t_be_attached_is_refused(attached, of_dots, checkpoint, tmp_path):
    folder = attached()
    with pytest.raises(ConfigError, match="exists; name a new folder"):
        attached()
    with pytest.raises(ConfigError, match="has no policy_preprocessor.json"):
        attach(
            make_parser().parse_args(["attach", str(of_dots), f"--monitor={of_dots}", f"--output_dir={tmp_path / 'x'}"])
        )
    (folder / STATE_FILE).write_bytes((checkpoint / "model.safetensors").read_bytes())
    with pytest.raises(DamagedFileError, match="state in the checkpoint"):
        processor_of(folder)
