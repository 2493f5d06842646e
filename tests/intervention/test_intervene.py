"""`wm-intervene` on tiny checkpoints of every policy type."""

import json
import shutil
import sys

import numpy as np
import pandas as pd
import pytest
from lerobot.datasets import LeRobotDatasetMetadata

from lerobot_policy_world_modality.intervention import cli
from lerobot_policy_world_modality.intervention.unseen_episodes import Checkpoint, choose_episodes
from tests.intervention.helpers import HELD_OUT, make_checkpoint, options_for, run, save_checkpoint, stir
from tests.plugin import qwen_helpers, smolvla_helpers
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from world_modality_core.configs import MemoryConfig, PastConfig
from world_modality_core.io.errors import ConfigError
from world_modality_core.latents.fingerprint import SourceFingerprint
from world_modality_core.memory.sources import PAST_SOURCES, TESTED_SOURCES, MemorySource
from world_modality_core.precompute.precompute_options import SourceConfig

N_FRAMES = 17 + 14 + 20  # of the held-out episodes
CORRUPT = [source for source in TESTED_SOURCES if source is not MemorySource.pred]


@pytest.fixture(scope="module")
def checkpoints(tiny_companion, tmp_path_factory):
    folder, past = tmp_path_factory.mktemp("checkpoints"), MemoryConfig(past=PastConfig(n_frames=4))
    return {
        "open": make_checkpoint(folder / "open", tiny_companion, gate=0.5, memory=past),
        "shut": make_checkpoint(folder / "shut", tiny_companion, gate=0.0, memory=past),
    }


@pytest.fixture(scope="module")
def opened(checkpoints, tmp_path_factory):
    folder = tmp_path_factory.mktemp("opened") / "record"
    return folder, run(checkpoints["open"], folder, plot=True)


def test_an_open_gate_shows_in_every_source(opened):
    _, record = opened
    assert record["own_memory"] == "pred" and record["gate"] == pytest.approx(np.tanh(0.5), abs=1e-6)
    assert set(record["sources"]) == set(TESTED_SOURCES) and not record["skipped"]
    assert record["sources"]["pred"]["ratio"] == 1.0 and record["sources"]["pred"]["chunk_change"] == 0.0
    for source in CORRUPT:
        row = record["sources"][source]
        is_subtle = source is MemorySource.past_reversed  # few frames, much alike
        least = 1e-7 if is_subtle else 1e-5
        assert abs(row["ratio"] - 1) > least and row["chunk_change"] > 100 * least, source
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"], source
    assert sum(record["attention_mass"]) == pytest.approx(1)
    assert len(record["attention_mass"]) == len(record["skill"]) == 2 and len(record["rollout_error"]) == 8


def test_a_shut_gate_shows_nothing_and_is_not_called_robust(checkpoints, tmp_path):
    record = run(checkpoints["shut"], tmp_path / "record", rollout_rounds=1)
    assert record["gate"] == 0 and "the gate never opened" in record["gate_note"]
    for source in CORRUPT:
        row = record["sources"][source]
        assert row["ratio"] == row["ratio_low"] == row["ratio_high"] == 1.0, source
        assert row["chunk_change"] == 0.0 and "the gate is shut" in row["reading"]


