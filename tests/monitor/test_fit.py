"""`wm-monitor fit`: who calibrates, live scores equal recorded ones, nothing of the future is read, strict files."""

import json
import shutil

import numpy as np
import pytest
import torch
from lerobot.datasets import LeRobotDataset
from safetensors.torch import load_file, save_file

from lerobot_policy_world_modality.hub.uploads import push
from tests.monitor.conftest import LENGTHS, fit_options
from wm_tools.push.cli import make_parser as push_parser
from world_modality_core.encoders import make_world_encoder
from world_modality_core.io.errors import ConfigError, DamagedFileError
from world_modality_core.latents.frame_history import FrameHistory
from world_modality_core.monitor.fit import fit
from world_modality_core.monitor.monitor_rows import write_monitor_rows
from world_modality_core.monitor.recorded_scores import score_episodes
from world_modality_core.monitor.saved_monitor import MONITOR_FILE, TENSORS_FILE, Monitor
from world_modality_core.monitor.watch import Watch
from world_modality_core.prophet.data import CompanionFrames, open_companions


@pytest.fixture(scope="module")
def monitor(watched) -> Monitor:
    return Monitor.load(watched.monitor)


@pytest.fixture
def frames(watched) -> CompanionFrames:
    return CompanionFrames(open_companions([str(watched.companion)]), [watched.source])


def live_scores(monitor: Monitor, watched, episodes: list[int], n_steps: int) -> np.ndarray:
    """Raw scores (b, ticks, c) of episodes whose frames are shown one by one, as a robot's are."""
    dataset = LeRobotDataset("tests/source", root=watched.source)
    this = monitor.description
    seen = FrameHistory(
        monitor.spec.cameras, this.n_obs_steps, this.history_stride, monitor.spec.n_frames, monitor.spec.frame_stride
    )
    encoder = make_world_encoder(monitor.spec, pca=monitor.space.pca)
    starts = np.cumsum([0, *LENGTHS])[episodes]
    watch = Watch(monitor, [dataset[int(start)]["task"] for start in starts])
    told = []
    for step in range(n_steps):
        items = [dataset[int(start) + step] for start in starts]
        seen.append({camera: torch.stack([item[camera] for item in items]) for camera in monitor.spec.cameras})
        if step:
            watch.note_action(torch.stack([dataset[int(start) + step - 1]["action"] for start in starts]))
        if watch.is_due(step):
            state = torch.stack([item["observation.state"] for item in items])
            told.append(watch.scores(step, *seen.latents(encoder), state))
    return np.stack(told, axis=1)


def test_live_scores_are_those_of_the_recording(monitor, watched, frames):
    episodes = [5, 8, 14]
    n_steps = min(LENGTHS[e] for e in episodes)
    live = live_scores(monitor, watched, episodes, n_steps)
    recorded = score_episodes(monitor, frames, episodes)
    for row, episode in enumerate(recorded):
        n = live.shape[1]
        # fp16 latents may round to the next number where a batch of another size computed them.
        np.testing.assert_allclose(live[row], episode.values[:n], rtol=2e-3, atol=2e-3)
        known = ~np.isnan(live[row])
        names = np.array(monitor.score_names)
        assert names[known[-1]].tolist() == [name for name in names if name != "chunk_disagreement"]
        assert not known[0, :3].any()  # forecasts and their end are told once there was one
    assert np.nanmax(np.abs(live[0] - live[1])) > 0.05  # the control: episodes differ by more


def test_a_score_reads_nothing_after_its_time(monitor, frames):
    before = score_episodes(monitor, frames, [6])[0]
    start, end = frames.bounds[6]
    cut = start + 6
    table = frames.companions[0].table
    changed = np.array(table.latents)
    changed[cut + 1 : end] += np.float16(1.0)
    table.latents = changed
    after = score_episodes(monitor, frames, [6])[0]
    is_past = before.steps <= 6
    np.testing.assert_array_equal(after.values[is_past], before.values[is_past])
    is_told = ~np.isnan(before.values[~is_past]) & (np.array(monitor.score_names) != "elapsed_time")
    assert (after.values[~is_past][is_told] != before.values[~is_past][is_told]).any()


