"""wm-prophet: windows over several companions, episodes held out, shuffled targets, going on after a kill, refusals."""

import json
import shutil
import signal

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from tests.faults.commands import At, run
from world_modality_core.configs import ProphetConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.companion import open_companion
from world_modality_core.latents.gpu_latent_table import GpuLatentTable
from world_modality_core.prophet.cli import main
from world_modality_core.prophet.data import CompanionFrames, open_companions
from world_modality_core.prophet.episode_split import OtherEpisodes, parse_episodes, split_frames
from world_modality_core.prophet.saved_prophet import CONFIG_FILE, CURVE_FILE, WEIGHTS_FILE, ProphetCheckpoint
from world_modality_core.prophet.train_prophet import train_prophet
from world_modality_core.prophet.training import RESUME_FILE, ProphetTraining
from world_modality_core.prophet.training_options import ProphetTrainingConfig

LENGTHS = (12, 17, 14, 20)
CPU = torch.device("cpu")


def options(tiny, out, **more) -> ProphetTrainingConfig:
    """A tiny run on the tiny companion (tasks alternate between its four episodes)."""
    tiny_run = {
        "prophet": ProphetConfig(d_model=16, n_layers=1, n_heads=2, dropout=0.1),
        "n_future_steps": 2, "steps": 12, "batch_size": 8, "eval_freq": 4, "save_freq": 5, "eval_split": 0.25,
        "warmup_steps": 2, "lr": 3e-3, "device": "cpu",
    }  # fmt: skip
    named = {"companions": str(tiny.companion_root), "sources": str(tiny.source_root), "output_dir": str(out)}
    return ProphetTrainingConfig(**named | tiny_run | more)


@pytest.fixture(scope="module")
def twice(tiny_companion) -> CompanionFrames:
    """The tiny companion and its copy, as one sequence."""
    root = str(tiny_companion.companion_root)
    return CompanionFrames([open_companion(root=root)] * 2, [tiny_companion.source_root] * 2)


def test_windows_over_two_companions_are_their_rows_and_stay_inside_episodes(tiny_companion, twice):
    table = open_companion(root=tiny_companion.companion_root).table
    n = sum(LENGTHS)
    index = torch.tensor([n + 12, 11, 0, n + n - 1, n, 40])  # of both, mixed, at the edges of episodes
    latents, is_pad = twice.latents(index, [-2, 0, 3], CPU)
    for row, frame in enumerate(index.tolist()):
        expected, expected_pad = table.gather(torch.tensor([frame % n]), [-2, 0, 3])
        assert torch.equal(latents[row], expected[0]) and torch.equal(is_pad[row], expected_pad[0])
    assert is_pad[0].tolist() == [True, False, False] and is_pad[1].tolist() == [False, False, True]
    # the other companion's neighbour is not read: the last frame of one, the first of the other
    assert torch.equal(twice.latents(torch.tensor([n - 1]), [1], CPU)[0][0, 0], torch.tensor(table.latents[n - 1]))


def test_latents_on_the_device_give_the_same_windows(tiny_companion, twice):
    root = str(tiny_companion.companion_root)
    there = CompanionFrames([open_companion(root=root)] * 2)
    there._gpu_tables = [GpuLatentTable(companion.table, CPU) for companion in there.companions]
    index = torch.tensor([100, 3, 64, 62])
    for mine, its in zip(twice.latents(index, [-4, 0, 5], CPU), there.latents(index, [-4, 0, 5], CPU), strict=True):
        assert torch.equal(mine, its)


def test_states_are_the_source_s_and_stay_inside_episodes(tiny_companion, twice):
    files = sorted((tiny_companion.source_root / "data").glob("*/*.parquet"))
    recorded = np.concatenate([np.stack(pq.read_table(file)["observation.state"].to_numpy()) for file in files])
    n = sum(LENGTHS)
    got = twice.states_at(torch.tensor([5, n + 11]), [0, 1])
    np.testing.assert_array_equal(got.numpy(), np.stack([recorded[[5, 6]], recorded[[11, 11]]]))
    assert twice.states.shape == (2 * n, 4)


def test_tasks_are_numbered_by_their_text(twice):
    assert twice.tasks == ["push the puck", "open the drawer"]
    assert twice.episode_task().tolist() == [0, 1, 0, 1] * 2


