"""Code of a model's repository runs only where somebody typed so, in the very command: no file can ask for it."""

import json
import shutil
import sys

import pytest
from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.policies import get_policy_class, make_policy

from lerobot_policy_world_modality.hub.policy_option import read_policy_option
from lerobot_policy_world_modality.intervention import cli as wm_intervene
from tests.evaluation.helpers import make_checkpoint as make_acting
from tests.evaluation.helpers import options as eval_options
from tests.faults.commands import run
from tests.intervention.helpers import make_checkpoint, save_checkpoint
from tests.plugin import qwen_helpers
from tests.security.test_checkpoints import code_that_marks, edit
from wm_tools.doctor.qwen_backbone import make_qwen
from world_modality_core.io.errors import ConfigError
from world_modality_core.studies.matrix.expand import expand
from world_modality_core.studies.matrix.study import load_study

TYPED = "--policy.trust_remote_code=true"


@pytest.fixture(scope="module")
def clean(tiny_companion, tmp_path_factory):
    """A checkpoint of qwen_world_fplus; its backbone lies beside it."""
    base = tmp_path_factory.mktemp("clean")
    policy, _, processors = qwen_helpers.build(
        tiny_companion, make_qwen(base / "vlm"), lambda_world=0, use_memory=False
    )
    return save_checkpoint(base / "pretrained_model", tiny_companion, policy, processors)


@pytest.fixture(params=["processor", "config"])
def checkpoint(clean, tmp_path, request):
    """A checkpoint whose config asks to trust the code of a backbone that leaves a marker."""
    base = shutil.copytree(clean.parent, tmp_path / "evil")
    (base / "vlm/evil.py").write_text(code_that_marks(tmp_path / "marker"))
    if request.param == "processor":
        told = {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}
        edit(base / "vlm/processor_config.json", lambda content: content.update(told))
    else:
        told = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}
        edit(base / "vlm/config.json", lambda content: content.update(told))
    asks = {"trust_remote_code": True, "vlm_backbone": str(base / "vlm")}
    edit(base / "pretrained_model/config.json", lambda content: content.update(asks))
    return base / "pretrained_model"


def test_a_checkpoint_cannot_ask_for_code(checkpoint, tmp_path):
    options = (f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'out'}", "--n_frames=8")
    done = run(wm_intervene.main, *options, log=tmp_path / "log")
    assert done.status == 1 and f"type {TYPED} if you trust it" in done.err.splitlines()[-1]
    assert not (tmp_path / "marker").exists()
    run(wm_intervene.main, *options, TYPED, log=tmp_path / "log")
    assert (tmp_path / "marker").exists()


def test_what_is_typed_is_not_saved_and_what_was_saved_is_not_read(clean, tmp_path, monkeypatch):
    edit(clean / "config.json", lambda content: content.update(trust_remote_code=True))  # as old checkpoints have it
    config = PreTrainedConfig.from_pretrained(clean)
    assert not config.runs_remote_code and not config.trust_remote_code
    get_policy_class(config.type).from_pretrained(clean, config=config)  # needs no code
    for argv, expected in (([TYPED], True), (["--policy.trust_remote_code=false"], False), (["--policy.x=1"], False)):
        monkeypatch.setattr(sys, "argv", ["lerobot-train", *argv])
        overrides = [arg.replace("policy.", "") for arg in argv if "trust" in arg]
        config = PreTrainedConfig.from_pretrained(clean, cli_overrides=overrides)
        assert config.runs_remote_code is expected
        config._save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["trust_remote_code"] is False


def test_a_checkpoint_names_no_file_to_write_to(tiny_companion, tmp_path, monkeypatch):
    """LeRobot's trainer would append what it logs to whatever a stranger's `metrics_file` names."""
    folder = make_checkpoint(tmp_path / "pretrained_model", tiny_companion, "world_A")
    edit(folder / "config.json", lambda content: content.update(metrics_file=str(tmp_path / "victim")))
    meta = LeRobotDatasetMetadata(tiny_companion.source_repo_id, root=tiny_companion.source_root)
    mine = str(tmp_path / "mine")
    for more, expected in (
        ([], None), ([f"--policy.metrics_file={mine}"], mine), (["--resume=true"], str(tmp_path / "victim")),
    ):  # fmt: skip
        monkeypatch.setattr(sys, "argv", ["lerobot-train", f"--policy.path={folder}", *more])
        policy = make_policy(read_policy_option(), ds_meta=meta)
        assert policy.config.metrics_file == policy._log.path == expected


def test_kernels_of_the_hub_are_code(clean):
    with pytest.raises(ConfigError, match="attn_implementation='you/kernels:f' is code of the Hub"):
        PreTrainedConfig.from_pretrained(clean, cli_overrides=["--attn_implementation=you/kernels:f"])


def test_a_file_of_options_cannot_ask_for_an_environment_s_code(tmp_path, monkeypatch):
    checkpoint = make_acting(tmp_path / "pretrained_model", "world_A")
    cfg = eval_options(checkpoint, tmp_path / "out", trust_remote_code=True)
    with pytest.raises(ConfigError, match="type --trust_remote_code in the command"):
        cfg.resolve()
    monkeypatch.setattr(sys, "argv", ["wm-eval", "--trust_remote_code=true"])
    assert cfg.resolve() == checkpoint


@pytest.mark.parametrize("kind", ["train", "eval"])
def test_a_study_cannot_ask_for_code(tmp_path, kind):
    flags = {"policy.type": "world_A", "policy.trust_remote_code": True}
    study = {"root": str(tmp_path), "seeds": [1], "models": {"A": {}}, "train": {"policy.type": "world_A"}, kind: flags}
    (tmp_path / "s.yaml").write_text(json.dumps(study))
    with pytest.raises(ConfigError, match="a file can't ask for code"):
        expand(load_study(tmp_path / "s.yaml"), lambda _: True)
