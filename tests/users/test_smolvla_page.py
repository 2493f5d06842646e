"""docs/smolvla_world.md and docs/libero.md as a researcher follows them, with tiny weights and another simulator."""

from pathlib import Path

import pytest
from lerobot.utils.constants import OBS_IMAGE

from tests.fixtures_datasets import make_dataset
from tests.plugin.smolvla_helpers import make_smolvla_checkpoint
from tests.users.pages import documented, run
from wm_tools.doctor.smolvlm_backbone import make_smolvlm

pytestmark = pytest.mark.sim


def test_from_smolvla_to_a_verdict(tmp_path: Path):
    dataset = make_dataset(tmp_path / "libero", "me/libero", cameras=[OBS_IMAGE], size=32)
    make_smolvla_checkpoint(tmp_path / "base", make_smolvlm(tmp_path / "vlm"), dataset.meta)
    small = {
        "--dataset.repo_id": "me/libero --dataset.root=libero", "--encoder.family": "efficientnet_lite0",
        "--encoder.pooling": "mean", "--encoder.pca_dim": "4 --num_workers=0",
        "--output.repo_id": "me/libero_world --output.root=libero_world",
        "--policy.init_from": "base --policy.device=cpu --num_workers=0",
        "--policy.companion.repo_id": "me/libero_world --policy.companion.root=libero_world",
        "--policy.n_action_steps": "2", "--batch_size": "4", "--steps": "2",
    }  # fmt: skip
    precompute, train = documented("smolvla_world.md", small)[:2]
    run(precompute, tmp_path)
    run(train, tmp_path)

    scene = {
        "--policy.path": "outputs/E2/checkpoints/last/pretrained_model", "--env.type": "metaworld_light",
        "--env.task": "drawer-close-v3 --env.episode_length=6 --env.observation_height=32 --env.observation_width=32",
        "--eval.n_episodes": "2",
    }  # fmt: skip
    evaluate = next(c for c in documented("libero.md", scene) if c[0] == "wm-eval" and "outputs/eval/libero_F" in c[-1])
    run([word for word in evaluate if not word.startswith("--env.task_ids")], tmp_path)
    printed = run(["wm-compare", "outputs/eval/libero_F"], tmp_path)
    assert "whether the memory is read" in printed or "that the memory is read" in printed