def test_moments_of_one_companion_are_its_own_and_of_several_the_union_s(tiny_companion, twice):
    companion = open_companion(root=tiny_companion.companion_root)
    mean, std = CompanionFrames([companion]).moments()
    assert torch.equal(mean, companion.mean) and torch.equal(std, companion.std)
    shifted = open_companion(root=tiny_companion.companion_root)
    shifted.mean = companion.mean + 2
    mean, std = CompanionFrames([companion, shifted]).moments()
    torch.testing.assert_close(mean, companion.mean + 1)
    torch.testing.assert_close(std, (companion.std.square() + 1).sqrt())


def test_held_out_and_excluded_episodes_are_not_learned_from(tiny_companion, twice, tmp_path):
    two = {"companions": f"{tiny_companion.companion_root},{tiny_companion.companion_root}", "sources": ""}
    split = split_frames(twice, options(tiny_companion, tmp_path, exclude_episodes="0;1-2", **two))
    learned, held = split.episodes, split.held_out_episodes
    assert 0 not in learned[0] + held[0] and not {1, 2} & set(learned[1] + held[1])
    assert not set(learned[0]) & set(held[0]) and not set(learned[1]) & set(held[1])
    assert sum(map(len, held)) == 2  # one of each task
    assert sum(map(len, learned)) == 3
    # every frame is of the episodes that are named, and has a future inside its episode
    frames = np.concatenate([np.arange(*twice.bounds[4 * c + e] - [0, 1]) for c in (0, 1) for e in learned[c]])
    assert sorted(split.training.tolist()) == sorted(frames.tolist())
    only = split_frames(twice, options(tiny_companion, tmp_path, episodes="0,2;", eval_split=0.0, **two))
    assert only.episodes == [[0, 2], [0, 1, 2, 3]] and not len(only.held_out)


@pytest.mark.parametrize(
    "text, message",
    [
        ("0,x;", "cannot read 'x'"),
        ("4;", "no episode 4"),
        ("0;1;2", "3 lists for 2 companions"),
        ("-1;", "cannot read"),
        ("3-1;", "cannot read '3-1'"),
        ("2-;", "cannot read '2-'"),
        ("²;", "cannot read '²'"),
        ("0-99999999999999;", "there is no episode 99999999999999"),
    ],
)
def test_lists_of_episodes_that_make_no_sense_are_refused(text, message):
    assert parse_episodes("0,2-3;", [4, 4], "episodes") == [{0, 2, 3}, None]  # positive control
    with pytest.raises(ConfigError, match=message):
        parse_episodes(text, [4, 4], "episodes")


def test_shuffled_targets_are_of_another_episode_of_the_same_task(twice):
    training = torch.arange(twice.n_frames)
    others, generator = OtherEpisodes(twice, training), torch.Generator().manual_seed(0)
    episode = torch.tensor(np.searchsorted(twice.bounds[:, 0], np.arange(twice.n_frames), side="right") - 1)
    task = torch.tensor(twice.episode_task())[episode]
    seen = {e: set() for e in range(8)}
    for _ in range(20):
        drawn = others.draw(training, generator)
        assert (task[drawn] == task).all() and (episode[drawn] != episode).all()
        for a, b in zip(episode.tolist(), episode[drawn].tolist(), strict=True):
            seen[a].add(b)
    assert seen[0] == {2, 4, 6} and seen[5] == {1, 3, 7}
    few = training[(episode == 0) | (episode == 1) | (episode == 3)]
    with pytest.raises(ConfigError, match="push the puck"):
        OtherEpisodes(twice, few)


def test_what_it_sees_is_the_past_and_what_it_learns_the_future(tiny_companion, tmp_path):
    cfg = options(tiny_companion, tmp_path / "out", targets="shuffled", history_stride=2, eval_split=0.0)
    frames = CompanionFrames(open_companions(cfg.companion_names))
    training = ProphetTraining(cfg, frames, split_frames(frames, cfg), CPU)
    table, space = frames.companions[0].table, training.model.space
    index, target = torch.tensor([13, 20]), torch.tensor([30, 50])
    history, history_is_pad, future, _ = training._windows(index, target)
    assert history_is_pad.tolist() == [[True, True, False], [False] * 3]
    rows = space.standardise_rows(torch.tensor(table.latents[[16, 18, 20]]))
    torch.testing.assert_close(history[1], rows)
    torch.testing.assert_close(future[0], space.standardise_rows(torch.tensor(table.latents[[31, 32]])))
    own = training._windows(index, index)
    assert torch.equal(own[0], history) and not torch.equal(own[2], future)
    # the skill is always measured on the true future
    training.split.held_out = index
    assert training.skill()["copy_cosine"] == pytest.approx(
        float(torch.nn.functional.cosine_similarity(own[0][:, -1:].flatten(2), own[2].flatten(2), dim=-1).mean()),
        abs=1e-5,
    )


