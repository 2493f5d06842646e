"""What somebody with an account uploads; see test_hub.py."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from lerobot.configs.default import DatasetConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.scripts import lerobot_train
from safetensors.torch import save_file

from coc_tools.dataset_writer import write_copy
from coc_tools.episodes import EpisodeReader
from coc_tools.store import LabelFile
from tests.coc.helpers import label_of
from tests.conftest import TinyCompanion
from tests.evaluation.helpers import make_checkpoint
from tests.hub.machine import OTHER_TOKEN, command, control
from tests.plugin import helpers, qwen_helpers, smolvla_helpers
from tests.studies.report.synthetic import VERSIONS, episode
from wm_tools.doctor.qwen_backbone import make_qwen
from wm_tools.doctor.smolvlm_backbone import make_smolvlm
from wm_tools.push import cli as wm_push
from world_modality_core.precompute import cli as precompute
from world_modality_core.studies.evidence.checkpoint import checkpoint_hash
from world_modality_core.studies.evidence.episode_records import EpisodeWriter, write_eval_info

FRAMES = [3, 20]


def main(tiny: list[str], shared: str) -> dict:
    tiny, shared = TinyCompanion(tiny[0], Path(tiny[1]), Path(tiny[2])), Path(shared)
    vlms = {"smolvla_world": make_smolvlm(shared / "smolvlm", save_weights=True),
            "qwen_world_fplus": make_qwen(shared / "qwen")}  # fmt: skip
    told = {"companion": push_companion(tiny, shared)}
    push_policies(tiny, shared, vlms)
    told["pushed_world"] = command(wm_push.main, str(tiny.companion_root), "--repo_id=me/pushed_world")
    told["trained"] = train(tiny)
    told |= push_labels(tiny)
    told |= push_checkpoint(shared)
    told |= refused(shared)
    return told


def push_companion(tiny: TinyCompanion, shared: Path) -> dict:
    """`wm-precompute` finds the companion finished and uploads it, with a copy of the source that has no images."""
    root = shutil.copytree(tiny.companion_root, shared / "companion")
    return command(
        precompute.main,
        f"--dataset.repo_id={tiny.source_repo_id}", f"--dataset.root={tiny.source_root}", f"--output.root={root}",
        "--output.repo_id=me/source_world", "--encoder.family=efficientnet_lite0", "--encoder.height_px=32",
        "--encoder.width_px=32", "--encoder.pca_dim=8", "--tokens.n_codes=8", "--device=cpu", "--strip_images",
        "--push_to_hub", "--private",
    )  # fmt: skip


def push_policies(tiny: TinyCompanion, shared: Path, vlms: dict[str, Path]) -> None:
    """Every type, and an adapter, as the last lines of lerobot-train do it; and the actions of each."""
    actions = {}
    for kind in [*helpers.TYPES, *vlms]:
        if kind in helpers.TYPES:
            policy, dataset, processors = helpers.build(tiny, kind)
        else:
            made = {"smolvla_world": smolvla_helpers, "qwen_world_fplus": qwen_helpers}[kind]
            policy, dataset, processors = made.build(tiny, vlms[kind])
        helpers.open_gates(policy, 0.2)
        actions[kind] = push_policy(policy, dataset, processors, kind, tiny, shared)
        if kind == "smolvla_world":
            policy.config.pretrained_path = "me/smolvla_world"
            adapter = policy.wrap_with_peft(peft_cli_overrides={"method_type": "LORA", "r": 4})
            actions["adapter"] = push_policy(adapter, dataset, processors, "adapter", tiny, shared, is_adapter=True)
    save_file(actions, shared / "actions.safetensors")


def push_policy(policy, dataset, processors, name: str, tiny: TinyCompanion, shared: Path, is_adapter: bool = False):
    config = policy.config
    config.repo_id, config.push_to_hub = f"me/{name}", True
    cfg = TrainPipelineConfig(
        DatasetConfig(tiny.source_repo_id, root=str(tiny.source_root)),
        policy=config,
        steps=7,
        output_dir=shared / "out",
    )
    before = (str(config.companion.root), cfg.dataset.root)
    policy.push_model_to_hub(cfg, peft_model=policy if is_adapter else None, dataset_meta=dataset.meta)
    assert (str(config.companion.root), cfg.dataset.root) == before, "what is uploaded must not change what trains"
    for processor in processors:
        processor.push_to_hub(config.repo_id)
    return plan(policy, dataset, processors[0])


def plan(policy, dataset, preprocessor) -> torch.Tensor:
    """(2, h, a) actions at two recorded frames."""
    policy.eval()
    policy.reset()
    torch.manual_seed(5)  # SmolVLA draws noise
    return policy.predict_action_chunk(helpers.live_batch(dataset, preprocessor, FRAMES)).contiguous()


def train(tiny: TinyCompanion) -> dict:
    """LeRobot's own command, which uploads at its end."""
    return command(
        lerobot_train.main,
        f"--dataset.repo_id={tiny.source_repo_id}", f"--dataset.root={tiny.source_root}", "--policy.type=world_F",
        f"--policy.companion.root={tiny.companion_root}", "--policy.push_to_hub=true", "--policy.repo_id=me/trained",
        "--policy.private=true", "--policy.license=mit", "--output_dir=train", "--steps=2", "--batch_size=4",
        "--num_workers=0", "--save_freq=2", "--env_eval_freq=0",
        *(f"--policy.{name}={value}" for name, value in helpers.SMALL.items() if name != "push_to_hub"),
    )  # fmt: skip