def test_episodes_that_the_prophet_learned_from_calibrate_nothing(monitor):
    for task in monitor.description.fitted_on["episodes"].values():
        groups = {name: {episode for _, episode in of} for name, of in task.items()}
        assert groups["reference"] and groups["reference"] <= {0, 1, 2, 3}
        assert not groups["reference"] & (groups["shape"] | groups["hold"])
        assert not groups["shape"] & groups["hold"] and len(groups["shape"] | groups["hold"]) == 8
    assert monitor.description.tasks == ["open the drawer", "push the puck"]


def test_what_is_saved_is_what_was_fitted(monitor, watched, frames, tmp_path):
    again = fit(
        fit_options(
            f"--prophet={watched.prophet}", f"--companions={watched.companion}", f"--sources={watched.source}",
            "--false_alarm_rate=0.3", "--window=2", f"--output_dir={tmp_path / 'again'}",
        )
    )  # fmt: skip
    for name, value in again.state_dict().items():
        assert torch.equal(value, monitor.state_dict()[name]), name
    episode = score_episodes(monitor, frames, [9])[0]
    # A matrix product may round otherwise where its factors lie elsewhere in memory.
    np.testing.assert_allclose(score_episodes(again, frames, [9])[0].values, episode.values, rtol=1e-5)
    told = [c.calibration.level(episode.task, episode.steps, episode.values) for c in (again, monitor)]
    np.testing.assert_array_equal(*told)


def test_thresholds_are_set_anew_on_rows(monitor, watched, tmp_path):
    """Of successes only, of the arm intact; with scores that recordings don't have; another promise."""
    rng, names = np.random.default_rng(0), monitor.score_names

    def row(i, success=True, arm="intact"):
        values = rng.normal(size=(10 + i % 3, len(names)))
        values[0, 0] = np.nan
        return {
            "model": "A", "train_seed": 1, "arm": arm, "task": "push" if i % 2 else "open", "seed": i, "every": 2,
            "instruction": "push the puck" if i % 2 else "open the drawer", "success": success,
            "steps": 2 * len(values),
            "disturbance": "", "disturbed_at": None, "false_alarm_rate": 0.3, "alarm_step": None, "monitor_s": 0.1,
            "level": values[:, 0].tolist(), "values": values if success and arm == "intact" else values + 1000,
        }  # fmt: skip

    for task in (0, 1):
        rows = [row(i, success=i < 24) for i in range(task, 32, 2)]
        write_monitor_rows(tmp_path / "rows", rows, names)
        write_monitor_rows(tmp_path / "rows", [row(i, arm="zero") for i in range(task, 12, 2)], names)
    given = [f"--monitor={watched.monitor}", f"--rows={tmp_path / 'rows'}", f"--output_dir={tmp_path / 'again'}"]
    again = fit(fit_options(*given, "--false_alarm_rate=0.2"))
    assert all(20 <= length <= 24 for length in again.description.lengths)
    assert again.description.false_alarm_rate == 0.2
    assert len(again.description.fitted_on["rows"]) == 24
    assert again.calibration.maxima.max() < 10 and again.calibration.count[..., -1].any()  # chunk_disagreement too
    loaded = Monitor.load(tmp_path / "again")
    np.testing.assert_array_equal(loaded.calibration.quantile, again.calibration.quantile)
    with pytest.raises(ConfigError, match="task 'open the drawer' of .* has 12 successful episodes"):
        fit(fit_options(*given, "--false_alarm_rate=0.05"))
    for part in (tmp_path / "rows/monitor").glob("*-open-*"):
        part.unlink()
    pushing = fit(fit_options(*given, "--false_alarm_rate=0.2"))  # of the tasks that this policy was seen in
    assert pushing.description.tasks == ["push the puck"]
    assert torch.equal(Monitor.load(tmp_path / "again").language, monitor.language[1:])
    assert pushing.bank.count.tolist() == monitor.bank.count[1:].tolist()