@pytest.fixture(scope="module")
def finished(tiny_companion, tmp_path_factory):
    """A finished run, conditioned, with a state loss."""
    out = tmp_path_factory.mktemp("prophet") / "run"
    prophet = ProphetConfig(d_model=16, n_layers=1, n_heads=2, dropout=0.1, use_state=True, use_language=True)
    train_prophet(options(tiny_companion, out, prophet=prophet, state_loss_weight=0.5, steps=40, plot=True))
    return out


def test_a_run_leaves_config_weights_and_curve(finished, capsys, tiny_companion):
    curve = [json.loads(line) for line in (finished / CURVE_FILE).read_text().splitlines()]
    assert [line["step"] for line in curve] == list(range(4, 44, 4))
    assert {"loss", "loss_state", "prophet_skill", "prophet_skill_1", "prophet_skill_2"} <= set(curve[-1])
    assert curve[-1]["loss"] < curve[0]["loss"] and curve[-1]["loss_state"] < curve[0]["loss_state"]
    assert not (finished / "state").exists() and (finished / "curve.png").stat().st_size > 5000
    made = ProphetCheckpoint.read(finished, "prophet.init_from")
    assert (made.n_obs_steps, made.n_future_steps, made.prophet.d_model, made.language.dim) == (3, 2, 16, 384)
    assert made.encoder == open_companion(root=tiny_companion.companion_root).spec
    weights = made.weights()
    states = CompanionFrames(open_companions([str(tiny_companion.companion_root)]), [tiny_companion.source_root]).states
    n_learned = len(json.loads((finished / CONFIG_FILE).read_text())["training"]["companions"][0]["episodes"])
    assert n_learned == 2 and weights.state_scale.shape == (states.shape[1],)
    assert not any(name.startswith("future_state") for name in load_file(finished / WEIGHTS_FILE))


def test_a_prophet_that_tells_states_learns_to_and_keeps_its_head(tiny_companion, tmp_path):
    prophet = ProphetConfig(d_model=16, n_layers=1, n_heads=2, use_state=True, tells_state=True)
    train_prophet(options(tiny_companion, tmp_path, prophet=prophet, state_loss_weight=1.0, steps=60))
    curve = [json.loads(line) for line in (tmp_path / CURVE_FILE).read_text().splitlines()]
    assert curve[-1]["loss_state"] < 0.8 * curve[0]["loss_state"] and -1 < curve[-1]["state_skill"] < 1
    weights = load_file(tmp_path / WEIGHTS_FILE)
    assert weights["prophet.displacement.weight"].abs().max() > 0
    assert not any(name.startswith("future_state") for name in weights)
    assert ProphetCheckpoint.read(tmp_path, "prophet.init_from").prophet.tells_state


def test_untrained_it_predicts_that_the_robot_stays(tiny_companion, tmp_path):
    prophet = ProphetConfig(d_model=16, n_layers=1, n_heads=2, use_state=True, tells_state=True)
    cfg = options(tiny_companion, tmp_path, prophet=prophet, state_loss_weight=1.0, steps=1, warmup_steps=0, lr=1e-12)
    train_prophet(cfg)
    skill = json.loads((tmp_path / CURVE_FILE).read_text().splitlines()[-1])["state_skill"]
    assert skill == pytest.approx(0, abs=1e-5)


def test_a_head_that_nothing_teaches_is_refused(tiny_companion, tmp_path):
    with pytest.raises(ConfigError, match="tells_state=true.*--state_loss_weight=1"):
        options(tiny_companion, tmp_path, prophet=ProphetConfig(tells_state=True))


