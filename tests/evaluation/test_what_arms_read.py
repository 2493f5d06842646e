"""What `wm-eval` shows to each arm, whatever runs beside it or ran before: held against what it should read."""

import random
from collections import defaultdict

import pandas as pd
import pytest
import torch

from lerobot_policy_world_modality.evaluation import evaluate as module
from lerobot_policy_world_modality.evaluation.arms import MemoryArm
from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from lerobot_policy_world_modality.evaluation.evaluate import evaluate
from lerobot_policy_world_modality.evaluation.memory_bank import MemoryBank, pinned_generator
from tests.evaluation import helpers
from tests.evaluation.dots import DotsConfig
from tests.evaluation.helpers import FORECAST_ARMS, FORECAST_BANK_ARMS
from world_modality_core.studies.evidence.episode_records import EpisodeWriter

TASKS, STALE_PLANS = ("dark", "bright"), 2


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return helpers.make_checkpoint(tmp_path_factory.mktemp("policies") / "F_dots" / "pretrained_model")


def options(checkpoint, output_dir, arms, **changed) -> WorldEvalConfig:
    """Three scenes of each task, two at a time."""
    env = DotsConfig(**{name: changed.pop(name) for name in ("task",) if name in changed})
    return helpers.options(checkpoint, output_dir, env=env, arms=",".join(arms), stale_plans=STALE_PLANS, **changed)


