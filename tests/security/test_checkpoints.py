"""A checkpoint from elsewhere is data: no code that its files name is imported or called.

Each attack leaves a marker, and is shown to work on LeRobot's own loader.
"""

import json
import re
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path

import lerobot
import pytest
from lerobot.processor import PolicyProcessorPipeline

from lerobot_policy_world_modality.hub.policy_option import read_policy_option
from lerobot_policy_world_modality.hub.trusted_files import RUNS_REMOTE_CODE, check_checkpoint
from lerobot_policy_world_modality.intervention import cli as wm_intervene
from tests.evaluation.helpers import make_checkpoint as make_acting
from tests.faults.commands import run
from tests.hub.machine import TOKEN
from tests.hub.machine import run as run_on_machine
from tests.hub.server import Hub, Repository
from tests.intervention.helpers import make_checkpoint as make_recorded
from wm_tools.push import cli as wm_push
from world_modality_core.io.errors import ConfigError

PREPROCESSOR, POSTPROCESSOR = FILES = ("policy_preprocessor.json", "policy_postprocessor.json")


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return make_acting(tmp_path_factory.mktemp("clean") / "pretrained_model")


@pytest.fixture
def checkpoint(clean, tmp_path):
    """A checkpoint as LeRobot's trainer writes it, to write in."""
    return shutil.copytree(clean, tmp_path / "pretrained_model")


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def add_step(checkpoint: Path, step: dict, file: str = PREPROCESSOR) -> None:
    edit(checkpoint / file, lambda content: content["steps"].append(step))


def popen(marker: Path) -> dict:
    return {"class": "subprocess.Popen", "config": {"args": ["touch", str(marker)]}}


def code_that_marks(marker: Path) -> str:
    return (
        f"open({str(marker)!r}, 'w').close()\n\n\nclass Evil:\n    from_pretrained = classmethod(lambda *a, **k: 0)\n"
    )


def lerobot_runs_it(checkpoint: Path, marker: Path, file: str = PREPROCESSOR) -> bool:
    with suppress(Exception):
        PolicyProcessorPipeline.from_pretrained(checkpoint, file)
    end = time.monotonic() + 120
    while not marker.exists() and time.monotonic() < end:
        time.sleep(0.01)
    return marker.exists()


def test_what_lerobot_s_trainer_writes_passes(checkpoint):
    check_checkpoint(checkpoint)
    # By its dotted name, as LeRobot writes a step that isn't registered.
    add_step(checkpoint, {"class": "lerobot.processor.pipeline.IdentityProcessorStep", "config": {}})
    check_checkpoint(checkpoint)


@pytest.mark.parametrize("file", FILES)
def test_a_step_that_is_a_command_is_not_run(checkpoint, marker, file):
    add_step(checkpoint, popen(marker), file)
    with pytest.raises(ConfigError, match=rf"{file}, step \d+ names 'subprocess.Popen', which is no processor step"):
        check_checkpoint(checkpoint)
    assert not marker.exists() and lerobot_runs_it(checkpoint, marker, file)


def test_a_module_that_lies_about_is_not_imported(checkpoint, marker, tmp_path, monkeypatch):
    (tmp_path / "evil_step.py").write_text(code_that_marks(marker))
    monkeypatch.syspath_prepend(tmp_path)
    add_step(checkpoint, {"class": "evil_step.Evil", "config": {}})
    with pytest.raises(ConfigError, match="names 'evil_step.Evil'"):
        check_checkpoint(checkpoint)
    assert not marker.exists() and lerobot_runs_it(checkpoint, marker)


@pytest.mark.parametrize(
    "step",
    [
        {"registry_name": "action_tokenizer_processor"},
        {"class": "lerobot.processor.tokenizer_processor.ActionTokenizerProcessorStep"},
    ],
)
def test_a_step_that_loads_with_remote_code_is_refused(checkpoint, marker, tmp_path, monkeypatch, step):
    repository = tmp_path / "tokenizer"
    repository.mkdir()
    (repository / "evil.py").write_text(code_that_marks(marker))
    told = {"processor_class": "Evil", "auto_map": {"AutoProcessor": "evil.Evil"}}
    (repository / "processor_config.json").write_text(json.dumps(told))
    add_step(checkpoint, step | {"config": {"action_tokenizer_name": str(repository)}})
    with pytest.raises(ConfigError, match="(ActionTokenizer|action_tokenizer).* runs code of the repositories"):
        check_checkpoint(checkpoint)
    assert not marker.exists() and lerobot_runs_it(checkpoint, marker)
    monkeypatch.setattr(sys, "argv", ["wm-eval", "--trust_remote_code=true"])
    check_checkpoint(checkpoint)