def test_only_frames_that_a_source_has_a_memory_for_count(opened):
    folder, record = opened
    frames = {source: row["frames"] for source, row in record["sources"].items()}
    assert frames["pred"] == frames["zero"] == frames["wrong_task"] == frames["shuffle"] == N_FRAMES
    assert frames["shuffle_within_task"] == 17 + 20  # the third episode is alone with its task
    assert frames["oracle"] == N_FRAMES - 3  # nothing comes after the last frame of an episode
    assert frames["stale"] == N_FRAMES - 3 * 8  # 4 plans of 2 actions
    rows = pd.read_parquet(folder / "interventions.parquet")
    assert set(rows["source"]) == set(TESTED_SOURCES) and set(rows["train_seed"]) == {7}
    assert rows[rows["source"] == "stale"].set_index("episode")["frames"].to_dict() == {1: 9, 2: 6, 3: 12}
    for source, row in record["sources"].items():
        mine = rows[rows["source"] == source]
        assert row["error"] == pytest.approx(mine["error"].sum() / mine["frames"].sum())
        assert row["ratio"] == pytest.approx(mine["error"].sum() / mine["clean_error"].sum())
    assert (folder / "interventions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("policy_type", ["world_A", "world_B", "world_B_cont", "world_C"])
def test_types_without_a_memory_say_so(policy_type, tiny_companion, tmp_path):
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tiny_companion, policy_type)
    record = run(checkpoint, tmp_path / "record")
    assert list(record["sources"]) == ["none"] and record["sources"]["none"]["error"] > 0
    assert record["gate"] is None and record["attention_mass"] is None
    assert set(record["skipped"].values()) == {f"{policy_type} reads no memory"}
    has_tokens, has_skill = policy_type in ("world_B", "world_C"), policy_type == "world_B_cont"
    assert (record["token_accuracy"] is not None) == has_tokens and (record["skill"] is not None) == has_skill
    assert record["rollout_error"] is None
    if has_tokens:
        assert all(0 <= share <= 1 for share in record["token_accuracy"]) and len(record["tokens"]) == 2


@pytest.mark.parametrize(
    "memory, options, tried, says",
    [
        ({"past": PastConfig(3, 2)}, {"n_future_steps": 0}, set(PAST_SOURCES), {"zero": "holds no forecast"}),
        ({"use_current": True}, {"n_future_steps": 0}, set(), {"past_zero": "holds no past", "oracle": "no forecast"}),
        ({"past": PastConfig(3, source="past_zero")}, {}, {"zero", "oracle"}, {"past_frozen": "past_zero anyway"}),
    ],
    ids=["past only", "current only", "past that says less"],
)
def test_a_memory_is_asked_for_what_it_holds(tiny_companion, tmp_path, memory, options, tried, says):
    checkpoint = make_checkpoint(tmp_path / "policy", tiny_companion, memory=MemoryConfig(**memory), **options)
    record = run(checkpoint, tmp_path / "record", n_frames=24, rollout_rounds=1)
    assert set(record["sources"]) >= tried | {"pred", "gate_closed"}
    assert not set(record["sources"]) & set(says)
    for source, reason in says.items():
        assert reason in record["skipped"][source]
    for source in tried:
        assert record["sources"][source]["chunk_change"] > 0, source


def test_a_memory_of_states_without_a_gate(tiny_companion, tmp_path):
    memory = MemoryConfig(entry="appended", content="hidden")
    checkpoint = make_checkpoint(tmp_path / "checkpoint", tiny_companion, memory=memory)
    record = run(checkpoint, tmp_path / "record", rollout_rounds=1)
    assert set(record["skipped"]) == {"random", "copy_current", "oracle", "gate_closed", *PAST_SOURCES}
    assert record["skipped"]["past_zero"] == "its memory holds no past"
    assert "memory.content=hidden" in record["skipped"]["oracle"] and record["gate"] is None
    for source in ("zero", "shuffle", "stale", "wrong_task"):
        assert record["sources"][source]["chunk_change"] > 0, source


def make_vla(policy_type, tiny_companion, folder, **options):
    """A checkpoint of a VLA on a tiny backbone."""
    if policy_type == "smolvla_world":
        vlm = make_smolvlm(folder / "vlm", save_weights=True)
        options = {"fusion": smolvla_helpers.fusion("f1", "f3a", "f3b")} | options
        policy, _, processors = smolvla_helpers.build(tiny_companion, vlm, **options)
    else:
        policy, _, processors = qwen_helpers.build(tiny_companion, make_qwen(folder / "vlm"), **options)
    stir(policy, 0.5)
    return save_checkpoint(folder / "checkpoint", tiny_companion, policy, processors)