class Witness:
    """Notes what was predicted for each plan of each episode, and what the policy's reader was given in its place."""

    def __init__(self, monkeypatch):
        self.predicted, self.read, self.current = (defaultdict(list) for _ in range(3))
        self.is_closed = {}
        make_policy, start, call = module.make_policy, MemoryArm.start, MemoryArm.__call__

        def make_watched(**options):
            policy = make_policy(**options)
            policy.memory.register_forward_pre_hook(self.note_read)
            return policy

        def note_start(arm, task, seeds):
            self.keys = [(arm.name, task, seed) for seed in seeds]
            for key in self.keys:
                for notes in (self.predicted, self.read, self.current):
                    notes[key] = []
            start(arm, task, seeds)

        def note_prediction(arm, memory, world_batch, shape):
            for i, key in enumerate(self.keys):
                self.predicted[key].append(memory.tokens[i].clone())
                self.current[key].append(world_batch.current[i].clone())
            return call(arm, memory, world_batch, shape)

        monkeypatch.setattr(module, "make_policy", make_watched)
        monkeypatch.setattr(MemoryArm, "start", note_start)
        monkeypatch.setattr(MemoryArm, "__call__", note_prediction)

    def note_read(self, reader, args):
        for i, key in enumerate(self.keys):
            self.read[key].append(args[1][i].clone())
            self.is_closed[key] = reader.gate.is_closed

    def check(self, rows: pd.DataFrame, folder, n_scenes: int = 3) -> None:
        """Hold what every episode read against what it should have read."""
        bank = MemoryBank(folder, [(task, seed) for task in TASKS for seed in range(100, 100 + n_scenes)])
        for row in rows.itertuples():
            key = (row.arm, row.task, row.seed)
            read = torch.stack(self.read[key][: row.n_plans])
            torch.testing.assert_close(
                read, self.should_read(bank, key, row.n_plans), msg=lambda text, key=key: f"{key}: {text}"
            )
            assert self.is_closed[key] == (row.arm == "gate_closed")

    def should_read(self, bank: MemoryBank, key, n_plans: int) -> torch.Tensor:
        arm, task, seed = key
        own = torch.stack(self.predicted[key][:n_plans])
        plans = torch.arange(n_plans)
        match arm:
            case "intact" | "gate_closed":
                return own
            case "zero":
                return torch.zeros_like(own)
            case "random":
                noise = torch.stack(
                    [
                        torch.randn(own.shape[1:], generator=pinned_generator(0, "random", task, seed, plan))
                        for plan in range(n_plans)
                    ]
                )
                return noise / noise.norm(dim=-1, keepdim=True) * own.norm(dim=-1, keepdim=True)
            case "copy_current":
                current = torch.stack(self.current[key][:n_plans])  # (plans, p, d)
                return current.repeat(1, own.shape[1] // current.shape[1], 1)
            case "reversed":
                k = own.shape[1] // self.current[key][0].shape[0]  # steps of p tokens
                return own.unflatten(1, (k, -1)).flip(1).flatten(1, 2)
            case "stale":
                return own[(plans - STALE_PLANS).clamp(min=0)]
        other = bank.draw_scene(arm, task, seed, draw_seed=0)
        assert other != (task, seed)
        assert {"shuffle_within_task": other[0] == task, "wrong_task": other[0] != task}.get(arm, True)
        shown = torch.stack(self.predicted["intact", *other][: self.n_plans["intact", *other]])
        return shown[plans.clamp(max=len(shown) - 1)].half().float()

    def evaluate(self, cfg) -> pd.DataFrame:
        rows = evaluate(cfg)
        self.n_plans = {(row.arm, row.task, row.seed): row.n_plans for row in rows.itertuples()}
        return rows


@pytest.fixture
def witness(monkeypatch):
    return Witness(monkeypatch)


RESULTS = ["arm", "task", "seed", "success", "steps", "sum_reward", "gate", "attention_entropy"]


def sorted_results(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[RESULTS].sort_values(["arm", "task", "seed"], ignore_index=True)


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    """Rows of all arms, each run in a folder of its own (with `intact`, where it borrows)."""
    rows = {}
    for arm in FORECAST_ARMS:
        arms = ("intact", arm) if arm in FORECAST_BANK_ARMS else (arm,)
        rows[arm] = evaluate(options(checkpoint, tmp_path_factory.mktemp(arm), arms)).query("arm == @arm")
    return sorted_results(pd.concat(rows.values()))


def any_order(seed: int) -> tuple[str, ...]:
    return tuple(random.Random(seed).sample(FORECAST_ARMS, len(FORECAST_ARMS)))


@pytest.mark.parametrize(
    "commands",
    [
        (FORECAST_ARMS,),
        (tuple(reversed(FORECAST_ARMS)),),
        ((*(arm for arm in FORECAST_ARMS if arm != "stale"), "stale"),),
        (any_order(0),),
        (any_order(1),),
        # More arms asked for later, in the same folder.
        (("stale", "wrong_task", "intact"), any_order(2)),
        (("intact", "shuffle"), ("stale",), ("stale", "random", "shuffle_within_task"), any_order(3)),
    ],
    ids=lambda commands: "+".join(",".join(arms) for arms in commands),
)
def test_every_arm_reads_what_it_says(checkpoint, alone, witness, tmp_path, commands):
    for arms in commands:
        rows = witness.evaluate(options(checkpoint, tmp_path, arms))
    assert len(rows) == len(FORECAST_ARMS) * 6
    # Else nothing here could fail: memories differ between plans, scenes and tasks, and episodes end at several times.
    assert rows.query("arm == 'intact'")["n_plans"].nunique() > 1
    memories = torch.stack(
        [torch.stack(witness.predicted["intact", task, seed][:2]) for task in TASKS for seed in (100, 101)]
    )
    assert torch.pdist(memories.flatten(0, 1).flatten(1)).min() > 0.1
    witness.check(rows, tmp_path)
    pd.testing.assert_frame_equal(sorted_results(rows), alone)


def test_a_batch_that_was_cut_off_leaves_no_memories_behind(checkpoint, alone, witness, tmp_path, monkeypatch):
    """Killed between its memories and its rows, at the second batch of intact."""
    write, written = EpisodeWriter.write, []

    def stop_at_second(self, rows):
        if written:
            raise KeyboardInterrupt
        written.append(write(self, rows))

    with monkeypatch.context() as patch:
        patch.setattr(EpisodeWriter, "write", stop_at_second)
        with pytest.raises(KeyboardInterrupt):
            witness.evaluate(options(checkpoint, tmp_path, ["intact", "shuffle"]))
    assert len(list(tmp_path.glob("memory_bank/*/*"))) == 3  # of which one episode is not recorded
    rows = witness.evaluate(options(checkpoint, tmp_path, ["intact", "shuffle"]))
    pd.testing.assert_frame_equal(
        sorted_results(rows), alone.query("arm in ('intact', 'shuffle')").reset_index(drop=True)
    )
    assert len(list(tmp_path.glob("memory_bank/*/*"))) == 6


def test_stale_needs_no_bank(checkpoint, witness, tmp_path):
    rows = witness.evaluate(options(checkpoint, tmp_path, ["stale"]))
    assert len(rows) == 6 and not (tmp_path / "memory_bank").exists()
    witness.check(rows, tmp_path)