def test_a_finished_run_is_not_run_again(finished, tiny_companion, capsys):
    before = (finished / WEIGHTS_FILE).read_bytes(), (finished / CURVE_FILE).read_bytes()
    prophet = ProphetConfig(d_model=16, n_layers=1, n_heads=2, dropout=0.1, use_state=True, use_language=True)
    train_prophet(options(tiny_companion, finished, prophet=prophet, state_loss_weight=0.5, steps=40))
    assert "frames ahead" in capsys.readouterr().out
    assert before == ((finished / WEIGHTS_FILE).read_bytes(), (finished / CURVE_FILE).read_bytes())
    with pytest.raises(ConfigError, match=r"training.lr: saved 0.003, asked for 0.1"):
        train_prophet(options(tiny_companion, finished, prophet=prophet, state_loss_weight=0.5, steps=40, lr=0.1))


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tiny_companion, tmp_path):
    steps = 60
    arguments = {
        "companions": tiny_companion.companion_root, "prophet.d_model": 16, "prophet.n_layers": 1,
        "prophet.n_heads": 2, "prophet.dropout": 0.1, "n_future_steps": 2, "steps": steps, "batch_size": 8,
        "eval_freq": 17, "save_freq": 10, "eval_split": 0.25, "warmup_steps": 2, "lr": 3e-3, "device": "cpu",
    }  # fmt: skip
    more = {name: arguments[name] for name in ("eval_freq", "save_freq", "steps")}
    out = tmp_path / "killed"
    words = [f"--output_dir={out}", *(f"--{name}={value}" for name, value in arguments.items())]
    done = run(main, *words, log=tmp_path / "log", at=At("os.rename", "resume.safetensors", nth=2))
    assert done.status == 128 + signal.SIGKILL
    assert (out / RESUME_FILE).exists() and (out / CONFIG_FILE).exists()  # it was killed on its way
    train_prophet(options(tiny_companion, out, **more))
    whole = tmp_path / "whole"
    train_prophet(options(tiny_companion, whole, **more))
    for name in (WEIGHTS_FILE, CURVE_FILE, CONFIG_FILE):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    other = tmp_path / "other"
    train_prophet(options(tiny_companion, other, seed=20261128, **more))  # positive control: bits depend on the draws
    assert (other / WEIGHTS_FILE).read_bytes() != (whole / WEIGHTS_FILE).read_bytes()


def test_a_run_taken_up_elsewhere_says_that_its_bits_differ(tiny_companion, tmp_path, capsys, monkeypatch):
    class Killed(Exception):
        pass

    save = ProphetTraining._save

    def save_and_die(self):
        save(self)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(ProphetTraining, "_save", save_and_die)
        patch.setattr(ProphetTraining, "_machine", lambda self: {"device": "cpu", "torch": "1.0", "threads": "64"})
        with pytest.raises(Killed):
            train_prophet(options(tiny_companion, tmp_path / "out"))
    train_prophet(options(tiny_companion, tmp_path / "out"))
    said = capsys.readouterr()
    assert "Going on from step 5 of 12" in said.out and "threads 64 ->" in said.err


def test_what_cannot_work_is_refused(tiny_companion, tmp_path, monkeypatch):
    for more, message in [
        ({"companions": ""}, "companions is empty"),
        ({"prophet": ProphetConfig(freeze=True)}, "options of policies"),
        ({"sources": "a,b"}, "names 2 folders for 1"),
        ({"eval_split": 1.0}, "eval_split=1.0"),
        ({"prophet": ProphetConfig(d_model=10, n_heads=4)}, "does not divide"),
        ({"companions": str(tiny_companion.source_root)}, "is a plain dataset"),
        ({"prophet": ProphetConfig(use_state=True), "sources": str(tmp_path)}, "--sources"),
        ({"episodes": "0", "future_stride": 20}, "leave none"),
        ({"output_dir": str(tiny_companion.source_root)}, "holds no Prophet"),
    ]:
        with pytest.raises(ConfigError, match=message):
            train_prophet(options(tiny_companion, tmp_path / "none", **more))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="one process"):
        train_prophet(options(tiny_companion, tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_companions_of_different_encoders_are_refused(tiny_companion, tmp_path):
    other = shutil.copytree(tiny_companion.companion_root, tmp_path / "other")
    with pytest.raises(ConfigError, match="holds the very latents of"):  # nothing held out would be unseen
        open_companions([str(tiny_companion.companion_root), str(other)])
    file = other / "meta/world_modality.json"
    info = json.loads(file.read_text())
    info["encoder"]["height_px"] = 64
    file.write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="height_px: 32 != 64.*--reuse_from"):
        open_companions([str(tiny_companion.companion_root), str(other)])
    info["encoder"] |= {"height_px": 32, "every": 3}
    file.write_text(json.dumps(info))
    with pytest.raises(ConfigError, match="future_stride=1: .*encoder.every=3.*a multiple of 3"):
        train_prophet(options(tiny_companion, tmp_path / "none", companions=str(other), history_stride=3))


def test_a_folder_without_a_prophet_is_refused(tiny_companion, tmp_path):
    with pytest.raises(ConfigError, match=r"trunk_init_from='.*nowhere'"):
        ProphetCheckpoint.read(tmp_path / "nowhere", "trunk_init_from")
    (tmp_path / CONFIG_FILE).write_text(json.dumps({"type": "act"}))
    with pytest.raises(ConfigError, match="of type 'act' and has no Prophet"):
        ProphetCheckpoint.read(tmp_path, "prophet.init_from")
