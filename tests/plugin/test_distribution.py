"""The distribution as a user installs it: a wheel, and an editable tree, each in a fresh virtual environment."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
NAME = "lerobot_policy_world_modality"
PACKAGES = [NAME, "world_modality_core", "coc_tools", "wm_tools"]
TYPES = ["world_A", "world_B", "world_B_cont", "world_C", "world_F", "smolvla_world", "qwen_world_fplus"]
HOSTS = ["act", "diffusion", "multi_task_dit", "pi0", "pi05", "xvla"]
TYPES += [f"{host}_world" for host in HOSTS]
SCRIPTS = sorted(tomllib.loads((REPO / "pyproject.toml").read_text())["project"]["scripts"])
SHOWN = ["wm-precompute", "wm-record", "wm-doctor"]  # --help: one of each package

# Runs inside the fresh environment and prints one JSON object.
PROBE = f"""
import importlib.metadata, json, logging, sys
report = {{}}
import lerobot.policies, lerobot.envs.configs
before = set(sys.modules)
import {NAME}
report["imported"] = sorted({{name.split(".")[0] for name in set(sys.modules) - before}})
report["file"] = {NAME}.__file__
names = [d.metadata["Name"] for d in importlib.metadata.distributions()]
report["names"] = [name for name in names if name.startswith("lerobot_policy_")]

from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
from lerobot.configs.policies import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
choices = PreTrainedConfig.get_known_choices()
report["types"] = [name for name, choice in choices.items() if choice.__module__.startswith("{NAME}")]
report["envs"] = list(EnvConfig.get_known_choices())
entry_points = importlib.metadata.entry_points(group="lerobot.policies")
report["entry_points"] = {{e.name: PreTrainedConfig.get_choice_name(e.load()) for e in entry_points}}

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
report["resolved"] = {{}}
for name in report["types"]:
    config = PreTrainedConfig.get_choice_class(name)(device="cpu")
    config.input_features = {{"observation.state": PolicyFeature(FeatureType.STATE, (4,))}}
    config.output_features = {{"action": PolicyFeature(FeatureType.ACTION, (4,))}}
    try:
        n_steps = [len(processor.steps) for processor in make_pre_post_processors(config)]
    except (OSError, ImportError) as error:  # the tokenizer of a VLM is on the Hub, or in an extra
        n_steps = [str(error)]
    report["resolved"][name] = [get_policy_class(name).__name__, get_policy_class(name).config_class.__name__, n_steps]
print("REPORT" + json.dumps(report))
"""


def run(arguments, cwd, **kwargs):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    environment |= {"HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
    done = subprocess.run(
        [str(a) for a in arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, **kwargs
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory):
    """A copy of what is packaged, so that no build litter lands in the repository."""
    tree = tmp_path_factory.mktemp("source")
    for name in ["pyproject.toml", "README.md", "LICENSE"]:
        shutil.copy(REPO / name, tree)
    for name in [*PACKAGES, "tests"]:
        shutil.copytree(REPO / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tree


@pytest.fixture(scope="session")
def wheel(source_tree, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder, "."],
        source_tree,
    )
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session", params=["wheel", "editable"])
def environment(request, source_tree, wheel, tmp_path_factory):
    """A fresh virtual environment that sees this environment's packages, but not this environment's copy of ours."""
    folder = tmp_path_factory.mktemp(request.param)
    borrowed = folder / "borrowed"
    borrowed.mkdir()
    for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not path.name.startswith((NAME, "__editable__")) and path.suffix != ".pth":
            (borrowed / path.name).symlink_to(path)
    run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], folder)
    python = folder / "venv" / "bin" / "python"
    site = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"], folder).strip())
    (site / "borrowed.pth").write_text(f"{borrowed}\n")
    what = [wheel] if request.param == "wheel" else ["--no-build-isolation", "--editable", source_tree]
    run([sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", *what], folder)
    return python


@pytest.fixture(scope="session")
def report(environment):
    output = run([environment, "-c", PROBE], environment.parent)
    return json.loads(output.split("REPORT")[-1])


def test_wheel_holds_the_packages_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {*PACKAGES, f"{NAME}-{wheel.name.split('-')[1]}.dist-info"}
    modules = {name for name in names if name.endswith(".py")}
    expected = {str(path.relative_to(REPO)) for package in PACKAGES for path in (REPO / package).rglob("*.py")}
    assert modules == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)
    # Prompts, templates and the marks of typed packages: all that isn't code.
    data = {name for name in names if not name.endswith(".py") and ".dist-info/" not in name}
    held = {path for package in PACKAGES for path in (REPO / package).rglob("*") if path.is_file()}
    held = {str(path.relative_to(REPO)) for path in held if path.suffix != ".py" and "__pycache__" not in path.parts}
    assert data == held
    assert {f"{package}/py.typed" for package in PACKAGES} | {"coc_tools/prompts/coc_v1.txt"} < data


def test_name_is_what_discovery_looks_for(report):
    assert report["names"] == [NAME]


def test_the_installed_copy_is_tested(report, environment, source_tree):
    assert Path(report["file"]).is_relative_to(environment.parents[1]) or Path(report["file"]).is_relative_to(
        source_tree
    )
    assert not Path(report["file"]).is_relative_to(REPO)


def test_import_is_light(report):
    # On top of `lerobot.policies`, without which SmolVLA's config can't be subclassed.
    heavy = {"transformers", "metaworld", "mujoco", "faiss", "scipy", "sklearn", "matplotlib", "openai"}
    assert NAME in report["imported"]
    assert not heavy & set(report["imported"])


def test_discovery_registers_every_type(report):
    assert sorted(report["types"]) == sorted(TYPES)
    assert "metaworld_light" in report["envs"]


def test_every_type_resolves_to_policy_and_processors(report):
    assert sorted(report["resolved"]) == sorted(TYPES)
    for name, (policy, config, n_steps) in report["resolved"].items():
        assert config.removesuffix("Config") == policy.removesuffix("Policy")
        assert policy.lower() == name.replace("_", "").lower() + "policy"
        assert all(n > 0 for n in n_steps) if name.startswith("world_") else n_steps, name


def test_entry_points_list_every_type(report):
    assert report["entry_points"] == {name: name for name in TYPES}


def test_lerobot_train_help_mentions_every_type(environment):
    output = run([environment, "-m", "lerobot.scripts.lerobot_train", "--help"], environment.parent)
    choices = set(re.findall(r"\w+", re.search(r"--policy\.type \{([^}]*)\}", output)[1]))
    assert set(TYPES) <= choices


@pytest.mark.parametrize("script", SCRIPTS)
def test_console_script_has_help(environment, script):
    path = environment.parent / script
    assert path.exists()
    assert path.stat().st_mode & 0o100
    if script in SHOWN and environment.parents[2].name.startswith("wheel"):  # once
        assert "usage" in run([path, "--help"], environment.parent).lower()