def push_labels(tiny: TinyCompanion) -> dict:
    """A label file, and a copy of the dataset that has them as rows."""
    reader, path = EpisodeReader(tiny.source_repo_id, str(tiny.source_root)), Path("labels.jsonl")
    with LabelFile(path) as labels:
        for episode in range(len(reader)):
            labels.append(label_of(reader, episode))
        write_copy(tiny.source_root, Path("labelled"), labels)
    Path("labelled/meta/notes.json").write_text('"mine"')
    return {
        "labels": command(wm_push.main, "labels.jsonl", "--repo_id=me/labels", "--license=cc-by-4.0"),
        "labelled": command(wm_push.main, "labelled", "--repo_id=me/labelled"),
    }


def push_checkpoint(shared: Path) -> dict:
    """`wm-push`: a checkpoint with results; an upload that breaks, is given again, and is given again."""
    folder = make_checkpoint(shared / "acting", "world_F")
    for name in ("notes.json", "notes.safetensors", "notes.yaml"):
        (folder / name).write_text('"mine"')
    write_evaluation(Path("eval"), checkpoint_hash(folder))
    write_evaluation(Path("other"), "another")
    told = {"foreign": command(wm_push.main, str(folder), "--repo_id=me/acting", "--eval", "other")}
    given = [str(folder), "--repo_id=me/acting", "--private", "--eval", "eval"]
    told["dry"] = command(wm_push.main, *given, "--dry_run")
    control(drops=1)
    told["dropped"] = command(wm_push.main, str(folder), "--repo_id=me/dropped")
    control(fails_commits=500)
    told["broken"] = command(wm_push.main, *given)
    control(fails_commits=0)
    told["mended"] = command(wm_push.main, *given)
    told["again"] = command(wm_push.main, *given)
    told["branch"] = command(wm_push.main, str(folder), "--repo_id=me/acting", "--branch=plain")
    return told


def write_evaluation(folder: Path, sha256: str) -> None:
    """As `wm-eval` writes one: intact succeeds in 18 of 20 scenes, with another episode's memory in 8."""
    writer = EpisodeWriter(folder)
    for arm, n in (("intact", 18), ("shuffle_within_task", 8)):
        writer.write([episode("F", 0, arm, "push-v3", 100 + i, i < n, checkpoint=sha256, gate=0.2) for i in range(20)])
    writer.finish()
    info = {"model": "F", "train_seed": 0, "arms": ["intact", "shuffle_within_task"], "command": ["wm-eval"]}
    write_eval_info(folder, info | {"versions": VERSIONS})


def refused(shared: Path) -> dict:
    """What can't be uploaded, and what is said."""

    def push(path: str = str(shared / "acting"), repo_id: str = "me/refused", *more: str) -> str:
        return command(wm_push.main, path, f"--repo_id={repo_id}", *more)["error"]

    told = {
        "public": push(str(shared / "acting"), "me/dropped", "--private"),
        "theirs": push(repo_id="you/F"),
        "name": push(repo_id="me/a b"),
        "no_user": push(repo_id="F"),
        "nothing": push("nowhere"),
        "plain": push(str(shared)),
    }
    mine = os.environ["HF_TOKEN"]
    for name, token in (("wrong_token", OTHER_TOKEN[:-1]), ("no_token", "")):
        os.environ["HF_TOKEN"] = token
        told[name] = push()
    os.environ["HF_TOKEN"] = mine
    for status in (429, 500):
        control(fails=status)
        told[str(status)] = push()
        control(fails=0)
    return {"refused": told}