@pytest.mark.parametrize("policy_type", ["smolvla_world", "qwen_world_fplus"])
def test_vlas_run_with_the_same_noise_for_all_memories(policy_type, tiny_companion, tmp_path):
    checkpoint = make_vla(policy_type, tiny_companion, tmp_path)
    record = run(checkpoint, tmp_path / "record", sources="pred,zero,oracle,stale,gate_closed", n_frames=20)
    assert record["frames"] == 20 and record["sources"]["pred"]["ratio"] == 1.0
    for source in ("zero", "oracle", "stale", "gate_closed"):
        assert record["sources"][source]["chunk_change"] > 0, source
    assert len(record["skill"]) == 2 and len(record["readers"]) == (3 if policy_type == "smolvla_world" else 1)
    # The plans of a second run of the same memory are the first's, so that what differs is the memory.
    (tmp_path / "record/parts/zero.parquet").unlink()
    again = run(checkpoint, tmp_path / "record", sources="pred,zero", n_frames=20)
    assert again["sources"]["zero"] == record["sources"]["zero"]


def test_a_vla_without_a_world_has_its_clean_error(tiny_companion, tmp_path):
    checkpoint = make_vla("qwen_world_fplus", tiny_companion, tmp_path, **qwen_helpers.E0)
    record = run(checkpoint, tmp_path / "record", n_frames=16)
    assert list(record["sources"]) == ["none"] and record["skill"] is None and record["rollout_error"] is None


def test_what_is_done_is_not_done_again(opened, checkpoints):
    folder, record = opened
    parts = folder / "parts"
    before = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    for path in (parts / "zero.parquet", folder / "interventions.json"):  # as a killed run leaves them
        path.unlink()
    (parts / "zero.parquet.partial").write_text("half a tab")
    again = run(checkpoints["open"], folder, plot=True)
    after = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.parquet")}
    assert {name for name in before if before[name] != after[name]} == {"zero.parquet"}
    assert again["sources"] == record["sources"] == json.loads((folder / "interventions.json").read_text())["sources"]


def test_another_checkpoint_or_other_options_are_refused(opened, checkpoints, tmp_path):
    folder, _ = opened
    with pytest.raises(ConfigError, match="holds the numbers of another run.*checkpoint_hash"):
        run(checkpoints["shut"], folder)
    with pytest.raises(ConfigError, match="n_frames: saved 0, asked for 5"):
        run(checkpoints["open"], folder, n_frames=5)
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty and no folder of wm-intervene"):
        run(checkpoints["open"], tmp_path)


def test_a_companion_that_is_missing_leaves_no_folder(checkpoints, tmp_path):
    cfg = options_for(checkpoints["open"], tmp_path / "record")
    cfg.companion.root = str(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="there is no dataset; write it with wm-precompute"):
        cli.intervene(cfg)
    assert not (tmp_path / "record").exists()


def choose(checkpoint, tiny_companion, wanted=None, allow_training=False):
    dataset = SourceConfig(tiny_companion.source_repo_id, str(tiny_companion.source_root))
    return choose_episodes(Checkpoint.open(str(checkpoint)), dataset, 4, wanted, allow_training)


def test_episodes_that_training_saw_are_refused(checkpoints, tiny_companion):
    checkpoint = checkpoints["open"]
    with pytest.raises(ConfigError, match=r"episodes=\[0\] were trained on.*--allow_training_episodes"):
        choose(checkpoint, tiny_companion, [0, 1])
    with pytest.raises(ConfigError, match=r"episodes=\[4\]: 'tests/source' has the episodes 0 to 3"):
        choose(checkpoint, tiny_companion, [4])
    episodes, held_out = choose(checkpoint, tiny_companion, [1, 0], allow_training=True)
    assert episodes == [0, 1] and "training saw 1 of them" in held_out
    episodes, held_out = choose(checkpoint, tiny_companion, [3, 3])
    assert episodes == [3] and "training saw none of them" in held_out


def test_one_episode_has_no_interval(checkpoints, tmp_path):
    record = run(checkpoints["open"], tmp_path / "record", episodes=[3], sources="zero", rollout_rounds=1)
    assert record["episode_indices"] == [3] and record["sources"]["zero"]["ratio_low"] is None
    assert "at least 2 episodes" in record["sources"]["zero"]["reading"]


