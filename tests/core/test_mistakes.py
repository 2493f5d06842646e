"""Mistakes of somebody who is new: each command answers in one line, with the remedy, before heavy imports."""

import json
import subprocess
import sys
import tomllib
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from lerobot_policy_world_modality.evaluation.configuration import WorldEvalConfig
from world_modality_core.io import first_look
from world_modality_core.io.commands import answer_early, run_command
from world_modality_core.io.errors import ConfigError
from world_modality_core.io.option_source import OpenOptionsError, options_in_source

REPO = Path(__file__).parents[2]
SCRIPTS = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"]
# Each takes seconds to import.
HEAVY = {"torch", "lerobot", "transformers", "datasets", "faiss", "pandas", "accelerate", "huggingface_hub", "scipy"}
FIT = "wm-monitor fit --output_dir=out"
TRIAL = "wm-trial --task=fold --n_setups=9 --output_dir=out"

MISTAKES = {
    # folders
    "wm-precompute --dataset.root=/nope": "dataset.root='/nope': there is no such folder; name the folder that has",
    "wm-precompute --dataset.root=recordings/push": "did you mean recordings/pusht?",
    "wm-precompute --dataset.root recordings": "there is one below it: --dataset.root=recordings/pusht",
    "wm-precompute --dataset.repo_id=me/pusht --reuse_from=./companoin": "did you mean companion?",
    "coc-label --dataset.root=/nope --labels=out.jsonl": "dataset.root='/nope': there is no such folder",
    "coc-label --dataset.root=recordings/pusht --companion=/nope": "companion='/nope': there is no such folder",
    "wm-prophet --companions=/nope --output_dir=out": "companions='/nope': there is no such folder; wm-precompute",
    "wm-prophet --companions=companion,/nope --output_dir=out": "companions='/nope': there is no such folder",
    "wm-prophet --companions=companion --sources=recordings/pusht,data --output_dir=out": "sources='data': there is no",
    f"{FIT} --companions=companion --prophet=prophet": "prophet='prophet': there is no such folder (counted from ",
    f"{FIT} --monitor=/nope --rows=out": "monitor='/nope': there is no such folder; wm-monitor fit writes it",
    "wm-eval --policy.path=run/train": "there is one below it: --policy.path=run/train/checkpoints/last/pretrained_mod",
    "wm-eval --policy.path=run": "there is one below it: --policy.path=run/train/checkpoints/last/pretrained_model",
    "wm-eval --policy.path=run/trian": "did you mean run/train?",
    "wm-eval --policy.path=recordings": "policy.path='recordings' is no checkpoint (no config.json): lerobot-train",
    "wm-eval --policy.path=/nope/pretrained_model": "policy.path='/nope/pretrained_model': there is no such folder",
    "wm-eval --policy.path=policy --monitor=./out": "monitor='./out': there is no such folder",
    "wm-intervene --policy.path=run/train": "there is one below it",
    "wm-intervene --policy.path=policy --companion.root=out": "companion.root='out': there is no such folder",
    f"{TRIAL} --policies a=/nope b=policy --run=true\\ {{policy}}": "--policies a='/nope': there is no such folder",
    "wm-push polciy --repo_id=me/policy": "path='polciy' does not exist",
    "coc-label --dataset.repo_id=me/pusht --labels=out.jsonl --prompt=/nope.txt": "prompt='/nope.txt': expected one of",
    "coc-eval --labels=out.jsonl": "labels='out.jsonl': no such file; name a label file",
    "coc-view --dataset.root=/nope": "dataset.root='/nope': there is no such folder",
    "wm-matrix companion": "companion is a folder: name the YAML file of a study",
    "wm-verify polciy": "polciy does not exist",
    # outputs
    "wm-precompute --dataset.repo_id=me/pusht --output.root=afile": "output.root='afile' is a file: name a folder",
    "wm-prophet --companions=companion --output_dir=afile/below/it": "/afile is a file, and nothing can be below it",
    "wm-eval --policy.path=policy --output_dir=afile": "output_dir='afile' is a file: name a folder, which is made",
    "wm-intervene --policy.path=policy --output_dir afile": "output_dir='afile' is a file: name a folder",
    "wm-record --tasks=push-v3 --output.repo_id=me/push --output.root=afile/x": "/afile is a file, and nothing can be",
    f"{TRIAL} --output_dir=afile --policies a=policy b=policy --run=true\\ {{policy}}": "output_dir='afile' is a file",
    "wm-monitor scan --output_dir=afile": "output_dir='afile' is a file: name a folder",
    "wm-monitor eval --page=run x": "page='run' is a folder: name a file in it",
    "wm-matrix study.yaml --root=afile": "root='afile' is a file: name a folder",
    "wm-matrix study.yaml --export=afile/x": "/afile is a file, and nothing can be below it",
    "wm-report run --output=run": "output='run' is a folder: name a file in it",
    "wm-compare run --json=run": "json='run' is a folder: name a file in it",
    "wm-compare run --plot=afile/plot.png": "/afile is a file, and nothing can be below it",
    "wm-compare run --junit=run": "junit='run' is a folder: name a file in it",
    "coc-label --dataset.repo_id=me/pusht --labels=run": "labels='run' is a folder: name a file in it",
    "coc-view --labels=a.jsonl --output=run": "output='run' is a folder: name a file in it",
    # closed choices and numbers
    "wm-precompute --dataset.repo_id=me/pusht --encoder.family=dnio": "encoder.family='dnio': expected one of ['dino",
    "wm-precompute --dataset.repo_id=me/pusht --encoder.pooling=max": "encoder.pooling='max': cannot read 'max'; exp",
    "wm-precompute --dataset.repo_id=me/pusht --tokens.n_codes=-5": "tokens.n_codes=-5: expected 0 (none) or at least",
    "wm-prophet --companions=companion --output_dir=out --steps=-1": "steps=-1: expected at least 1",
    "wm-prophet --output_dir=out": "companions is empty: name it with --companions",
    "wm-compare run --alpha=2": "alpha=2.0: expected a level between 0 and 0.5, such as 0.05",
    "wm-matrix nowhere.yaml --jobs=0": "--jobs=0: expected at least 1",
    "wm-prophet --companions=companion --output_dir=out --lr=nan": "lr=nan: expected a positive number",
    "wm-precompute --dataset.repo_id=me/pusht --seed=-1": "seed=-1: expected at least 0",
    "wm-precompute --dataset.repo_id=me/pusht --encoder.dim=3": "encoder.dim=3 follows from the encoder and its PCA",
    "coc-label --dataset.repo_id=me/pusht --labels=out.jsonl --endpoint.max_wait_s=nan": "endpoint.max_wait_s=nan: exp",
    f'{TRIAL} --policies a=policy b=policy --run="true \'x {{policy}}"': "No closing quotation",
    f"{TRIAL} --policies a=policy b=policy --run=true\\ {{policy}} --port=65536": "--port=65536: expected 0 to 65535",
    # devices
    "wm-precompute --dataset.repo_id=me/pusht --device=cdua": "device='cdua': no such device; expected cpu, cuda,",
    "wm-precompute --dataset.repo_id=me/pusht --device=cuda": "device='cuda': torch sees 0 CUDA devices",
    "wm-prophet --companions=companion --output_dir=out --device=cuda": "device='cuda': torch sees 0 CUDA devices",
    "coc-label --dataset.repo_id=me/pusht --labels=out.jsonl --local.device=gpu": "local.device='gpu': no such device",
    "wm-eval --policy.path=policy --policy.device=cuda:0": "policy.device='cuda:0': torch sees 0 CUDA devices",
    "wm-intervene --policy.path=policy --device=cdua": "device='cdua': no such device",
    "wm-doctor --device=cdua": "invalid choice: 'cdua'",
    # names of options
    "wm-precompute --dataset.repo_id=me/pusht --devic=cpu": "no option --devic, the nearest is --device",
    "wm-precompute --dataset.repo_id=me/pusht --root=here": "no option --root, the nearest is --dataset.root",
    "wm-precompute -dataset.repo_id=me/pusht": "belongs to no option; options are given as --name=value",
    "wm-precompute me/pusht": "'me/pusht' belongs to no option; options are given as --name=value",
    "wm-precompute --config_path=/nope.yaml": "config_path='/nope.yaml': there is no such file; name a YAML file",
    "wm-eval --config_path companion": "config_path='companion': there is no such file; name a YAML file of options",
    "wm-prophet --companions=companion --output=out": "no option --output, the nearest is --output_dir",
    "coc-label --dataset.repo_id=me/pusht --lables=out.jsonl": "no option --lables, the nearest is --labels",
    "coc-label --keyframes.kind=event": "--keyframes.kind: invalid choice: 'event' (choose from",
    "wm-compare run --basline=A": "no option --basline, the nearest is --baseline",
    "wm-compare --plan=run": "`plan`: Couldn't parse 'run' into a bool. It is a switch",
    "wm-report run --basline=A": "no option --basline, the nearest is --baseline",
    "wm-push policy --repoid=me/policy": "no option --repoid, the nearest is --repo_id",
    "wm-push policy": "the following arguments are required: --repo_id; `wm-push --help` lists the options",
    f"{TRIAL} --policy a=policy b=policy --run=x": "no option --policy, the nearest is --policies",
    "wm-trial --hosst=0.0.0.0": "no option --hosst, the nearest is --host",
    "wm-monitor": "the following arguments are required: fit | eval | scan | attach",
    "wm-monitor fti": "invalid choice: 'fti' (choose from 'fit', 'eval', 'scan', 'attach')",
    "wm-monitor fit --output=out --prophet=x": "prophet='x': there is no such folder",
    "wm-verify --sorce=x policy": "no option --sorce, the nearest is --source",
    "wm-matrix study.yaml --job=3 --plann": "no option --plann, the nearest is --plan",
    # of commands whose options import LeRobot
    "wm-eval --policy.path=policy --arm=intact": "no option --arm, the nearest is --arms",
    "wm-eval --policy.path=policy --n_episodes=4": "no option --n_episodes, the nearest is --eval.n_episodes",
    "wm-eval --policy.path=policy --eval.n_episods=4": "no option --eval.n_episods, the nearest is --eval.n_episodes",
    "wm-eval --policy.path=policy --eval.n_episodes=ten": "`eval.n_episodes`: Couldn't parse 'ten' into an int",
    "wm-eval --policy_path=policy": "no option --policy_path, the nearest is --policy.path",
    "wm-eval --policy.path=policy --task=push-v3": "no option --task, the nearest is --env.task",
    "wm-eval policy": "'policy' belongs to no option; options are given as --name=value",
    "wm-intervene --policy.path=policy --output=out": "no option --output, the nearest is --output_dir",
    "wm-intervene --policy.path=policy --plot=maybe": "`plot`: Couldn't parse 'maybe' into a bool. It is a switch",
    "wm-eval --env.type=metaworld_light": "policy.path is not given: name the checkpoint to evaluate",
    "wm-eval --policy.path=policy": "env.type is not given: name the simulator, for instance --env.type=metaworld",
    "wm-intervene --output_dir=out": "policy.path is not given: name the checkpoint to examine",
    "wm-record --output.repo_id=me/push": "tasks is not given: name tasks to record, for instance --tasks=push-v3",
    "wm-record --tasks=push-v3": "output.repo_id is not given: name the dataset, for instance --output.repo_id=me/",
    "wm-record --task=push-v3": "no option --task, the nearest is --tasks",
    "wm-record --tasks=push-v3 --video.g=two": "`video.g`: Could not decode the value",
    "wm-record --tasks=push-v3 --env.camera_name=corner9": "--env.camera_name: invalid choice: 'corner9'",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each command prints, and which heavy libraries it had imported; all in one process without a GPU."""
    root = tmp_path_factory.mktemp("new_here")
    for name in (
        "run/train/checkpoints/last/pretrained_model/config.json", "policy/config.json",
        "recordings/pusht/meta/info.json", "companion/meta/info.json", "companion/meta/world_modality.json",
    ):  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    (root / "afile").write_text("")
    program = f"""
import contextlib, importlib, io, json, shlex, sys
from world_modality_core.io import first_look
first_look._may_have_cuda = lambda: False
answers = {{}}
for line in json.loads({json.dumps(list(MISTAKES))!r}):
    command, *arguments = shlex.split(line)
    sys.argv = [command, *arguments]
    module, _, name = {SCRIPTS!r}[command].partition(":")
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        try:
            status = getattr(importlib.import_module(module), name)()
        except SystemExit as stop:
            status = stop.code
            if isinstance(status, str):
                printed.write(status)
        except BaseException as error:
            status = repr(error)
    answers[line] = [printed.getvalue().strip(), status, sorted({HEAVY!r} & set(sys.modules))]
print(json.dumps(answers))
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_is_answered_in_one_line_with_the_remedy(line, answers):
    text, status, heavy = answers[line]
    command = line.split()[0]
    assert MISTAKES[line] in text and text.startswith(f"{command}: "), (text, status)
    assert "\n" not in text and status not in (0, None) and "usage" not in text
    assert heavy == []


def test_what_is_there_or_may_come_is_let_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("policy/config.json", "data/meta/info.json", "companion.partial/x"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("{}")
    for line in (
        "--policy.path=policy --dataset.root=data", "--policy.path=me/policy", "--dataset.repo_id=me/data",
        "--dataset.repo_id=me/data --dataset.root=/new/folder",  # is downloaded into it
        "--companions=me/one,me/two", "--companion.root=companion",  # whoever opens it says that it isn't finished
        "--policy.path=/nope --help", "--device=cpu", "--device",
    ):  # fmt: skip
        first_look.look_first(line.split())


@pytest.mark.parametrize(
    "command, module, name",
    [
        ("wm-eval", "lerobot_policy_world_modality.evaluation.configuration", "WorldEvalConfig"),
        ("wm-intervene", "lerobot_policy_world_modality.intervention.cli", "InterveneConfig"),
        ("wm-record", "lerobot_policy_world_modality.record.record_options", "RecordConfig"),
    ],
)
def test_options_read_from_source_are_those_of_the_command(command, module, name):
    known, is_open = options_in_source(module, name)
    in_source = set()

    def names(options, before):
        for each in fields(options):
            in_source.add(before + each.name)
            if is_dataclass(each.type):
                names(each.type, f"{before}{each.name}.")

    names(known, "--")
    recorded = set(json.loads((REPO / "tests/equality/options.json").read_text())[command])
    said = {option for option in recorded if "." not in option or option[2:].partition(".")[0] not in is_open}
    assert is_open == {"wm-eval": {"policy", "env"}, "wm-intervene": {"policy"}, "wm-record": set()}[command]
    assert in_source == said - {"--help", "--config_path"}


def test_options_that_the_source_does_not_say_are_left_to_the_parser(tmp_path, monkeypatch, capsys):
    for module in ("lerobot.configs.gone", "lerobot.configs.eval", "wm_tools"):
        with pytest.raises(OpenOptionsError):
            options_in_source(module, "WorldEvalConfig")
    (tmp_path / "given.yaml").write_text("unknown: 1")
    monkeypatch.chdir(tmp_path)
    for words in ("--polcy=x", "--config_path given.yaml", "--policy.any=1 --env.type=a --arms=zero", "--polcy --help"):
        module = (
            "lerobot.configs.eval" if words == "--polcy=x" else "lerobot_policy_world_modality.evaluation.configuration"
        )
        monkeypatch.setattr(sys, "argv", ["wm-eval", *words.split()])
        answer_early("wm-eval", module, "WorldEvalConfig", {"policy.any": "it"} if "given.yaml" in words else {})
    assert capsys.readouterr() == ("", "")


def test_wm_eval_says_which_checkpoint_option_it_knows(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["wm-eval"])
    with pytest.raises(SystemExit) as stop:
        run_command("wm-eval", WorldEvalConfig, print, ["--policy.pth=policy"])
    assert "no option --policy.pth, the nearest is --policy.path" in str(stop.value.code)
    assert "--policy.path=FOLDER" in WorldEvalConfig.__doc__ and "--env.task=" in WorldEvalConfig.__doc__


@pytest.mark.parametrize("name", ["weights/dinov2", "data/weights/dinov2", "dionv2"])
def test_weights_that_are_in_no_folder_are_told_so(name, tmp_path, monkeypatch):
    (tmp_path / "dinov2").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    near = "; did you mean dinov2?" if name == "dionv2" else ""
    with pytest.raises(ConfigError, match=rf"^model_id='{name}': there is no such folder \(counted from .*\){near}"):
        first_look.check_weights("model_id", name)
    snapshot = tmp_path / "models--me--dinov2"
    (snapshot / "snapshots/abc").mkdir(parents=True)
    (snapshot / "refs").mkdir()
    (snapshot / "snapshots/abc/config.json").write_text("{}")
    (snapshot / "refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    first_look.check_weights("model_id", "me/dinov2")  # the control: downloaded before
    first_look.check_weights("model_id", "dinov2")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    first_look.check_weights("model_id", "weights/dinov3")  # may be on the Hub


def test_a_relative_folder_that_a_checkpoint_keeps_is_told_from_elsewhere(tmp_path, monkeypatch):
    from world_modality_core.latents.companion import CompanionError, open_companion
    from world_modality_core.precompute.source import open_metadata

    monkeypatch.chdir(tmp_path)
    counted = rf"no such folder \(counted from {tmp_path}\)"
    with pytest.raises(CompanionError, match=rf"companion.root='outputs/world': there is {counted}.*downloaded there"):
        open_companion("me/pusht_world", "outputs/world")
    with pytest.raises(ConfigError, match=counted):
        open_metadata("me/pusht", "outputs/pusht")
