"""`wm-doctor` says ok where all is well, and FAIL with a remedy where it is not."""

import json
import subprocess
import sys

import pytest

from lerobot_policy_world_modality.doctor import cli as doctor
from lerobot_policy_world_modality.doctor.cli import Row


@pytest.fixture(scope="module")
def rows():
    return {row.check: row for row in doctor.diagnose("cpu")}


def test_nothing_fails_here(rows):
    failed = {row.check: row.found for row in rows.values() if row.status == "FAIL"}
    assert not failed


@pytest.mark.parametrize("policy_type", doctor.POLICY_TYPES)
def test_every_type_makes_its_round(rows, policy_type):
    assert "trained, saved, loaded and acted" in rows[f"policy {policy_type}"].found


def test_every_warning_and_failure_has_a_remedy(rows):
    assert all(row.remedy for row in rows.values() if row.status != "ok")


def test_a_crashing_check_becomes_a_row_and_the_others_go_on(monkeypatch):
    def crash():
        raise OSError("no such thing\nsecond line")

    monkeypatch.setattr(doctor, "check_renderers", crash)
    monkeypatch.setattr(doctor, "check_metaworld", lambda: [])
    monkeypatch.setattr(doctor, "check_policies", lambda device: [Row("policies", "ok", "")])
    monkeypatch.setattr(doctor, "check_encoders", lambda device: [])
    rows = {row.check: row for row in doctor.diagnose("cpu")}
    assert rows["renderer"].status == "FAIL"
    assert rows["renderer"].found.startswith("OSError: no such thing (test_doctor.py:")
    assert rows["policies"].status == "ok"


def test_a_policy_that_fails_is_named(monkeypatch, tmp_path):
    def fail(policy_type, data, device):
        if policy_type == "world_C":
            raise RuntimeError("the action is not finite")
        return "fine"

    monkeypatch.setattr("lerobot_policy_world_modality.doctor.policy_round.make_tiny_data", lambda folder, device: None)
    monkeypatch.setattr("lerobot_policy_world_modality.doctor.policy_round.policy_round", fail)
    assert [row.status for row in doctor.check_policies("cpu")] == ["ok", "ok", "ok", "FAIL", "ok"]


def test_a_broken_renderer_fails_with_the_packages_to_install(monkeypatch):
    monkeypatch.setattr(doctor, "_RENDER", "raise SystemExit('no GL')")
    row = doctor.check_renderers()[0]
    assert row.status == "FAIL" and "no egl, no osmesa" in row.found and "apt-get install" in row.remedy


def test_cuda_asked_for_and_missing_ends_the_checks(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    last = doctor.diagnose("cuda")[-1]
    assert (last.check, last.status) == ("device", "FAIL")


def test_table_and_exit_code(monkeypatch, capsys):
    rows = [Row("a", "ok", "1.0"), Row("b", "FAIL", "broken", "mend it")]
    monkeypatch.setattr(doctor, "diagnose", lambda device: rows)
    monkeypatch.setattr(sys, "argv", ["wm-doctor"])
    assert doctor.main() == 1
    text = capsys.readouterr().out
    assert "-> mend it" in text and "1 of 2 checks failed" in text
    rows.pop()
    monkeypatch.setattr(sys, "argv", ["wm-doctor", "--json"])
    assert doctor.main() == 0
    assert json.loads(capsys.readouterr().out) == [{"check": "a", "status": "ok", "found": "1.0", "remedy": ""}]


def test_help_is_quick_to_get():
    done = subprocess.run(
        [sys.executable, "-m", "lerobot_policy_world_modality.doctor.cli", "--help"], capture_output=True
    )
    assert done.returncode == 0 and b"--device" in done.stdout


@pytest.mark.parametrize(
    "script, found, remedy",
    [
        ("raise AttributeError('no model_v4')", "AttributeError: no model_v4", "pip install "),
        ("print('RESULT', 0)", "the frame after a reset is blank", "apt-get install"),
    ],
)
def test_a_simulator_that_does_not_work_fails(monkeypatch, script, found, remedy):
    monkeypatch.setattr(doctor, "_METAWORLD", script)
    row = doctor.check_metaworld()[0]
    assert row.status == "FAIL" and found in row.found and remedy in row.remedy