def edit_train_config(checkpoint, **dataset):
    path = checkpoint / "train_config.json"
    config = json.loads(path.read_text())
    config["dataset"] |= dataset
    path.write_text(json.dumps(config))


def test_the_default_episodes_are_what_training_held_back(checkpoints, tiny_companion, tmp_path):
    checkpoint = shutil.copytree(checkpoints["open"], tmp_path / "checkpoint")
    assert choose(checkpoint, tiny_companion)[0] == HELD_OUT
    edit_train_config(checkpoint, episodes=None, eval_split=0.5)  # the last half per task
    assert choose(checkpoint, tiny_companion)[0] == [2, 3]
    edit_train_config(checkpoint, episodes=[0, 1, 2], eval_split=0.5)
    assert choose(checkpoint, tiny_companion)[0] == [1, 2, 3]
    edit_train_config(checkpoint, episodes=None, eval_split=0.0)
    with pytest.raises(ConfigError, match="all 4 episodes of 'tests/source' were trained on"):
        choose(checkpoint, tiny_companion)


def test_a_dataset_of_another_name_may_be_a_copy(checkpoints, tiny_companion, tmp_path):
    checkpoint = shutil.copytree(checkpoints["open"], tmp_path / "checkpoint")
    edit_train_config(checkpoint, repo_id="somebody/else", root=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="copies of another; name --episodes"):
        choose(checkpoint, tiny_companion)
    with pytest.raises(ConfigError, match="dataset.repo_id='somebody/else'.*cannot be opened"):
        run(checkpoint, tmp_path / "record")
    assert choose(checkpoint, tiny_companion, [2])[0] == [2]
    # Where the other one is here, it is known whether it is a copy.
    other = tmp_path / "other"
    (other / "meta").mkdir(parents=True)
    (other / "meta/info.json").write_text("{}")
    edit_train_config(checkpoint, root=str(other), episodes=[0])
    assert choose(checkpoint, tiny_companion)[0] == [0, 1, 2, 3]
    source = LeRobotDatasetMetadata(tiny_companion.source_repo_id, root=tiny_companion.source_root)
    SourceFingerprint.of(source).write(other)
    assert choose(checkpoint, tiny_companion)[0] == [1, 2, 3]
    (checkpoint / "train_config.json").unlink()
    with pytest.raises(ConfigError, match="the episodes that it was trained on are unknown"):
        choose(checkpoint, tiny_companion)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sources": "zero,oracel"}, r"sources='zero,oracel': unknown \['oracel'\]; there are pred, oracle, zero"),
        ({"batch_size": 1}, "batch_size=1: expected at least 2"),
        ({"stale_plans": 0}, "stale_plans=0: expected at least 1"),
    ],
)
def test_bad_options_are_named(checkpoints, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        run(checkpoints["open"], tmp_path / "record", **options)
    assert not (tmp_path / "record").exists()


def test_the_command(checkpoints, tiny_companion, tmp_path, monkeypatch, capsys):
    command = [
        "wm-intervene", f"--policy.path={checkpoints['open']}", f"--dataset.repo_id={tiny_companion.source_repo_id}",
        f"--dataset.root={tiny_companion.source_root}", f"--companion.root={tiny_companion.companion_root}",
        f"--output_dir={tmp_path / 'record'}", "--sources=zero", "--episodes=[0,1]", "--allow_training_episodes",
        "--n_frames=12", "--rollout_rounds=1", "--n_bootstrap=100", "--model=F_k2", "--seed=3",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", command)
    cli.main()
    record = json.loads((tmp_path / "record/interventions.json").read_text())
    assert record["model"] == "F_k2" and record["frames"] == 12 and list(record["sources"]) == ["pred", "zero"]
    printed = capsys.readouterr().out
    assert "12 frames of 2 episodes" in printed and "zero" in printed and "open loop" in printed
    monkeypatch.setattr(sys, "argv", ["wm-intervene", f"--policy.path={tmp_path}", "--output_dir=x"])
    with pytest.raises((SystemExit, ConfigError), match="policy.path="):
        cli.main()
