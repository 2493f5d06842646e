"""What somebody loads who has a token, a source dataset, and nothing else; see test_hub.py."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from huggingface_hub import HfApi
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDataset
from lerobot.policies import make_policy, make_pre_post_processors
from lerobot.scripts import lerobot_eval
from safetensors.torch import load_file

from coc_tools.language_rows import labels_from_jsonl
from lerobot_policy_world_modality.evaluation import cli as wm_eval
from lerobot_policy_world_modality.intervention import cli as wm_intervene
from tests.conftest import TinyCompanion
from tests.hub.author import FRAMES, plan
from tests.hub.machine import OTHER_TOKEN, command, control, refusal
from world_modality_core.latents.companion import open_companion
from world_modality_core.studies.evidence.checkpoint import checkpoint_folder

LABELS = "hf://datasets/me/labels/labels.jsonl"


def main(tiny: list[str], shared: str, first: str, names: list[str]) -> dict:
    tiny, shared = TinyCompanion(tiny[0], Path(tiny[1]), Path(tiny[2])), Path(shared)
    return {
        "differences": policies(tiny, shared, names),
        "companion": companion(tiny, "me/source_world"),
        "pushed_world": companion(tiny, "me/pushed_world"),
        "labels": labels(tiny),
        "pinned": pinned(first),
        "commands": commands(tiny, first),
        "refused": refused(),
    }


def policies(tiny: TinyCompanion, shared: Path, names: list[str]) -> dict[str, float]:
    """Largest difference of each policy's actions from those of the machine that uploaded it."""
    expected, found = load_file(shared / "actions.safetensors"), {}
    dataset = LeRobotDataset(tiny.source_repo_id, root=tiny.source_root)
    for name in names:
        policy, preprocessor = load(name, dataset.meta, companion="me/source_world")
        actions = plan(policy, dataset, preprocessor)
        assert actions.shape == expected[name].shape and len(actions) == len(FRAMES)
        found[name] = float((actions - expected[name]).abs().max())
    return found


def load(name: str, meta, companion: str):
    """A policy and its preprocessor as `--policy.path=me/NAME` loads them, to train it on."""
    config = PreTrainedConfig.from_pretrained(f"me/{name}")
    assert getattr(config, "companion", None) is None or config.companion.root is None
    config.pretrained_path, config.companion.repo_id = Path(f"me/{name}"), companion
    policy = make_policy(config, ds_meta=meta)
    return policy, make_pre_post_processors(config, pretrained_path=f"me/{name}")[0]


def companion(tiny: TinyCompanion, name: str) -> dict:
    """The latents that arrive, against those that were written."""
    found, mine = open_companion(name), open_companion(root=tiny.companion_root)
    index, offsets = torch.arange(0, 63, 7), [-2, 0, 3]
    return {
        "root": str(found.root),
        "is_equal": bool((found.table.gather(index, offsets)[0] == mine.table.gather(index, offsets)[0]).all()),
        "spec": found.spec.spec_id == mine.spec.spec_id,
        "card": (found.root / "README.md").exists(),  # metadata and data are all that is fetched
    }


def labels(tiny: TinyCompanion) -> dict:
    meta = LeRobotDataset(tiny.source_repo_id, root=tiny.source_root).meta
    lookup = labels_from_jsonl(LABELS, meta)
    rows = LeRobotDataset("me/labelled").meta.features
    return {"texts": lookup.texts, "has_rows": "language_persistent" in rows}


def pinned(first: str) -> dict:
    """The branch, the first commit, and the main one, of a checkpoint that was uploaded several times."""
    folders = [checkpoint_folder("me/acting", revision) for revision in ("plain", first, None)]
    return {"results": ["the memory is read" in (folder / "README.md").read_text() for folder in folders]}


def commands(tiny: TinyCompanion, first: str) -> dict:
    env = ["--env.type=metaworld_light", "--env.task=drawer-close-v3", "--env.episode_length=6",
           "--env.observation_height=32", "--env.observation_width=32", "--eval.n_episodes=1", "--eval.batch_size=1",
           "--eval.use_async_envs=false", "--seed=100"]  # fmt: skip
    return {
        "lerobot-eval": command(lerobot_eval.main, "--policy.path=me/acting", "--output_dir=lerobot_eval", *env),
        "wm-eval": command(
            wm_eval.main, "--policy.path=me/acting", "--train_seed=0", "--arms=intact,gate_closed",
            "--output_dir=wm_eval", *env,
        ),
        "wm-eval, pinned": command(
            wm_eval.main, "--policy.path=me/acting", f"--policy.pretrained_revision={first}", "--train_seed=0",
            "--output_dir=wm_eval_pinned", *env,
        ),
        "wm-intervene": command(
            wm_intervene.main, "--policy.path=me/trained", f"--dataset.repo_id={tiny.source_repo_id}",
            f"--dataset.root={tiny.source_root}", "--companion.repo_id=me/source_world", "--output_dir=wm_intervene",
            "--allow_training_episodes=true", "--sources=zero", "--n_frames=8", "--n_bootstrap=100",
        ),
    }  # fmt: skip


def refused() -> dict:
    """What can't be loaded, and what is said."""
    told = {
        "wrong_repo": refusal(open_companion, "me/nothing"),
        "policy_as_companion": refusal(open_companion, "me/labels"),
        "plain_dataset": refusal(open_companion, "me/source_world_stripped"),
        "revision": refusal(open_companion, "me/source_world", revision="gone"),
        "no_checkpoint": refusal(checkpoint_folder, "me/nothing"),
        "no_file": refusal(list, labels_file("hf://datasets/me/labels/other.jsonl")),
        "no_path": refusal(list, labels_file("hf://datasets/me/labels")),
        "command": command(
            wm_intervene.main, "--policy.path=me/nothing", f"--output_dir={Path('x').absolute()}"
        )["error"],
        "eval_command": command(wm_eval.main, "--policy.path=me/nothing", "--env.type=metaworld_light")["error"],
        "eval_revision": command(
            wm_eval.main, "--policy.path=me/acting", "--policy.pretrained_revision=gone", "--env.type=metaworld_light"
        )["error"],
    }  # fmt: skip
    mine = os.environ["HF_TOKEN"]
    for name, token in (("private_no_token", ""), ("private_other_token", OTHER_TOKEN)):
        os.environ["HF_TOKEN"] = token
        told[name] = refusal(open_companion, "me/source_world_private")
        told[f"{name}_checkpoint"] = refusal(checkpoint_folder, "me/secret")
    os.environ["HF_TOKEN"] = mine
    for status in (429, 500):
        control(fails=status)
        told[str(status)] = refusal(open_companion, "me/labelled", revision="main")
        control(fails=0)
    HfApi().repo_info("me/source_world", repo_type="dataset")  # the switches are off again
    return told


def labels_file(name: str):
    from coc_tools.label_lines import iter_lines

    return iter_lines(name)
