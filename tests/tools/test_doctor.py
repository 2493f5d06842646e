"""`wm-doctor` says ok where all is well, and FAIL with a remedy where it is not."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
from lerobot.configs import PreTrainedConfig

from wm_tools.doctor import checks, cli
from wm_tools.doctor.rows import Row


@pytest.fixture(scope="module")
def rows():
    return {row.check: row for row in checks.diagnose("cpu")}


def test_nothing_fails_here(rows):
    failed = {row.check: row.found for row in rows.values() if row.status == "FAIL"}
    assert not failed


@pytest.mark.parametrize("policy_type", checks.POLICY_TYPES)
def test_every_type_makes_its_round(rows, policy_type):
    row = rows[f"policy {policy_type}"]
    for package in (checks.POLICY_TYPES[policy_type] or ("", ()))[1]:
        pytest.importorskip(package)
    is_untried = policy_type in checks.UNTRIED
    assert ("too large for a round here" if is_untried else "trained, saved, loaded and acted") in row.found


def test_every_warning_and_failure_has_a_remedy(rows):
    assert all(row.remedy for row in rows.values() if row.status != "ok")


def test_a_crashing_check_becomes_a_row_and_the_others_go_on(monkeypatch):
    def crash():
        raise OSError("no such thing\nsecond line")

    monkeypatch.setattr(checks, "check_renderers", crash)
    monkeypatch.setattr(checks, "check_metaworld", lambda: [])
    monkeypatch.setattr(checks, "check_policies", lambda device: [Row("policies", "ok", "")])
    monkeypatch.setattr(checks, "check_encoders", lambda device: [])
    rows = {row.check: row for row in checks.diagnose("cpu")}
    assert rows["renderer"].status == "FAIL"
    assert rows["renderer"].found.startswith("OSError: no such thing (test_doctor.py:")
    assert rows["policies"].status == "ok"


def test_a_policy_that_fails_is_named(monkeypatch, tmp_path):
    def fail(policy_type, data, device):
        if policy_type == "world_C":
            raise RuntimeError("the action is not finite")
        return "fine"

    monkeypatch.setattr("wm_tools.doctor.policy_round.make_tiny_data", lambda folder, device: None)
    monkeypatch.setattr("wm_tools.doctor.policy_round.policy_round", fail)
    assert [row.check for row in checks.check_policies("cpu") if row.status == "FAIL"] == ["policy world_C"]


def test_a_type_whose_extra_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr("wm_tools.doctor.policy_round.make_tiny_data", lambda folder, device: None)
    monkeypatch.setattr("wm_tools.doctor.policy_round.policy_round", lambda policy_type, data, device: "fine")
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "num2words" else find_spec("json"))
    rows = {row.check: row for row in checks.check_policies("cpu")}
    assert {name for name, row in rows.items() if row.status != "ok"} == {"policy smolvla_world"}
    row = rows["policy smolvla_world"]
    assert (row.status, row.found) == ("warn", "num2words not installed") and "[smolvla]" in row.remedy


def test_every_registered_type_makes_a_round():
    import lerobot_policy_world_modality  # noqa: F401  registers the types

    ours = {t for t, c in PreTrainedConfig.get_known_choices().items() if c.__module__.startswith(checks.DISTRIBUTION)}
    assert set(checks.POLICY_TYPES) == ours


def test_a_broken_renderer_fails_with_the_packages_to_install(monkeypatch):
    monkeypatch.setattr(checks, "_RENDER", "raise SystemExit('no GL')")
    row = checks.check_renderers()[0]
    assert row.status == "FAIL" and "no egl, no osmesa" in row.found and "apt-get install" in row.remedy


def test_cuda_asked_for_and_missing_ends_the_checks(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    last = checks.diagnose("cuda")[-1]
    assert (last.check, last.status) == ("device", "FAIL")


def test_table_and_exit_code(monkeypatch, capsys):
    rows = [Row("a", "ok", "1.0"), Row("b", "FAIL", "broken", "mend it")]
    monkeypatch.setattr(checks, "diagnose", lambda device: rows)
    monkeypatch.setattr(sys, "argv", ["wm-doctor"])
    assert cli.main() == 1
    text = capsys.readouterr().out
    assert "-> mend it" in text and "1 of 2 checks failed" in text
    rows.pop()
    monkeypatch.setattr(sys, "argv", ["wm-doctor", "--json"])
    assert cli.main() == 0
    assert json.loads(capsys.readouterr().out) == [{"check": "a", "status": "ok", "found": "1.0", "remedy": ""}]


def test_help_imports_neither_torch_nor_lerobot():
    program = "import sys; from wm_tools.doctor import cli; sys.argv = ['wm-doctor', '--help']\n"
    program += "try: cli.main()\nexcept SystemExit: print('LOADED', *sys.modules)"
    text = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    shown, _, loaded = text.partition("LOADED")
    assert "--device" in shown and "argparse" in loaded.split()
    heavy = {"torch", "numpy", "pandas", "transformers", "lerobot", "lerobot_policy_world_modality", "mujoco"}
    assert not heavy & set(loaded.split())


def test_a_plugin_that_cannot_be_imported_is_a_row(tmp_path):
    """The doctor itself must not need what it examines."""
    (tmp_path / checks.DISTRIBUTION).mkdir()
    (tmp_path / checks.DISTRIBUTION / "__init__.py").write_text("raise ImportError('no such part of LeRobot')")
    program = "from wm_tools.doctor import checks, cli; print('ROW', checks.check_discovery()[0])"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    row = done.stdout.partition("ROW")[2]
    assert "status='FAIL'" in row and "world_F" in row and "import lerobot_policy_world_modality" in row


@pytest.mark.parametrize(
    "script, found, remedy",
    [
        ("raise AttributeError('no model_v4')", "AttributeError: no model_v4", "pip install "),
        ("print('RESULT', 0)", "the frame after a reset is blank", "apt-get install"),
    ],
)
def test_a_simulator_that_does_not_work_fails(monkeypatch, script, found, remedy):
    monkeypatch.setattr(checks, "_METAWORLD", script)
    row = checks.check_metaworld()[0]
    assert row.status == "FAIL" and found in row.found and remedy in row.remedy