@pytest.mark.parametrize(
    "step",
    [
        {"class": "lerobot.datasets.LeRobotDataset"},
        {"class": "lerobot.processor.pipeline.hf_hub_download"},
        {"class": "lerobot.processor.pipeline.importlib.import_module"},
        {"class": "lerobot_evil.Step"},
        {"class": "Step"},
        {"class": ["lerobot.processor", "Step"]},
        {"registry_name": "never_registered"},
        {"registry_name": None, "class": "lerobot.processor.pipeline.IdentityProcessorStep"},
        {"registry_name": "reward_classifier_processor", "config": {"pretrained_path": "somebody/else"}},
        {"class": "lerobot.rewards.topreward.processor_topreward.TOPRewardEncoderProcessorStep"},
        {"registry_name": "normalizer_processor", "state_file": "../outside.safetensors"},
        {"registry_name": "normalizer_processor", "state_file": "/outside.safetensors"},
        {"registry_name": "normalizer_processor", "state_file": "link.safetensors"},
        {},
    ],
)
def test_what_is_no_installed_step_is_refused(checkpoint, tmp_path, step):
    (tmp_path / "outside.safetensors").touch()
    (checkpoint / "link.safetensors").symlink_to(tmp_path / "outside.safetensors")
    add_step(checkpoint, step)
    with pytest.raises(ConfigError, match="no processor step|runs code of the repositories|leads out of|is a link to"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("steps", [None, {}, "x", ["x"], [[]]])
def test_a_processor_without_steps_is_refused(checkpoint, steps):
    edit(checkpoint / PREPROCESSOR, lambda content: content.update(steps=steps))
    with pytest.raises(ConfigError, match="no list of steps"):
        check_checkpoint(checkpoint)


@pytest.mark.parametrize("policy_type", ["pi0_fast", "groot", "wall_x", "gaussian_actor"])
def test_a_type_that_loads_with_remote_code_is_refused(checkpoint, policy_type):
    edit(checkpoint / "config.json", lambda content: content.update(type=policy_type))
    with pytest.raises(ConfigError, match=f"type '{policy_type}' runs code of the repositories"):
        check_checkpoint(checkpoint)


def test_what_of_lerobot_loads_with_remote_code_is_known():
    """A release of LeRobot that adds another one fails here."""
    root, found = Path(lerobot.__file__).parent, set()
    for room in ("policies", "processor", "rewards"):
        for path in sorted((root / room).rglob("*.py")):
            if re.search(r"trust_remote_code[\"']?\s*(:\s*bool\s*)?[=:]\s*True", path.read_text()):
                found.add(".".join(path.relative_to(root.parent).with_suffix("").parts))
    assert "lerobot.policies.pi0_fast.modeling_pi0_fast" in found
    unknown = {name for name in found if not any(f"{name}.".startswith(known) for known in RUNS_REMOTE_CODE)}
    assert unknown == {"lerobot.processor.tokenizer_processor"}  # one class of it


def test_an_adapter_is_safetensors_and_names_no_module(checkpoint):
    (checkpoint / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ConfigError, match="weights in pickles"):
        check_checkpoint(checkpoint)
    (checkpoint / "adapter_model.safetensors").touch()
    check_checkpoint(checkpoint)
    edit(checkpoint / "adapter_config.json", lambda content: content.update(megatron_config={}, megatron_core="evil"))
    check_checkpoint(checkpoint)  # not imported
    edit(checkpoint / "adapter_config.json", lambda content: content.update(megatron_config={"a": 1}))
    with pytest.raises(ConfigError, match="names a module"):
        check_checkpoint(checkpoint)


def test_a_checkpoint_does_not_choose_its_revision(checkpoint, monkeypatch):
    edit(checkpoint / "config.json", lambda content: content.update(pretrained_revision="evil"))
    monkeypatch.setattr(sys, "argv", ["wm-eval", f"--policy.path={checkpoint}"])
    assert read_policy_option().pretrained_revision is None
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--policy.pretrained_revision=mine"])
    assert read_policy_option().pretrained_revision == "mine"


# The commands.


def test_wm_eval_refuses(checkpoint, marker, tmp_path):
    add_step(checkpoint, popen(marker))
    done = run(
        "lerobot_policy_world_modality.evaluation.cli:main", f"--policy.path={checkpoint}", "--train_seed=0",
        "--env.type=metaworld_light", "--env.task=drawer-close-v3", "--env.episode_length=2", "--seed=1",
        "--env.observation_height=32", "--env.observation_width=32", "--eval.n_episodes=1", "--eval.batch_size=1",
        f"--output_dir={tmp_path / 'out'}", log=tmp_path / "log",
    )  # fmt: skip
    assert done.status == 1 and "names 'subprocess.Popen'" in done.told
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_wm_intervene_refuses(tiny_companion, marker, tmp_path):
    checkpoint = make_recorded(tmp_path / "pretrained_model", tiny_companion, "world_A")
    options = (f"--policy.path={checkpoint}", f"--output_dir={tmp_path / 'out'}", "--n_frames=8")
    add_step(checkpoint, popen(marker), POSTPROCESSOR)
    done = run(wm_intervene.main, *options, log=tmp_path / "log")
    assert done.status == 1 and "names 'subprocess.Popen'" in done.told
    assert not marker.exists() and not (tmp_path / "out").exists()


def test_wm_push_refuses(checkpoint, marker, tmp_path):
    add_step(checkpoint, popen(marker))
    done = run(wm_push.main, str(checkpoint), "--repo_id=me/evil", "--dry_run", log=tmp_path / "log")
    assert done.status == 1 and "names 'subprocess.Popen'" in done.told and not marker.exists()


def test_a_checkpoint_of_the_hub_is_checked_at_its_revision(checkpoint, marker, tmp_path):
    def files() -> dict[str, tuple[bytes, bool]]:
        return {path.name: (path.read_bytes(), path.suffix == ".safetensors") for path in checkpoint.iterdir()}

    with Hub({TOKEN: "me"}) as hub:
        repository = hub.repositories["models", "you/policy"] = Repository("models", "you/policy", False)
        repository.commit("main", files())
        add_step(checkpoint, popen(marker))
        repository.commit("evil", files())
        told = run_on_machine("victim", tmp_path / "home", hub.url, TOKEN, path="you/policy", revision="evil")
    for name in ("wm-eval", "wm-intervene"):
        assert re.search(r"snapshots/\w+/policy_preprocessor.json, step \d+ names 'subprocess.Popen'", told[name]), told
    assert not marker.exists()
