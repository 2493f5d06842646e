"""Somebody else's plugin declares a world memory for its own policy: examples/other_plugin, installed and trained."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


@pytest.mark.slow
def test_lerobot_train_discovers_and_trains_the_type_that_another_plugin_declares(
    tiny_companion, tmp_path, monkeypatch
):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(REPO / "examples" / "other_plugin", source, ignore=shutil.ignore_patterns("__pycache__"))
    install = ("install", "--no-deps", "--no-index", "--no-build-isolation", "--target", site, source)
    subprocess.run([sys.executable, "-m", "pip", *install], check=True, capture_output=True)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", str(REPO))]))
    output = tmp_path / "run"
    command = [
        sys.executable, "-m", "lerobot.scripts.lerobot_train", "--policy.type=mlp_chunk_world", "--policy.device=cpu",
        "--policy.push_to_hub=false", "--policy.n_future_steps=2",
        f"--policy.companion.root={tiny_companion.companion_root}",
        f"--dataset.repo_id={tiny_companion.source_repo_id}", f"--dataset.root={tiny_companion.source_root}",
        "--steps=3", "--batch_size=4", "--num_workers=0", "--log_freq=1", f"--output_dir={output}",
    ]  # fmt: skip
    # In an interpreter of its own: a fork of the tests' server would not look for the plugin anew.
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout + done.stderr
    assert "End of training" in printed and "world_gate" in printed

    # Its checkpoint acts in a process that knows of the type by discovery alone.
    checkpoint = output / "checkpoints" / "last" / "pretrained_model"
    program = f"""
import torch
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
config = PreTrainedConfig.from_pretrained({str(checkpoint)!r})
policy = get_policy_class(config.type).from_pretrained({str(checkpoint)!r})
preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path={str(checkpoint)!r})
images = {{name: torch.rand(3, 64, 64) for name in config.image_features}}
action = postprocess(policy.select_action(preprocess(images | {{"observation.state": torch.zeros(4), "task": "push"}})))
print("ACTION", type(policy).__name__, tuple(action.shape), bool(action.isfinite().all()))
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "ACTION MLPChunkWorldPolicy (1, 4) True" in said