def test_several_prophets_are_an_ensemble(watched, frames, tmp_path):
    other = shutil.copytree(watched.prophet, tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    tensors["prophet.head.weight"] += 0.1
    save_file(tensors, other / "model.safetensors")
    options = (f"--companions={watched.companion}", f"--sources={watched.source}", "--false_alarm_rate=0.3")
    both = fit(fit_options(f"--prophet={watched.prophet},{other}", *options, f"--output_dir={tmp_path / 'both'}"))
    one = Monitor.load(watched.monitor)
    place = one.score_names.index("disagreement")
    apart, alike = (score_episodes(m, frames, [7])[0].values[:, place] for m in (both, one))
    assert (apart != alike).all()
    tensors["space.mean"] += 1
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(ConfigError, match="differ in more than their seeds: standardisation"):
        fit(fit_options(f"--prophet={watched.prophet},{other}", *options, f"--output_dir={tmp_path / 'no'}"))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--false_alarm_rate=0.05"], "false_alarm_rate=0.05: task 'open the drawer'"),
        (["--false_alarm_rate=1.5"], "false_alarm_rate=1.5: expected a share"),
        (["--window=0"], "window=0: expected at least 1"),
        (["--seed=-1"], "seed=-1: expected at least 0"),
        (["--companions="], "companions is empty"),
        (["--prophet=nowhere"], "prophet='nowhere': no Prophet can be read there"),
        (["--episodes=0-99"], "episodes='0-99': there is no episode 99"),
        (["--monitor=x"], "give either --prophet"),
    ],
)
def test_wrong_options_are_refused_by_name(watched, tmp_path, changed, said):
    options = [f"--prophet={watched.prophet}", f"--companions={watched.companion}", f"--sources={watched.source}"]
    with pytest.raises(ConfigError, match=said):
        fit(fit_options(*options, f"--output_dir={tmp_path / 'no'}", *changed))
    assert not (tmp_path / "no").exists()


def narrower(tensors):
    tensors["bank.latents"] = tensors["bank.latents"][..., :-1].contiguous()


def stranger(tensors):
    tensors["extra"] = torch.zeros(1)


def nan(tensors):
    tensors["space.std"][0] = torch.nan


def too_many(tensors):
    tensors["bank.count"][0, 0] = 10_000


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (narrower, "bank.latents is torch.float16"),
        (lambda tensors: tensors.pop("language"), "no tensor 'language'"),
        (stranger, "the tensor 'extra' is none of a monitor's"),
        (nan, "space.std holds NaN"),
        (too_many, "bank.count goes from"),
    ],
)
def test_damaged_tensors_are_refused_by_name(watched, tmp_path, damage, said):
    folder = shutil.copytree(watched.monitor, tmp_path / "damaged")
    tensors = load_file(folder / TENSORS_FILE)
    damage(tensors)
    save_file(tensors, folder / TENSORS_FILE)
    with pytest.raises(DamagedFileError, match=said):
        Monitor.load(folder)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("format_version", 3, "format_version 3, expected 2"),
        ("n_phases", 10**9, "n_phases=1000000000"),
        ("n_phases", 3, "bank.count is"),
        ("tasks", "open", "tasks"),
        ("lengths", [3], "for 2 tasks"),
        ("surprise", 1, "no field 'surprise'"),
    ],
)
def test_damaged_descriptions_are_refused_by_name(watched, tmp_path, field, value, said):
    folder = shutil.copytree(watched.monitor, tmp_path / "damaged")
    raw = json.loads((folder / MONITOR_FILE).read_text()) | {field: value}
    (folder / MONITOR_FILE).write_text(json.dumps(raw))
    with pytest.raises(DamagedFileError, match=said):
        Monitor.load(folder)


def test_an_unknown_instruction_is_no_guess(monitor):
    with pytest.raises(ConfigError, match="task='fly' is none that the monitor was fitted on"):
        Watch(monitor, ["push the puck", "fly"])


def test_no_monitor_there(tmp_path):
    with pytest.raises(ConfigError, match="has no monitor.json"):
        Monitor.load(tmp_path)


def test_wm_push_uploads_a_monitor_with_its_promise_and_nothing_of_this_disk(watched, capsys):
    given = push_parser().parse_args([str(watched.monitor), "--repo_id=me/monitor", "--dry_run"])
    card = push(given)
    assert "at most 30.0% have an alarm" in card and "`push the puck`" in card and "wm-eval" in card
    written = (watched.monitor / MONITOR_FILE).read_text()
    assert str(watched.monitor.parent) not in card + written
